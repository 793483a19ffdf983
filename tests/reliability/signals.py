"""SIGINT and SIGTERM at random moments: a clean end, and work that goes on to equal results."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from effcli.engine.data.corpus import Corpus
from reliability.harness import (
    Outcome,
    Tally,
    command,
    eff,
    finished,
    fork,
    need,
    prepared,
    same,
    training,
    warm,
    weights,
)

Line = Callable[[Path], list[Any]]


def _announced(line: list[Any], place: str, writing: int, skip: int = 0) -> Callable[[], int]:
    """A command that writes a byte when the function at `place` is entered, after `skip` times."""
    from effcli.registry import resolve_place

    def run() -> int:
        real, times = resolve_place(place), [0]

        def entered(*arguments: Any, **named: Any) -> Any:
            times[0] += 1
            if times[0] == skip + 1:
                os.write(writing, b"x")
            return real(*arguments, **named)

        with patch(place.replace(":", "."), entered):
            return command(*line)()

    return run


class Phase:
    """Something that can be interrupted: what is run, and from where on."""

    def __init__(self, work: Path, name: str, place: str, line: Line, skip: int = 0) -> None:
        self._work, self.name, self._place, self._line, self._skip = work, name, place, line, skip
        self.folder = work / name
        self.seconds = self._time()

    def _time(self) -> float:
        """How long there is something to interrupt."""
        self._start(self._work / f"{self.name}-reference")
        started = time.monotonic()
        need(finished(self._child, self._work))
        return time.monotonic() - started

    def _start(self, out: Path) -> None:
        reading, writing = os.pipe()
        work = _announced(self._line(out), self._place, writing, self._skip)
        self._child = fork(work, self._work)
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)

    def interrupt(self, number: int, delay: float) -> Outcome:
        """Send a signal some time after the phase has begun."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.folder.with_name(f"{self.name}.partial"), ignore_errors=True)
        self._start(self.folder)
        time.sleep(delay)
        os.kill(self._child, number)
        return finished(self._child, self._work)

    def resume(self) -> Outcome:
        """The same command line again, to its end."""
        return eff(self._work, *self._line(self.folder))


def _phases(work: Path) -> dict[str, tuple[Phase, Callable[[Path], Any] | None]]:
    """Every phase, with what must be equal after a resume."""
    corpus = prepared(work)
    trained = work / "trained"
    need(eff(work, *training(corpus, trained, steps=2)))

    def train(out: Path) -> list[Any]:
        return [*training(corpus, out), "--resume"]

    def evaluate(out: Path) -> list[Any]:
        looks = ("evaluation.tokens=32000", "model.layers=1")
        flags = {"steps": 3, "eval_every": 1, "save_every": 0}
        return [*training(corpus, out, *looks, **flags), "--resume"]

    def prepare(out: Path) -> list[Any]:
        return ["prepare", "grammar-noisy:1", "--max-tokens", "2M", "--quiet", "--out", out]

    def generate(_: Path) -> list[Any]:
        return ["generate", trained, "the ", "--max-new-tokens", 400, "--quiet", *_no_threads()]

    return {
        "training": (Phase(work, "training", "effcli.engine.session:train", train), weights),
        "evaluation": (
            Phase(work, "evaluation", "effcli.engine.session:held_out_loss", evaluate, skip=1),
            weights,
        ),
        "preparation": (
            Phase(work, "preparation", "effcli.engine.data.job:SplitWriter", prepare),
            lambda out: Corpus.open(out).hash,
        ),
        "generation": (Phase(work, "generation", "effcli.methods.generate:write", generate), None),
    }


def _no_threads() -> list[str]:
    return ["--set", "device.threads=1"]


def signals(work: Path, n: int, tally: Tally) -> None:
    """So many signals in each phase: the right exit code, one line, and an equal result."""
    warm(work)
    dice = random.Random(7)
    for name, (phase, result) in _phases(work).items():
        expected = result(work / f"{name}-reference") if result else None
        seen = 0
        while seen < n:
            number = (signal.SIGINT, signal.SIGTERM)[seen % 2]
            delay = dice.uniform(0, 0.95 * phase.seconds)
            end = phase.interrupt(number, delay)
            if end.code == 0 or (end.code < 0 and not end.err):
                tally.count("came too late")
                continue  # the work was done before the signal came
            seen += 1
            tally.count(name)
            tally.see(_wrong(phase, end, number, result, expected))


def _wrong(phase: Phase, end: Outcome, number: int, result: Any, expected: Any) -> str | None:
    if end.code != 128 + number:
        return f"{phase.name}: exit code {end.code} after signal {number}: {end.err[-300:]!r}"
    stopped = [line for line in end.err.splitlines() if line.startswith("stopped: ")]
    if len(stopped) != 1 or "Traceback" in end.err:
        return f"{phase.name}: not one line: {end.err[-300:]!r}"
    if result is None:
        return None
    resumed = phase.resume()
    if resumed.code:
        return f"{phase.name}: cannot be resumed: {resumed.err[-300:]!r}"
    return None if same(result(phase.folder), expected) else f"{phase.name}: another result"
