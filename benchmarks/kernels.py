"""Products of low-bit layers and generation with them, beside float32 in the same run.

    python benchmarks/kernels.py --rounds 15

*torch* is what every machine has; *kernels*, *ternary* and *int8* are what its compiler makes of
kernels.c. All ways take turns of a few calls; what counts are ratios of medians. *Reading* is
what the bytes of the weights alone would take at the bandwidth of adding up a large array in the
same rounds: below 1, they come from caches.
"""

import argparse
import copy
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from effcli.engine.device import Device
from effcli.engine.models.gpt import GPT, Attention
from effcli.engine.models.layers import Linear
from effcli.engine.quant.kernels import tier
from effcli.engine.quant.products import LowBit
from effcli.engine.runs.trained import settle
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve

Work = Callable[[], object]
SHAPES = ((768, 3072), (2048, 2048), (4096, 4096))  # columns, rows
VOCABULARY, TOKENS, CALLS = 4096, 32, 5
STREAM = 2**28  # bytes: more than caches hold
BARS = {"4096 × 4096, 1 token": 8.0, "kernels": 4.0, "torch": 1.5}


def layer(rows: int, columns: int, high: int, way: str) -> LowBit:
    """Random codes up to `high`, scaled to the usual size of weights."""
    codes = torch.randint(-high, high + 1, (rows, columns)).to(torch.int8)
    scale = 1 / (codes.float().std().item() * math.sqrt(columns))
    with patch.dict(os.environ, EFF_KERNELS=way):
        return LowBit(codes, torch.full((rows, 1), scale))


def products(rows: int, columns: int, tokens: int) -> dict[str, tuple[Work, float]]:
    """The ways to one product, and the bytes of weights that each of them reads."""
    x, weight = torch.randn(tokens, columns), torch.randn(rows, columns)
    short, shorter = x.bfloat16(), weight.bfloat16()
    size = rows * columns
    ways: dict[str, tuple[Work, float]] = {
        "float32": (lambda: F.linear(x, weight), 4 * size),
        "bfloat16": (lambda: F.linear(short, shorter), 2 * size),
    }
    for way, names in (("torch", ("torch",)), ("auto", ("ternary", "int8"))):
        for name in names:
            made = layer(rows, columns, 127 if name == "int8" else 1, way)
            bits = 2 if name == "ternary" else 8
            ways[name] = (partial(made, x), size * bits / 8)
    return ways


def lowered(model: GPT, way: str) -> GPT:
    """A copy whose linear layers are ternary, and whose head has 8 bits; all codes are random."""
    model = copy.deepcopy(model)
    for module in list(model.trunk.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear):
                setattr(module, name, layer(*child.weight.shape, 1, way))
        if isinstance(module, Attention):
            width = module.heads * module.channels
            module.joined = layer(3 * width, width, 1, way)
    head = model.head[: model.vocab_size]
    model.settled_head = layer(*head.shape, 127, way).float32
    return model


def models(preset: str) -> dict[str, GPT]:
    """The preset's model with random weights, as it is used, and as low-bit products make it."""
    sets = ["recipe=modern", "device.compile=off", "device.precision=float32"]
    settings = resolve(BaselineSettings, {"preset": preset, "steps": 1}, sets, None).settings
    model, threads = GPT(settings.model, VOCABULARY).eval(), torch.get_num_threads()
    Device(settings.device).adopt(model)
    torch.set_num_threads(threads)
    for parameter in model.trunk.blocks.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    settle(model)
    return {"float32": model, "torch": lowered(model, "torch"), "kernels": lowered(model, "auto")}


@torch.inference_mode()
def write(model: GPT) -> None:
    """A few tokens, one at a time, greedily."""
    cache, token = model.new_cache(1), torch.tensor([[1]])
    for _ in range(TOKENS):
        token = model.logits(model.features(token, cache)[:, -1]).argmax(-1, keepdim=True)


def taken(work: Work) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def rounds(ways: dict[str, Work], count: int, calls: int = 1) -> dict[str, float]:
    """Median seconds of each way; they take turns, after one turn that does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(count + 1):
        for name, work in ways.items():
            seconds = [taken(work) for _ in range(calls)]
            times[name] += seconds if number else []
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description="low-bit products beside float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="default: as many as torch takes")
    parser.add_argument("--preset", default="base")
    parser.add_argument("--out", type=Path, help="keep the figures in this file")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    figures: dict[str, dict[str, float]] = {}
    stream = torch.ones(STREAM // 8, dtype=torch.int64)
    console, threads = Console(), torch.get_num_threads()
    table = Table(title=f"products, threads: {threads}")
    for column in ("columns × rows", "way", "µs", "× float32", "× reading"):
        table.add_column(column, justify="right" if column[0] in "µ×" else "left")
    for tokens in (1, 256):
        for columns, rows in SHAPES:
            ways = products(rows, columns, tokens)
            work = {name: way for name, (way, _) in ways.items()} | {"stream": stream.sum}
            name = f"{columns} × {rows}, {tokens} token{'s' * (tokens > 1)}"
            found = rounds(work, asked.rounds, CALLS)
            figures[name] = found
            for way, (_, size) in ways.items():
                reading = found["stream"] * size / STREAM
                ratios = found["float32"] / found[way], found[way] / reading
                cells = f"{found[way] * 1e6:,.0f}", *(f"{ratio:.2f}" for ratio in ratios)
                table.add_row(name if way == "float32" else "", way, *cells)
            table.add_section()
    console.print(table)
    console.print(f"{tier()}; read at {STREAM / found['stream'] / 1e9:.1f} GB/s at the end")

    made = models(asked.preset)
    found = rounds({name: partial(write, model) for name, model in made.items()}, asked.rounds)
    figures[asked.preset] = {name: TOKENS / seconds for name, seconds in found.items()}
    table = Table(title=f"{asked.preset}, one text: tokens per second")
    for column in made:
        table.add_column(column, justify="right")
    table.add_row(
        *(f"{TOKENS / found[name]:,.0f} ({found['float32'] / found[name]:.2f})" for name in made)
    )
    console.print(table)
    product = figures["4096 × 4096, 1 token"]
    reached = {"4096 × 4096, 1 token": product["float32"] / product["ternary"]}
    reached |= {name: found["float32"] / found[name] for name in ("kernels", "torch")}
    for name, bar in BARS.items():
        verdict = "reached" if reached[name] >= bar else "missed"
        console.print(f"{name}: {reached[name]:.2f} × float32, of {bar} wanted: {verdict}")
    if asked.out is not None:
        asked.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
