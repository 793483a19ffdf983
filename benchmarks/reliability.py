"""The campaign that proves that nothing is lost: kills, damage, hostile files, full disks.

    python benchmarks/reliability.py                  # everything, about half an hour
    python benchmarks/reliability.py --only kills,disk --again
    python benchmarks/reliability.py --readme         # rewrite the table in README.md

Finished measurements are kept in --work and not run again. `make reliability` sets up first.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# The package `reliability` is there; here is only this script of the same name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from reliability.campaign import MEASUREMENTS
from reliability.harness import Tally, warm
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
DATA, README = ROOT / "docs" / "data" / "reliability.json", ROOT / "README.md"
BEGIN, END = "<!-- reliability:begin -->", "<!-- reliability:end -->"


def bound(n: int, failures: int) -> float:
    """The failure rate that is excluded with 95 % confidence (Clopper and Pearson 1934)."""
    if failures >= n:
        return 1.0
    return float(stats.beta.ppf(0.95, failures + 1, n - failures))


def measure(name: str, work: Path, progress: Progress) -> dict[str, Any]:
    """Run one measurement in a folder of its own."""
    text, n, run = MEASUREMENTS[name]
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    task = progress.add_task(name, total=n or None)
    tally = Tally(watch=lambda done: progress.update(task, completed=done))
    started = time.perf_counter()
    run(folder, n, tally)
    seconds = time.perf_counter() - started
    progress.update(task, completed=tally.n, total=tally.n)
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "text": text,
        "n": tally.n,
        "failures": tally.failures,
        "bound": bound(tally.n, tally.failures),
        "seconds": round(seconds, 1),
        "facts": tally.facts,
        "examples": tally.examples,
    }


def campaign(names: list[str], work: Path, again: bool) -> None:
    """Measure what is not measured yet, keeping each result as soon as there is one."""
    work.mkdir(parents=True, exist_ok=True)
    os.environ.update(EFF_DATA=str(work / "data"), EFF_CACHE=str(work / "cache"))
    os.environ.update(EFF_RUNS=str(work / "runs"))
    torch.set_num_threads(1)
    columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        for name in names:
            kept = work / f"{name}.json"
            if kept.exists() and not again:
                continue
            warm(work)
            result = measure(name, work, progress)
            kept.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf8")
            for example in result["examples"]:
                console.print(f"{name}: {example}", style="red", markup=False, highlight=False)


def gather(work: Path) -> dict[str, Any]:
    """All results that there are, in order; in part from before, if only some were run."""
    known = json.loads(DATA.read_bytes())["measurements"] if DATA.exists() else {}
    for name in MEASUREMENTS:
        if (work / f"{name}.json").exists():
            known[name] = json.loads((work / f"{name}.json").read_bytes())
    return {
        "schema": 1,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "measurements": {name: known[name] for name in MEASUREMENTS if name in known},
    }


def rows(document: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The table, as text."""
    return [
        (one["text"], f"{one['n']:,}", f"{one['failures']:,}", _bound_text(one))
        for one in document["measurements"].values()
    ]


def _bound_text(one: dict[str, Any]) -> str:
    if "share" in one["facts"]:
        return f"{one['facts']['share']:.2%} of the time"
    return f"{one['bound']:.2%}" if one["n"] >= 3 else "-"


def write_readme(document: dict[str, Any]) -> None:
    """Put the table between its marks in README.md."""
    head = [
        "| what was done, and what must hold | n | failures | 95 % bound |",
        "|---|---|---|---|",
    ]
    lines = [*head, *(f"| {' | '.join(row)} |" for row in rows(document))]
    before, rest = README.read_text("utf8").split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{chr(10).join(lines)}\n{END}{after}", "utf8")


def main() -> int:
    """Measure, keep, show."""
    parser = argparse.ArgumentParser(description="prove that nothing is lost")
    parser.add_argument("--only", default=",".join(MEASUREMENTS), help="names, by commas")
    parser.add_argument("--again", action="store_true", help="measure what was measured, too")
    parser.add_argument("--work", type=Path, default=Path("runs/reliability"))
    parser.add_argument("--readme", action="store_true", help="only rewrite README.md")
    asked = parser.parse_args()
    names = asked.only.split(",")
    if unknown := set(names) - set(MEASUREMENTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; one of {', '.join(MEASUREMENTS)}")
    if asked.readme:
        write_readme(json.loads(DATA.read_bytes()))
        return 0
    campaign(names, asked.work.resolve(), asked.again)
    document = gather(asked.work)
    DATA.parent.mkdir(parents=True, exist_ok=True)
    DATA.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf8")
    table = Table(title="nothing is lost")
    for column in ("what", "n", "failures", "95 % bound"):
        table.add_column(column)
    for row in rows(document):
        table.add_row(*row)
    Console().print(table, markup=False)
    return int(any(one["failures"] for one in document["measurements"].values()))


if __name__ == "__main__":
    sys.exit(main())
