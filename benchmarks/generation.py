"""Tokens per second of `eff generate`'s engine, beside two loops written by hand.

    python benchmarks/generation.py --preset small --tokens 512

*uncached* computes the whole text anew for every token; *minimal* is the shortest cached
loop that gives the same greedy text, with nothing around it: no sampling, no stop texts,
no streaming. They take turns; what counts are the ratios of medians.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from effcli.engine.data.tokenizers import byte_tokenizer
from effcli.engine.device import Device
from effcli.engine.models.generate import write
from effcli.engine.models.gpt import GPT
from effcli.engine.runs.trained import settle
from effcli.settings.baseline import BaselineSettings
from effcli.settings.generate import SamplingSettings
from effcli.settings.layers import resolve

END = 64  # tokens, whose past is nearly the whole text


@torch.no_grad()
def uncached(model: GPT, tokens: int) -> Iterator[int]:
    """The whole text through the model for every token."""
    ids = torch.tensor([[256]])
    for _ in range(tokens):
        token = model.logits(model.features(ids)[:, -1]).argmax(-1, keepdim=True)
        ids = torch.cat([ids, token], dim=1)
        yield int(token)


class Minimal:
    """The modern recipe's forward pass for one token, by hand; no shifts, no tables."""

    def __init__(self, model: GPT, tokens: int) -> None:
        s, self.model = model.settings, model
        self.heads, self.dtype = s.heads, model.trunk.dtype
        self.room = torch.empty(2, s.layers, s.heads, tokens + 1, s.width // s.heads).to(self.dtype)
        cosine, sine = model.trunk.rotary(0, tokens + 1, self.dtype)  # for both channels of a pair
        self.cosine, self.sine = cosine.chunk(2, dim=-1)[1], sine.chunk(2, dim=-1)[1]
        self.head = model.head[: model.vocab_size].to(self.dtype)
        self.blocks = [
            tuple(
                part.weight.to(self.dtype)
                for part in (
                    *(b.attention.query, b.attention.key, b.attention.value, b.attention.output),
                    *(b.mlp.up, b.mlp.down),
                )
            )
            for b in model.trunk.blocks
        ]

    def norm(self, x: Tensor) -> Tensor:
        """RMSNorm in float32."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

    def turn(self, x: Tensor, at: int) -> Tensor:
        """Rotary position."""
        a, b = self.norm(x.view(self.heads, -1)).chunk(2, dim=-1)
        c, s = self.cosine[at], self.sine[at]
        return torch.cat((a * c - b * s, a * s + b * c), dim=-1)

    @torch.no_grad()
    def __call__(self, tokens: int) -> Iterator[int]:
        """Greedy text."""
        token = 256
        for at in range(tokens):
            x = self.norm(self.model.trunk.embedding.weight[token]).to(self.dtype)
            for layer, (wq, wk, wv, wo, up, down) in enumerate(self.blocks):
                h = self.norm(x)
                keys, values = self.room[0, layer], self.room[1, layer]
                keys[:, at], values[:, at] = (
                    self.turn(F.linear(h, wk), at),
                    F.linear(h, wv).view(self.heads, -1),
                )
                q = self.turn(F.linear(h, wq), at).unsqueeze(1)
                mixed = F.scaled_dot_product_attention(q, keys[:, : at + 1], values[:, : at + 1])
                x = x + F.linear(mixed.flatten(), wo)
                x = x + F.linear(F.relu(F.linear(self.norm(x), up)).square(), down)
            token = int(F.linear(self.norm(x), self.head).argmax())
            yield token


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description="generation beside hand-written loops")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], help="settings, as of eff baseline")
    parser.add_argument("--out", type=Path, help="keep the figures in this file")
    asked = parser.parse_args()

    sets = [f"model.context={asked.tokens + 1}", "recipe=modern", "device.compile=off"]
    sets += ["model.shift=0", "model.pair_rows=0", "model.value_tables=false", *asked.set]
    settings = resolve(BaselineSettings, {"preset": asked.preset, "steps": 1}, sets, None).settings
    model, device = GPT(settings.model, 257).eval(), Device(settings.device)
    torch.nn.init.normal_(model.head, std=0.1)
    device.adopt(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("output.weight", "down.weight")):
                parameter.normal_(0, 0.02)
        model.head[256] = 0  # the separator, which would end a text: never the most likely
    minimal = Minimal(model, asked.tokens)
    settle(model)
    tokenizer = byte_tokenizer("bytes")
    sampling = SamplingSettings(temperature=0, max_new_tokens=asked.tokens)

    def eff(rows: int) -> Callable[[], Iterator[Any]]:
        several = sampling.model_copy(update={"num_return_sequences": rows, "temperature": 0.8})
        return lambda: write(model, tokenizer, [""], sampling if rows == 1 else several)

    ways: dict[str, tuple[Callable[[], Iterator[Any]], int]] = {
        "uncached": (lambda: uncached(model, asked.tokens), 1),
        "minimal": (lambda: minimal(asked.tokens), 1),
        "eff generate": (eff(1), 1),
        "eff generate, 8 at once": (eff(8), 8),
    }
    whole: dict[str, list[float]] = {name: [] for name in ways}
    end: dict[str, list[float]] = {name: [] for name in ways}
    for _ in track(range(asked.rounds), "writing", console=Console(stderr=True), transient=True):
        for name, (work, _) in ways.items():
            times = [time.perf_counter(), *(time.perf_counter() for _ in work())]
            assert len(times) == asked.tokens + 1
            whole[name].append((times[-1] - times[0]) / asked.tokens)
            end[name].append((times[-1] - times[-1 - END]) / END)

    title = f"{asked.preset}, {asked.tokens} tokens; in brackets the last {END} alone"
    table = Table(title=title)
    for column in ("", "tokens/s", "× uncached", "× minimal"):
        table.add_column(column, justify="right" if column else "left")
    rates = {
        name: [rows / statistics.median(taken[name]) for taken in (whole, end)]
        for name, (_, rows) in ways.items()
    }
    for name in ways:
        ratios = (
            f"{rates[name][0] / rates[base][0]:.2f} ({rates[name][1] / rates[base][1]:.2f})"
            for base in ("uncached", "minimal")
        )
        table.add_row(name, f"{rates[name][0]:,.0f} ({rates[name][1]:,.0f})", *ratios)
    Console().print(table)
    if asked.out is not None:
        asked.out.write_text(json.dumps({"preset": asked.preset, "rates": rates}, indent=1) + "\n")


if __name__ == "__main__":
    main()
