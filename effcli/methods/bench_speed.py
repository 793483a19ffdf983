"""Measure the parts of a suite of throughputs, each of them once, alone on the machine."""

import shutil
import time
from typing import Any

from effcli.engine.bench.rates import write_rates
from effcli.engine.bench.speed import Part, Speed, document_of
from effcli.engine.bench.store import MOST_ATTEMPTS, Store
from effcli.engine.bench.work import home, key_of
from effcli.engine.records import CellBegun, CellDone, Notice, Stop, Watch
from effcli.engine.runs.lock import locked
from effcli.errors import InputError, ResourceError, Stopped
from effcli.settings.bench import BenchSettings
from effcli.settings.speed import SpeedSuite


def run(
    suite: SpeedSuite, settings: BenchSettings, store: Store, watch: Watch, stop: Stop
) -> dict[str, Any]:
    """Measure what is missing, and make the document."""
    speed = Speed(suite, settings)
    runner = _Runner(speed, settings, store, watch, stop)
    with locked(home() / ".speed.lock", "this machine's speed"):  # two would slow each other
        try:
            runner.run()
        except Stopped as error:
            _reported(speed, settings, store)
            hint = "the same command goes on; what is done is in the report"
            raise Stopped(error.signal_number, "finished shapes are kept", hint) from None
        return _reported(speed, settings, store)


def known(plan: dict[str, Any], settings: BenchSettings, store: Store) -> dict[str, Any]:
    """The document of what was measured before."""
    if settings.action == "export":
        message = f"export has no effect on {settings.suite}: it has no cells"
        raise InputError(message, f"use `eff bench show {settings.suite} --json`")
    document = document_of(plan, store)
    if settings.out is not None:
        document["page"] = str(write_rates(document, settings.out))
    return document


def plan_speed(suite: SpeedSuite, settings: BenchSettings, store: Store) -> dict[str, Any]:
    """What `--dry-run` shows: every part with the time it will take."""
    rows = []
    for part in Speed(suite, settings).parts:
        is_done = store.finished(part.id) is not None
        seconds = 0.0 if is_done else part.seconds
        rows.append({"id": part.id, "part": part.title, "is_done": is_done, "seconds": seconds})
    return {
        "schema": 1,
        "command": "dry-run",
        "kind": suite.kind,
        "suite": settings.suite,
        "tier": settings.tier,
        "parts": rows,
        "seconds": sum(row["seconds"] for row in rows),
    }


def _reported(speed: Speed, settings: BenchSettings, store: Store) -> dict[str, Any]:
    plan = speed.plan()
    store.remember(*key_of(settings.suite, settings.tier), "", plan)
    document = document_of(plan, store)
    folder = settings.out or home() / f"{plan['suite']}-{settings.tier}"
    return {**document, "page": str(write_rates(document, folder))}


class _Runner:
    def __init__(
        self, speed: Speed, settings: BenchSettings, store: Store, watch: Watch, stop: Stop
    ) -> None:
        self._parts, self._store, self._watch, self._stop = speed.parts, store, watch, stop
        self._seconds = None if settings.max_minutes is None else 60 * settings.max_minutes
        self._started = time.monotonic()
        for part in self._left():
            if self._seconds is not None and part.seconds > self._seconds:
                minutes = part.seconds / 60
                message = f"{part.title} takes about {minutes:.1f} minutes, more than max_minutes"
                raise InputError(message, "allow more, or choose a smaller tier")

    def run(self) -> None:
        """Measure until nothing is left, or no time for the next part."""
        while left := self._left():
            part = left[0]
            if (number := self._stop()) is not None:
                raise Stopped(number, "between two parts")
            passed = time.monotonic() - self._started
            if self._seconds is not None and passed + part.seconds > self._seconds:
                self._watch(Notice(f"no time is left for {part.title}"))
                return
            self._watch(CellBegun(part.title, *self._progress()))
            status = self._measure(part)
            self._watch(CellDone(part.title, status, None, *self._progress(), ()))

    def _left(self) -> list[Part]:
        return [part for part in self._parts if self._store.finished(part.id) is None]

    def _progress(self) -> tuple[int, int, float]:
        left = self._left()
        total = len(self._parts)
        return total - len(left), total, sum(part.seconds for part in left)

    def _measure(self, part: Part) -> str:
        folder = home() / ".speed"
        shutil.rmtree(folder, ignore_errors=True)  # of one that was killed
        folder.mkdir(parents=True)
        try:
            found = part.measure(folder, self._watch, self._stop)
        except (Stopped, ResourceError, OSError):  # nothing that the part is to blame for
            raise
        except Exception as error:
            attempts = self._store.fail(part.id, part.title, f"{type(error).__name__}: {error}")
            again = "; once more" if attempts < MOST_ATTEMPTS else ""
            self._watch(Notice(f"{part.title} failed{again}: {error}"))
            return "failed"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._store.finish(part.id, part.title, "complete", found)
        return "complete"
