"""Whether `eff` is right and fast on this machine's GPU; a few minutes. `make gpu-check`.

Right: the same losses as on the CPU, a resumed run equal to one in a piece, cached logits
equal to uncached ones, a memory estimate near the truth. Fast: the gpt2 preset beside a
plain script of that shape (bfloat16 autocast, fused attention and AdamW, compiled), in
turns, against the measured peak; memories of phase models by fla's kernels, if they are installed.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from effcli.engine.bench.reference_gpt import ReferenceGPT, optimizer
from effcli.engine.bench.throughput import eff_steps, step_flops, write_shard
from effcli.engine.data.prepare import prepare
from effcli.engine.device import Device
from effcli.engine.measure.peak import peak_flops
from effcli.engine.models import fused
from effcli.engine.models.interference import Told, interfere
from effcli.engine.runs import checkpoint
from effcli.engine.runs.rundir import RunDir
from effcli.engine.runs.trained import build_model
from effcli.methods import baseline
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve
from effcli.settings.prepare import PrepareSettings

Row = tuple[str, bool, str]
VOCABULARY, RECIPES = 50257, ("textbook", "modern")


def resolved(preset: str, assignments: list[str]) -> BaselineSettings:
    """Settings of `eff baseline`, with a budget that nothing here spends."""
    flags = {"preset": preset, "steps": 10**6}
    return resolve(BaselineSettings, flags, assignments, None).settings


def run(corpus: Path, out: Path, device: str, *sets: str, **flags: Any) -> Path:
    """A short run of the tiny preset."""
    base = {"preset": "tiny", "data": str(corpus), "out": out, "eval_every": 0, "save_every": 0}
    common = ["evaluation.samples=0", "evaluation.floors=false", "evaluation.tokens=8192"]
    assignments = [*common, f"device.name={device}", "device.compile=off", *sets]
    baseline.run(resolve(BaselineSettings, {**base, **flags}, assignments, None).settings)
    return out


def losses(folder: Path) -> torch.Tensor:
    """Of every step."""
    rows = RunDir(folder).records()
    return torch.tensor([row["loss"] for row in rows if row["kind"] == "step"])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the newest checkpoint."""
    newest = checkpoint.steps(folder / "checkpoints")[-1]
    return checkpoint.load_model(newest, torch.device("cpu"))


def correctness(folder: Path, device: str) -> Iterator[Row]:
    """What must hold on any processor."""
    corpus = folder / "corpus"
    prepare(PrepareSettings(sources=("grammar:1",), max_tokens=300_000, out=corpus))
    exact = "device.precision=float32"
    for recipe in ("textbook", "modern"):
        flags = {"recipe": recipe, "steps": 20}
        here = losses(run(corpus, folder / f"here-{recipe}", device, exact, **flags))
        there = losses(run(corpus, folder / f"there-{recipe}", "cpu", exact, **flags))
        apart = (here - there).abs().max().item()
        yield f"losses as on the CPU, {recipe}", apart < 0.02, f"largest difference {apart:.1e}"
        low = losses(run(corpus, folder / f"low-{recipe}", device, **flags))
        apart = (low - there).abs().mean().item()
        yield f"bfloat16 learns the same, {recipe}", apart < 0.1, f"mean difference {apart:.1e}"
    yield resuming(corpus, folder, device)
    yield cache(device)


def resuming(corpus: Path, folder: Path, device: str) -> Row:
    """A run in two pieces equals one in one piece."""
    whole = weights(run(corpus, folder / "whole", device, steps=20))

    class Cut(Exception):
        pass

    def watch(record: Any) -> None:
        if record.kind == "saved" and record.step == 10:
            raise Cut

    sets = ["evaluation.samples=0", "evaluation.floors=false", "evaluation.tokens=8192"]
    sets += [f"device.name={device}", "device.compile=off"]
    flags = {"preset": "tiny", "data": str(corpus), "out": folder / "parts", "eval_every": 0}
    flags |= {"steps": 20, "save_every": 10, "resume": True}
    settings = resolve(BaselineSettings, flags, sets, None).settings
    try:
        baseline.run(settings, watch)
    except Cut:
        baseline.run(settings)
    parts = weights(folder / "parts")
    apart = max((whole[name] - parts[name]).abs().max().item() for name in whole)
    return "a resumed run is bit for bit the same", apart == 0, f"largest difference {apart:.1e}"


@torch.no_grad()
def cache(device: str) -> Row:
    """Logits with the cache of keys and values, and without."""
    settings = resolved("tiny", [f"device.name={device}", "device.precision=float32"])
    where = Device(settings.device)
    model = build_model(settings.model, 4096, 0).eval()
    where.adopt(model)
    torch.nn.init.normal_(model.head, std=0.1)
    ids = torch.randint(4096, (2, 64), device=where.torch)
    kept = model.new_cache(2)
    parts = [model.features(ids[:, at : at + 1], kept) for at in range(64)]
    apart = (model.logits(torch.cat(parts, 1)) - model(ids)).abs().max().item()
    return "cached logits are those without", apart < 1e-4, f"largest difference {apart:.1e}"


