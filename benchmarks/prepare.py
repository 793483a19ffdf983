"""How near `eff prepare` comes to the disk, and to the tokenizer alone.

    python benchmarks/prepare.py --text corpus.jsonl

*copy* writes the text's file again and syncs it. *tiktoken* encodes the same documents,
already in memory, on all cores, and writes nothing. They and the preparations take turns;
what counts are the ratios of medians. Without --text: the standard library's sources,
several times over. `make bench-prepare` sets up first.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiktoken
from rich.console import Console
from rich.progress import track
from rich.table import Table

from effcli.engine.data import bpe, job
from effcli.engine.data.prepare import prepare
from effcli.engine.data.stdlib import StandardLibrary
from effcli.engine.data.tokenizers import PATTERNS, Tokenizer
from effcli.settings.prepare import PrepareSettings

COPIES = 4  # of the standard library: about 50 MB
SAMPLE = 4_000_000  # bytes that the tokenizer is trained on


def standard_library(path: Path) -> None:
    """The embedded corpus as JSON lines; each copy of a document is a document of its own."""
    with path.open("w", encoding="utf8") as stream:
        for number in range(COPIES):
            for row in StandardLibrary("").rows("train"):
                stream.write(json.dumps({"text": f"# {number}\n{row.text}"}) + "\n")


def copy(source: Path, folder: Path) -> None:
    """What any program has to do."""
    with source.open("rb") as reading, (folder / "copy").open("wb") as writing:
        shutil.copyfileobj(reading, writing, 2**20)
        writing.flush()
        os.fsync(writing.fileno())


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description="preparation beside the disk and the tokenizer")
    parser.add_argument("--text", type=Path, help="a file of JSON lines")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="keep the figures in this file")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = measure(Path(name), asked.text, asked.rounds)
    show(figures)
    if asked.out is not None:
        asked.out.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def measure(folder: Path, text: Path | None, rounds: int) -> dict[str, Any]:
    """Medians of seconds for every way, and what they had to do."""
    os.environ["EFF_DATA"] = str(folder / "data")
    source = text or folder / "library.jsonl"
    if text is None:
        standard_library(source)
    with source.open(encoding="utf8") as stream:
        documents = [json.loads(line)["text"] for line in stream]
    sample, size = [], 0
    for document in documents:
        sample.append(document)
        if (size := size + len(document)) > SAMPLE:
            break
    ready = bpe.train(iter(sample), 4096)
    alone = tiktoken.Encoding(
        "alone", pat_str=PATTERNS[ready.pattern], mergeable_ranks=ready.ranks, special_tokens={}
    )

    def eff(tokenizer: str) -> None:
        out = folder / "corpus"
        prepare(PrepareSettings(sources=(str(source),), tokenizer=tokenizer, out=out))
        shutil.rmtree(out)

    original = job.Job._tokenizer

    def trained(self: job.Job) -> Tokenizer:
        """The tokenizer is ready: what is timed is encoding."""
        if not self._plan.tokenizer.startswith("bpe"):
            return original(self)
        ready.save(self._work / "tokenizer.json")
        return ready

    job.Job._tokenizer = trained  # type: ignore[method-assign]
    ways: dict[str, Callable[[], Any]] = {
        "copy": lambda: copy(source, folder),
        "eff prepare --tokenizer bytes": lambda: eff("bytes"),
        "tiktoken": lambda: alone.encode_ordinary_batch(documents, num_threads=os.cpu_count() or 1),
        "eff prepare --tokenizer bpe:4096": lambda: eff("bpe:4096"),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in track(range(rounds), "preparing", console=Console(stderr=True), transient=True):
        for way, work in ways.items():
            started = time.perf_counter()
            work()
            seconds[way].append(time.perf_counter() - started)
    return {
        "bytes": source.stat().st_size,
        "documents": len(documents),
        "seconds": {way: statistics.median(taken) for way, taken in seconds.items()},
    }


def show(figures: dict[str, Any]) -> None:
    """Rates and their ratios."""
    size, seconds = figures["bytes"], figures["seconds"]
    table = Table(title=f"{size / 1e6:,.0f} MB of JSON lines, {figures['documents']:,} documents")
    for column in ("", "MB/s", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    base = ""
    for way, taken in seconds.items():
        is_base = not way.startswith("eff")
        base = way if is_base else base
        ratio = "1" if is_base else f"{seconds[base] / taken:.2f} × {base}"
        table.add_row(way, f"{size / 1e6 / taken:,.0f}", ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
