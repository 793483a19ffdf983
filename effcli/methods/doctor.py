"""Look at the machine, and say whether training can work on it."""

from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from typing import Any

from effcli.engine.checkup.rows import Row, found

#: Every check, by the group it is shown in. Loaded one by one: one may lack what it needs.
CHECKS = {
    "versions": "software:versions",
    "processor": "hardware:processor",
    "speed": "hardware:speed",
    "low bits": "hardware:low_bits",
    "memory": "hardware:memory",
    "places": "places:places",
    "tokenizers": "places:tokenizers",
    "hub": "places:hub",
    "extras": "software:extras",
}


def examine() -> dict[str, Any]:
    """All findings; `ready` says whether training can work."""
    rows = [
        {"group": group, **asdict(row)}
        for group in CHECKS
        for row in found(group, lambda: _check(group))  # noqa: B023  called at once
    ]
    ready = all(row["status"] != "missing" for row in rows)
    return {"schema": 1, "command": "doctor", "ready": ready, "rows": rows}


def _check(group: str) -> Iterator[Row]:
    module, _, name = CHECKS[group].partition(":")
    yield from getattr(import_module(f"effcli.engine.checkup.{module}"), name)()
