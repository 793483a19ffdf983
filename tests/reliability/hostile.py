"""Hostile files: nothing is executed, written elsewhere or held in memory, and one line says so."""

import os
import shutil
from pathlib import Path

from effcli.safe import safe
from reliability.harness import Outcome, Tally, eff, warm
from reliability.hostile_runs import run_cases
from reliability.hostile_sources import MARKER, source_cases

MEMORY = 2**30  # bytes more than a child that does nothing; the largest bomb is far larger


def _everything(place: Path) -> set[str]:
    return {os.fspath(path) for path in place.rglob("*")}


def hostile_files(work: Path, n: int, tally: Tally) -> None:
    """Use every hostile file; if `n` is not 0, all but the bombs, which take a while."""
    warm(work)
    cases = {**source_cases(), **run_cases(work)}
    idle = eff(work, "--version").memory
    for name, (make, codes) in cases.items():
        if n and name.startswith("bomb"):
            continue
        case = work / "case"
        shutil.rmtree(case, ignore_errors=True)
        (case / "out").mkdir(parents=True)
        line = make(case)
        before, end = _everything(work), eff(work, *line)
        tally.facts["most bytes of memory"] = max(
            tally.facts.get("most bytes of memory", 0), end.memory - idle
        )
        written = {path for path in _everything(work) - before if not _is_allowed(path, case)}
        tally.see(_wrong(name, end, codes, idle, written))


def _is_allowed(path: str, case: Path) -> bool:
    """Where a command may write: its own place, the list of corpora, and what it says."""
    return path.startswith((f"{case}/out", f"{case.parent}/.std", f"{case.parent}/data"))


def _wrong(
    name: str, end: Outcome, codes: tuple[int, ...], idle: int, written: set[str]
) -> str | None:
    shown = ascii(name)
    if any(path.endswith(MARKER) for path in written):
        return f"{shown}: executed"
    if written:
        return f"{shown}: wrote {sorted(written)[:3]}"
    if end.memory - idle > MEMORY:
        return f"{shown}: held {end.memory - idle:,} bytes"
    if safe(end.out + end.err) != end.out + end.err:
        return f"{shown}: control characters in {end.out + end.err!r}"
    reason = end.complaint(*codes)
    return f"{shown}: {reason}" if reason else None
