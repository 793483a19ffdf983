"""A training step of `eff` beside one of a plain float32 script, interleaved in one run.

    python benchmarks/speed.py --shapes small tiny

Every variant lives in a process of its own, and they take turns, so that a noisy machine
is noisy for all of them. What counts are the ratios of medians. `make bench-speed` sets
up first.
"""

import argparse
import json
import multiprocessing as mp
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

SHAPES = {  # preset: (vocabulary, sequences per step)
    "nano": (4096, 32),
    "tiny": (4096, 32),
    "small": (4096, 32),
    "base": (8192, 16),
    "gpt2": (50257, 4),
}
EFF = {
    "textbook": ["recipe=textbook"],
    "modern": ["recipe=modern"],
    "modern, AdamW": ["recipe=modern", "optim.name=adamw", "optim.lr=0.001"],
    "textbook, float32": ["recipe=textbook", "device.precision=float32"],
}
LARGE = {"gpt2"}  # of which there is room for three at one time


def reference_steps(preset: str) -> Iterator[None]:
    """Steps of the plain script, at the shape of a preset."""
    import torch
    from reference_gpt import ReferenceGPT, optimizer

    settings = resolved(preset, [])
    shape, (vocab, sequences) = settings.model, SHAPES[preset]
    model = ReferenceGPT(vocab, shape.context, shape.layers, shape.width, shape.heads)
    adamw = optimizer(model)
    while True:
        tokens = torch.randint(vocab, (sequences, shape.context + 1))
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        yield


def eff_steps(preset: str, assignments: list[str]) -> Iterator[None]:
    """Steps of the engine's own loop, on a memory-mapped shard."""
    from effcli.engine.assemble import assemble
    from effcli.engine.data.corpus import Split
    from effcli.engine.device import Device
    from effcli.engine.loop import train
    from effcli.engine.runs.trained import build_model

    vocab, sequences = SHAPES[preset]
    settings = resolved(preset, [f"batch.sequences={sequences}", *assignments])
    sequences = settings.batch.sequences
    with tempfile.TemporaryDirectory() as folder:
        tokens = np.random.default_rng(0).integers(vocab, size=2_000_000, dtype=np.uint16)
        tokens.tofile(Path(folder) / "shard.bin")
        entry = {"tokens": len(tokens), "documents": 1, "bytes": 1, "shards": ["shard.bin"]}
        split = Split(Path(folder), entry, "uint16", len(tokens))
        device = Device(settings.device)
        model = build_model(settings.model, vocab, 0)
        device.adopt(model)
        parts = assemble(settings, model, split, device)
        if settings.device.compile != "off":
            parts.compile(sequences)
        for _ in train(parts):
            yield


def peak_steps(precision: str) -> Iterator[None]:
    """The matrix product that utilization is measured against."""
    import torch

    dtype = getattr(torch, precision)
    a, b = torch.randn(2048, 768).to(dtype), torch.randn(3072, 768).to(dtype)
    while True:
        for _ in range(20):
            a @ b.T
        yield


def resolved(preset: str, assignments: list[str]) -> Any:
    """Settings of `eff baseline` for a preset, with a budget that no benchmark spends."""
    from effcli.settings.baseline import BaselineSettings
    from effcli.settings.layers import resolve

    flags = {"preset": preset, "steps": 10**6}
    return resolve(BaselineSettings, flags, assignments, None).settings


def work(make: Callable[..., Iterator[None]], arguments: tuple[Any, ...], pipe: Connection) -> None:
    """Answer each number of steps with the seconds that they took."""
    started = time.perf_counter()
    steps = make(*arguments)
    next(steps)
    pipe.send(time.perf_counter() - started)
    for amount in iter(pipe.recv, 0):
        started = time.perf_counter()
        for _ in range(amount):
            next(steps)
        pipe.send((time.perf_counter() - started) / amount)
    import resource

    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


