"""What is known of every cell, in one SQLite file that several processes may share."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from effcli.errors import InputError, ResourceError

MOST_ATTEMPTS = 2  # of one process; the next one tries again what failed here
_SCHEMA = """
create table if not exists cells (
    id text primary key, title text not null,
    status text not null default 'begun', error text, result text, changed_at text not null
);
create table if not exists plans (
    suite text not null, tier text not null, corpus text not null, plan text not null,
    changed_at text not null, primary key (suite, tier, corpus)
);
"""


class Store:
    """The file. Every change is whole or has not happened, whatever ends the process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._failures: Counter[str] = Counter()
        try:
            self._database = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._database.executescript(_SCHEMA)
        except sqlite3.Error as error:
            self._fail(error)

    @classmethod
    def glance(cls, path: Path) -> "Store":
        """The file if there is one; else an empty one that leaves no trace."""
        return cls(path if path.exists() else Path(":memory:"))

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def finished(self, cell: str) -> dict[str, Any] | None:
        """The result of a cell; of one that failed too often in this process, why."""
        result = self.known(cell)
        if result and result["status"] == "failed" and self._failures[cell] < MOST_ATTEMPTS:
            return None
        return result

    def known(self, cell: str) -> dict[str, Any] | None:
        """What is known of a cell: its result, or why it failed."""
        for status, error, result in self._ask(
            "select status, error, result from cells where id = ?", cell
        ):
            if status in ("complete", "diverged"):
                return {"status": status, "error": error, **json.loads(result)}
            if status == "failed":
                return {"status": status, "error": error}
        return None

    def finish(self, cell: str, title: str, status: str, result: dict[str, Any]) -> None:
        """Keep a result."""
        error = result.pop("error", None)
        text = json.dumps(result, allow_nan=False)
        with self._changing():
            self._begin(cell, title)
            change = (
                "update cells set status = ?, error = ?, result = ?, changed_at = ? where id = ?"
            )
            self._ask(change, status, error, text, _now(), cell)

    def fail(self, cell: str, title: str, error: str) -> int:
        """Keep why a cell failed; returns how often it has, in this process."""
        self._failures[cell] += 1
        with self._changing():
            self._begin(cell, title)
            change = "update cells set status = 'failed', error = ?, changed_at = ? where id = ?"
            self._ask(change, error, _now(), cell)
        return self._failures[cell]

    def _begin(self, cell: str, title: str) -> None:
        add = "insert or ignore into cells (id, title, changed_at) values (?, ?, ?)"
        self._ask(add, cell, title, _now())

    def remember(self, suite: str, tier: str, corpus: str, plan: dict[str, Any]) -> None:
        """Keep which cells a suite consists of, for whoever wants to see it later."""
        change = "insert or replace into plans values (?, ?, ?, ?, ?)"
        with self._changing():
            self._ask(change, suite, tier, corpus, json.dumps(plan), _now())

    def plan(self, suite: str, tier: str, corpus: str | None) -> dict[str, Any] | None:
        """The plan that was made last, on this corpus or on any."""
        rows = self._ask(
            "select plan from plans where suite = ? and tier = ? and (? is null or corpus = ?) "
            "order by changed_at desc limit 1",
            *(suite, tier, corpus, corpus),
        )
        return json.loads(rows[0][0]) if rows else None

    def _ask(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(question, values).fetchall()
        except sqlite3.Error as error:
            self._fail(error)
            raise

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self._ask("begin immediate")
        try:
            yield
        except BaseException:
            self._database.rollback()
            raise
        self._ask("commit")

    def _fail(self, error: sqlite3.Error) -> None:
        text = str(error)
        if "full" in text or "locked" in text or "readonly" in text or "unable to open" in text:
            hint = "make room or wait for the other process, then start it again"
            raise ResourceError(f"{self._path}: {text}", hint) from None
        hint = "move it away; finished runs beside it are read again"
        raise InputError(f"{self._path} is damaged: {text}", hint) from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
