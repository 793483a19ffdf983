"""Two processes that are started together on one run: one works, the other says why not."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from reliability.harness import Outcome, Tally, command, finished, fork, prepared, training, warm


def _pair(work: Path, line: list[object]) -> list[Outcome]:
    """Start two children at the same moment; how they ended."""
    reading, writing = os.pipe()

    def waiting() -> Callable[[], int]:
        start = command(*line)

        def run() -> int:
            os.close(writing)
            os.read(reading, 1)  # returns when the parent lets go of the other end
            return start()

        return run

    places = [work / "first", work / "second"]
    for place in places:
        place.mkdir(exist_ok=True)
    children = [fork(waiting(), place) for place in places]
    os.close(reading)
    os.close(writing)
    return [finished(child, place) for child, place in zip(children, places, strict=True)]


def two_processes(work: Path, n: int, tally: Tally) -> None:
    """Exactly one of two processes trains, and the other leaves with 3 and one line."""
    warm(work)
    corpus = prepared(work)
    for number in range(n):
        run = work / f"run-{number}"
        line = [*training(corpus, run, steps=12, eval_every=0), "--resume"]
        ends = sorted(_pair(work, line), key=lambda end: end.code)
        codes = [end.code for end in ends]
        if codes == [0, 3]:
            reason = ends[0].complaint(0) or ends[1].complaint(3)
            if not reason and "is in use by" not in ends[1].err:
                reason = ends[1].err
        else:
            reason = f"exit codes {codes}: {ends[1].err[-300:]!r}"
        tally.see(reason)
        shutil.rmtree(run)
