"""What a run spends around its steps: reading, records, checkpoints, and starting.

    python benchmarks/overheads.py --presets nano tiny

Whole runs of `eff baseline` with the calls in question timed; shares are of the time that
training took, a save is counted in steps. `make bench-speed` runs this, too.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from effcli.engine.data.batches import Shuffled
from effcli.engine.data.prepare import prepare
from effcli.engine.protocols import Batch
from effcli.engine.runs import checkpoint
from effcli.engine.runs.logbook import Logbook
from effcli.engine.session import Session
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve
from effcli.settings.prepare import PrepareSettings
from effcli.ui.console import Screen
from effcli.ui.progress import Watcher

STEPS, SAVE_EVERY = 20, 5


@contextmanager
def timed(place: Any, name: str, taken: list[float]) -> Iterator[None]:
    """Note how long every call takes."""
    original: Callable[..., Any] = getattr(place, name)

    def work(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            taken.append(time.perf_counter() - started)

    setattr(place, name, work)
    try:
        yield
    finally:
        setattr(place, name, original)


def measure(preset: str, corpus: Path, out: Path) -> dict[str, float]:
    """One run."""
    flags = {"preset": preset, "recipe": "modern", "data": str(corpus), "out": out}
    flags |= {"steps": STEPS, "save_every": SAVE_EVERY, "eval_every": 0}
    sets = ["device.compile=off", "evaluation.samples=0", "evaluation.floors=false"]
    settings = resolve(BaselineSettings, flags, sets, None).settings
    draws: list[float] = []
    notes: list[float] = []
    saves: list[float] = []
    moves: list[float] = []
    screen = Screen(quiet=True)
    with (
        timed(Shuffled, "draw", draws),
        timed(Batch, "to", moves),
        timed(Logbook, "note", notes),
        timed(checkpoint, "save", saves),
        Watcher(screen, "baseline") as watch,
        Session("baseline", settings, watch, lambda: None) as session,
    ):
        report = session.train()
    train = report.seconds["train"]
    return {
        "input": (sum(draws) + sum(moves)) / train,
        "records": sum(notes[:STEPS]) / train,
        "save_in_steps": statistics.median(saves) / (train / STEPS),
        "first_step_seconds": first_step(preset, corpus, out.with_name(f"{out.name}-first")),
    }


def first_step(preset: str, corpus: Path, out: Path) -> float:
    """Seconds from the command line to the record of the first step."""
    command = [sys.executable, "-m", "effcli", "baseline", "--preset", preset, "--steps", "1"]
    command += ["--data", str(corpus), "--out", str(out), "--eval-every", "0", "--quiet"]
    command += ["--recipe", "modern"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    records = out / "records.jsonl"
    while process.poll() is None and not (records.exists() and records.stat().st_size):
        time.sleep(0.01)
    taken = time.perf_counter() - started
    process.wait()
    return taken


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description="what a run spends around its steps")
    parser.add_argument("--presets", nargs="+", default=["nano", "tiny", "small"])
    parser.add_argument("--out", type=Path, help="keep the figures in this file")
    asked = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus"
        sources = ("python",)
        prepare(PrepareSettings(sources=sources, tokenizer="bytes", out=corpus))
        for preset in asked.presets:
            rows[preset] = measure(preset, corpus, Path(name) / preset)
    table = Table(title="around the steps (modern, not compiled)")
    for column in ("", "input", "records and progress", "a save", "first step after"):
        table.add_column(column, justify="right" if column else "left")
    for preset, row in rows.items():
        table.add_row(
            preset,
            f"{row['input']:.2%}",
            f"{row['records']:.2%}",
            f"{row['save_in_steps']:.2f} steps",
            f"{row['first_step_seconds']:.1f} s",
        )
    Console().print(table)
    if asked.out is not None:
        asked.out.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
