"""How near `eff prepare` comes to the disk, and to the tokenizer alone.

*copy* writes the text's file again and syncs it. *tiktoken* encodes the same documents,
already in memory, on all cores, and writes nothing. They and the preparations take turns.
"""

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tiktoken

from effcli.engine.data import bpe
from effcli.engine.data.job import Job
from effcli.engine.data.sources import open_sources, plan
from effcli.engine.data.stdlib import StandardLibrary
from effcli.engine.data.tokenizers import PATTERNS, Tokenizer
from effcli.engine.records import Stop, Turn, Watch, never, unwatched
from effcli.errors import Stopped
from effcli.settings.prepare import PrepareSettings
from effcli.settings.speed import Text

SAMPLE = 4_000_000  # bytes that the tokenizer is trained on
VOCABULARY = 4096
HELD_OUT = 0.2  # so that a small text has some, too


class _Ready(Job):
    """A preparation whose tokenizer is ready: what is timed is encoding."""

    tokenizer: Tokenizer

    def _tokenizer(self) -> Tokenizer:
        self.tokenizer.save(self._work / "tokenizer.json")
        return self.tokenizer


def measure(
    text: Text, folder: Path, watch: Watch = unwatched, stop: Stop = never
) -> dict[str, Any]:
    """Medians of seconds for every way, and what they had to do."""
    source = folder / "library.jsonl"
    documents = _write(source, text.bytes)
    ready = bpe.train(_sample(documents), VOCABULARY)
    pattern = PATTERNS[ready.pattern]
    alone = tiktoken.Encoding(
        "alone", pat_str=pattern, mergeable_ranks=ready.ranks, special_tokens={}
    )
    cores = os.cpu_count() or 1

    def eff(tokenizer: str) -> None:
        sources, share = (str(source),), HELD_OUT
        settings = PrepareSettings(sources=sources, tokenizer=tokenizer, held_out_share=share)
        chosen = plan(settings)
        opened = open_sources(chosen, settings, ())
        kind = Job if tokenizer == "bytes" else _Ready
        job = kind(settings, chosen, {}, opened, watch, stop)
        if isinstance(job, _Ready):
            job.tokenizer = ready
        shutil.rmtree(job.run(folder / "corpus"))

    ways: dict[str, Callable[[], Any]] = {
        "copy": lambda: _copy(source, folder / "copy"),
        "eff prepare --tokenizer bytes": lambda: eff("bytes"),
        "tiktoken": lambda: alone.encode_ordinary_batch(documents, num_threads=cores),
        f"eff prepare --tokenizer bpe:{VOCABULARY}": lambda: eff(f"bpe:{VOCABULARY}"),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(text.rounds):
        for way, work in ways.items():
            if (signal_number := stop()) is not None:
                raise Stopped(signal_number, "between two turns")
            watch(Turn(way, number / text.rounds))
            started = time.perf_counter()
            work()
            seconds[way].append(time.perf_counter() - started)
    return {
        "bytes": source.stat().st_size,
        "documents": len(documents),
        "seconds": {way: statistics.median(taken) for way, taken in seconds.items()},
    }


def _write(path: Path, size: int) -> list[str]:
    """The embedded corpus as JSON lines, again and again; no document is another's copy."""
    documents: list[str] = []
    with path.open("w", encoding="utf8") as stream:
        while True:
            copy = len(documents)
            for row in StandardLibrary().rows("train"):
                text = (
                    row.text.decode("utf8", "replace") if isinstance(row.text, bytes) else row.text
                )
                documents.append(f"# {copy}\n{text}")
                line = json.dumps({"text": documents[-1]}) + "\n"
                stream.write(line)
                if (size := size - len(line)) <= 0:
                    return documents


def _sample(documents: list[str]) -> Iterator[str]:
    left = SAMPLE
    for document in documents:
        if left <= 0:
            return
        left -= len(document)
        yield document


def _copy(source: Path, target: Path) -> None:
    """What any program has to do."""
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, 2**20)
        writing.flush()
        os.fsync(writing.fileno())