def plain_steps(preset: str, sequences: int) -> Iterator[None]:
    """A plain script, as fast as a plain script is."""
    shape = resolved(preset, []).model
    model = ReferenceGPT(50304, shape.context, shape.layers, shape.width, shape.heads).cuda()
    adamw, compiled = optimizer(model), torch.compile(model)
    torch.set_float32_matmul_precision("high")
    while True:
        tokens = torch.randint(VOCABULARY, (sequences, shape.context + 1)).pin_memory()
        tokens = tokens.cuda(non_blocking=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = compiled(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        yield


def speed(preset: str, sequences: int, rounds: int, folder: Path) -> Iterator[Row]:
    """Tokens per second and share of the peak, in turns."""
    sets = [f"batch.sequences={sequences}", f"batch.micro={sequences}"]
    recipes = {name: resolved(preset, [f"recipe={name}", *sets]) for name in RECIPES}
    write_shard(folder, VOCABULARY)
    ways = {"plain script": plain_steps(preset, sequences)}
    for name, settings in recipes.items():
        ways[f"eff {name}"] = eff_steps(settings, VOCABULARY, folder)[1]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, steps in ways.items():
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(10 if number else 3):
                next(steps)
            torch.cuda.synchronize()
            if number:
                seconds[name].append((time.perf_counter() - started) / 10)
    settings = resolved(preset, ["device.name=cuda"])
    peak = peak_flops(Device(settings.device), keep=False)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    for name, taken in medians.items():
        recipe = recipes[name.removeprefix("eff ") if name.startswith("eff") else "textbook"]
        share = step_flops(recipe, VOCABULARY) / taken / peak
        rate = sequences * settings.model.context / taken
        is_good = not name.startswith("eff textbook") or (
            share >= 0.4 and taken <= medians["plain script"]
        )
        yield f"{preset}, {name}", is_good, f"{rate:,.0f} tokens/s, {share:.0%} of the peak"


def memories(rounds: int = 20) -> Iterator[Row]:
    """Whether memories of phase models are read by fla's kernels, and how fast, in bfloat16."""
    sizes, device = (8, 12, 1024, 64), torch.device("cuda", 0)  # of gpt2
    title = "memories by fla's kernels"
    why = fused.refusal(device, torch.bfloat16, sizes[-1], sizes[-1])
    if why is not None:
        yield title, why == "", why or "not installed: pip install 'effcli[gpu]'"
        return
    q, k, v = (torch.randn(sizes, device=device, dtype=torch.bfloat16) for _ in range(3))
    parts = [x.requires_grad_() for x in (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v)]
    decays = -torch.rand(*sizes[:2], 1, sizes[2], device=device) / 10
    told = Told(*parts, decays.requires_grad_())
    ways = {"fla": fused.interfere, "plain": interfere, "compiled": torch.compile(interfere)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(5):
                reads, _ = way(told, fused.CHUNK)
                torch.autograd.grad(reads.sum(), [told.q, told.k, told.v, told.decays])
            torch.cuda.synchronize()
            if number:
                seconds[name].append((time.perf_counter() - started) / 5)
    taken = {name: 1e3 * statistics.median(every) for name, every in seconds.items()}
    yield title, True, ", ".join(f"{name} {each:.2f} ms" for name, each in taken.items())


def main() -> None:
    """Check, print, and say by the exit code whether all is well."""
    parser = argparse.ArgumentParser(description="is eff right and fast on this GPU?")
    parser.add_argument("--device", default="cuda", choices=["cuda", "mps", "cpu"])
    parser.add_argument("--sequences", type=int, default=32, help="of 1,024 tokens, at once")
    parser.add_argument("--out", type=Path, help="keep the figures in this file")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: there is no GPU here; everything else works without one")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        os.environ.update(EFF_DATA=f"{name}/data", EFF_RUNS=f"{name}/runs")
        checks = [correctness(Path(name), asked.device)]
        if asked.device == "cuda":
            checks += [memories(), speed("gpt2", asked.sequences, 5, Path(name))]
        for row in (row for check in checks for row in check):
            rows.append(row)
            print("ok  " if row[1] else "FAIL", row[0], row[2], file=sys.stderr, flush=True)
    table = Table(title=Device(resolved("tiny", [f"device.name={asked.device}"]).device).describe())
    for column in ("check", "", ""):
        table.add_column(column)
    for title, is_good, detail in rows:
        table.add_row(title, "ok" if is_good else "missed", detail)
    Console().print(table)
    if asked.out is not None:
        asked.out.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    sys.exit(0 if all(is_good for _, is_good, _ in rows) else 4)


if __name__ == "__main__":
    main()