class Worker:
    """A process that takes its turns."""

    def __init__(self, make: Callable[..., Iterator[None]], *arguments: Any) -> None:
        context = mp.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=work, args=(make, arguments, other), daemon=True)
        self._process.start()
        self.first_step: float = self._pipe.recv()
        self.seconds: list[float] = []

    def turn(self, steps: int) -> None:
        """Do some steps, alone on the machine."""
        self._pipe.send(steps)
        self.seconds.append(self._pipe.recv())

    def end(self) -> int:
        """Stop; returns the most memory that the process held."""
        self._pipe.send(0)
        memory: int = self._pipe.recv()
        self._process.join()
        return memory

    @property
    def median(self) -> float:
        """Seconds per step."""
        return statistics.median(self.seconds)


def measure(preset: str, variants: dict[str, list[str]], rounds: int) -> dict[str, Any]:
    """All variants at one shape."""
    workers = {"reference": Worker(reference_steps, preset)}
    workers |= {name: Worker(eff_steps, preset, sets) for name, sets in variants.items()}
    peak = Worker(peak_steps, "bfloat16")
    for worker in workers.values():
        worker.turn(1)  # warm
        worker.seconds.clear()
    steps = {name: max(1, round(2.0 / max(w.first_step, 0.1))) for name, w in workers.items()}
    for _ in track(range(rounds), preset, console=Console(stderr=True), transient=True):
        for name, worker in workers.items():
            worker.turn(steps[name])
        peak.turn(1)
    tokens = SHAPES[preset][1] * resolved(preset, []).model.context
    flops_per_second = 20 * 2 * 2048 * 768 * 3072 / peak.median
    peak.end()
    rows = {}
    for name, worker in workers.items():
        ratios = [r / w for r, w in zip(workers["reference"].seconds, worker.seconds, strict=True)]
        rows[name] = {
            "tokens_per_second": tokens / worker.median,
            "times_reference": statistics.median(ratios),
            "spread": [min(ratios), max(ratios)],
            "utilization": step_flops(preset, variants.get(name))
            / worker.median
            / flops_per_second,
            "first_step_seconds": worker.first_step,
            "memory_bytes": worker.end(),
        }
    return {"preset": preset, "tokens_per_step": tokens, "peak": flops_per_second, "rows": rows}


def step_flops(preset: str, assignments: list[str] | None, sequences: int | None = None) -> float:
    """FLOPs of one step by `eff`'s own count, for the reference those of its shape."""
    import torch

    from effcli.engine.models.gpt import GPT

    vocab, usual = SHAPES[preset]
    settings = resolved(preset, assignments or ["recipe=textbook"])
    with torch.device("meta"):
        model = GPT(settings.model, vocab)
    return 3 * model.forward_flops(sequences or usual, model.context)


def show(result: dict[str, Any]) -> None:
    """One table for each shape."""
    title = f"{result['preset']}: {result['tokens_per_step']:,} tokens per step; a bfloat16 "
    table = Table(title=title + f"product reaches {result['peak'] / 1e12:.2f} TFLOP/s")
    for column in ("", "tokens/s", "× reference", "of the peak", "first step", "memory"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in result["rows"].items():
        low, high = row["spread"]
        table.add_row(
            name,
            f"{row['tokens_per_second']:,.0f}",
            f"{row['times_reference']:.2f} ({low:.2f}–{high:.2f})",
            f"{row['utilization']:.0%}",
            f"{row['first_step_seconds']:.0f} s",
            f"{row['memory_bytes'] / 2**30:.1f} GB",
        )
    Console().print(table)


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description="steps of eff beside a plain script's")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--also", nargs="*", default=[], help="more variants, as NAME:SET,SET")
    parser.add_argument("--only", nargs="*", default=list(EFF), choices=list(EFF))
    parser.add_argument("--out", type=Path, help="keep the figures in this file")
    asked = parser.parse_args()
    variants = {name: sets for name, sets in EFF.items() if name in asked.only}
    for text in asked.also:
        name, _, sets = text.partition(":")
        variants[name] = sets.split(",")
    kept = json.loads(asked.out.read_text("utf-8")) if asked.out and asked.out.exists() else {}
    for preset in asked.shapes:
        few = {name: sets for name, sets in variants.items() if name in ("textbook", "modern")}
        kept[preset] = measure(preset, few if preset in LARGE else variants, asked.rounds)
        show(kept[preset])
        if asked.out is not None:
            asked.out.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
