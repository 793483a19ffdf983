"""Both recipes on the same seeds: held-out loss, and their paired difference with an interval.

    python benchmarks/recipes.py --data python-bpe4096 --seeds 5

Runs are kept and finished ones are not run again. `make bench-recipes` sets up first.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import stats

RECIPES = ("textbook", "modern")


def run(preset: str, recipe: str, data: str, seed: int, out: Path) -> dict[str, Any]:
    """The report of one run, trained unless it is there."""
    made = out / "report.json"
    if not made.exists() or json.loads(made.read_text("utf-8"))["status"] != "complete":
        options = ["--preset", preset, "--recipe", recipe, "--data", data, "--seed", str(seed)]
        quiet = ["--out", str(out), "--resume", "--quiet", "--offline"]
        command = [sys.executable, "-m", "effcli", "baseline", *options, *quiet]
        command += ["--set", "evaluation.samples=0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(made.read_text("utf-8"))


def interval(values: np.ndarray) -> str:
    """Mean and 95 % interval (Student's t) of independent values."""
    mean, error = values.mean(), stats.sem(values)
    return f"{mean:.4f} ± {error * stats.t.ppf(0.975, len(values) - 1):.4f}"


def main() -> None:
    """Train the pairs, print the table."""
    parser = argparse.ArgumentParser(description="both recipes on the same seeds")
    parser.add_argument("--data", default="python-bpe4096", help="a prepared corpus")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"))
    asked = parser.parse_args()
    if asked.seeds < 2:
        parser.error("an interval takes at least 2 seeds")

    name = f"{Path(asked.data).name}-{asked.preset}"
    reports: dict[str, list[dict[str, Any]]] = {recipe: [] for recipe in RECIPES}
    pairs = [(seed, recipe) for seed in range(asked.seeds) for recipe in RECIPES]
    for seed, recipe in track(pairs, "training", console=Console(stderr=True)):
        out = asked.runs / f"{name}-{recipe}-{seed}"
        reports[recipe].append(run(asked.preset, recipe, asked.data, seed, out))

    table = Table(title=f"{name}, {asked.seeds} paired seeds, mean and 95 % interval")
    for column in ("", "loss, nats/token", "bits/byte", "train FLOPs"):
        table.add_column(column)
    loss = {r: np.array([x["held_out"]["loss"] for x in reports[r]]) for r in RECIPES}
    bits = {r: np.array([x["held_out"]["bits_per_byte"] for x in reports[r]]) for r in RECIPES}
    for recipe in RECIPES:
        spent = f"{reports[recipe][0]['flops']['train']:.3g}"
        table.add_row(recipe, interval(loss[recipe]), interval(bits[recipe]), spent)
    first, second = RECIPES
    difference = (interval(loss[second] - loss[first]), interval(bits[second] - bits[first]))
    table.add_row(f"{second} - {first}", *difference, "")
    Console().print(table)


if __name__ == "__main__":
    main()
