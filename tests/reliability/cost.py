"""What safety costs: hashing, flushing and looking for numbers that are not finite."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from reliability.harness import Tally, command

MOST = 0.02
SAFETY = ("hashing", "flushing", "finite checks")
HASHED = (
    "effcli.engine.runs.checkpoint.describe_file",
    "effcli.engine.runs.rundir.describe_file",
    "effcli.engine.data.corpus.describe_file",
)


class _Clock:
    """Adds up the time inside functions, each second once however they are nested."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._is_inside = False

    def timed(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, and its time under this name."""

        def call(*arguments: Any, **named: Any) -> Any:
            if self._is_inside:
                return real(*arguments, **named)
            self._is_inside = True
            started = time.perf_counter()
            try:
                return real(*arguments, **named)
            finally:
                self._is_inside = False
                spent = time.perf_counter() - started
                self.seconds[name] = self.seconds.get(name, 0.0) + spent

        return call


class _Math:
    """The module `math` of the loop, whose question for finite numbers is timed."""

    def __init__(self, clock: _Clock) -> None:
        self.isfinite = clock.timed("finite checks", math.isfinite)

    def __getattr__(self, name: str) -> Any:
        return getattr(math, name)


@contextmanager
def _timed(clock: _Clock) -> Iterator[None]:
    from effcli.registry import resolve_place

    places = [*((place, "hashing") for place in HASHED), ("os.fsync", "flushing")]
    with ExitStack() as stack:
        for place, name in places:
            module, _, function = place.rpartition(".")
            real = resolve_place(f"{module}:{function}")
            stack.enter_context(patch(place, clock.timed(name, real)))
        stack.enter_context(patch("effcli.engine.loop.math", _Math(clock)))
        save = resolve_place("effcli.engine.runs.checkpoint:save")
        saving = _Clock()
        stack.enter_context(patch("effcli.engine.runs.checkpoint.save", saving.timed("s", save)))
        yield
    clock.seconds["whole saves, writing included"] = saving.seconds.get("s", 0.0)


def _train(corpus: Path, run: Path, told: Path) -> int:
    clock = _Clock()
    with _timed(clock):
        line = ["baseline", "--preset", "nano", "--data", corpus, "--out", run]
        code = command(*line, "--quiet", "--offline")()
    told.write_text(json.dumps(clock.seconds), "utf8")
    return code


def safety_cost(work: Path, n: int, tally: Tally) -> None:
    """Train the preset nano as it is, `n` times; safety may take 2 % of the time of training."""
    corpus = work / "corpus"
    sources = ["python", "--offline", "--quiet"]
    _fresh(["-m", "effcli", "prepare", *sources, "--out", corpus])
    for number in range(n):
        run, told = work / f"run-{number}", work / "told.json"
        _fresh(["-m", "reliability.cost", corpus, run, told])
        seconds = json.loads(told.read_text("utf8"))
        report = json.loads((run / "report.json").read_text("utf8"))
        share = sum(seconds.get(part, 0.0) for part in SAFETY) / report["seconds"]["train"]
        seconds["training"] = report["seconds"]["train"]
        tally.facts["seconds"] = {name: round(value, 4) for name, value in seconds.items()}
        tally.facts["share"] = max(share, tally.facts.get("share", 0.0))
        tally.see(f"{share:.2%} of the training time" if share > MOST else None)


def _fresh(arguments: list[Any]) -> None:
    """Run Python anew, with all cores: threads do not survive a fork."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    here = Path(__file__).resolve()
    paths = [str(here.parents[1]), str(here.parents[2])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    line = [sys.executable, *map(str, arguments)]
    subprocess.run(line, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=900)


if __name__ == "__main__":
    sys.exit(_train(*map(Path, sys.argv[1:4])))
