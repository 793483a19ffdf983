"""Training steps of `eff` beside those of a plain float32 script, in turns in one run."""

import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from effcli.engine.assemble import assemble
from effcli.engine.bench.reference_gpt import ReferenceGPT, optimizer
from effcli.engine.bench.workers import Worker
from effcli.engine.data.corpus import Split
from effcli.engine.device import Device
from effcli.engine.loop import train
from effcli.engine.measure.peak import large_product
from effcli.engine.plan import compiler
from effcli.engine.records import Stop, Turn, Watch, never, unwatched
from effcli.engine.runs.trained import build_model
from effcli.settings.baseline import BaselineSettings
from effcli.settings.speed import REFERENCE
from effcli.settings.train import DeviceSettings

SHARD, SHARD_TOKENS = "shard.bin", 2_000_000


@dataclass(frozen=True)
class Race:
    """What takes turns at one shape."""

    name: str
    vocabulary: int
    reference: BaselineSettings
    """The shape of the plain script."""
    arms: Mapping[str, BaselineSettings]
    rounds: int
    seconds: float
    """Of a turn."""


def reference_steps(settings: BaselineSettings, vocabulary: int) -> tuple[Device, Iterator[None]]:
    """Steps of the plain script, at the shape of these settings."""
    ways = {"allocator": "system", "precision": "float32"}
    device = Device(settings.device.model_copy(update=ways))
    return device, _reference_steps(settings, vocabulary, device.torch)


def _reference_steps(
    settings: BaselineSettings, vocabulary: int, place: torch.device
) -> Iterator[None]:
    shape, sequences = settings.model, settings.batch.sequences
    model = ReferenceGPT(vocabulary, shape.context, shape.layers, shape.width, shape.heads)
    model.to(place)
    adamw = optimizer(model)
    while True:
        tokens = torch.randint(vocabulary, (sequences, shape.context + 1)).to(place)
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        yield


def write_shard(folder: Path, vocabulary: int) -> None:
    """Random tokens, for all arms."""
    dtype = np.uint16 if vocabulary <= 2**16 else np.uint32
    tokens = np.random.default_rng(0).integers(vocabulary, size=SHARD_TOKENS, dtype=dtype)
    tokens.tofile(folder / SHARD)


def eff_steps(
    settings: BaselineSettings, vocabulary: int, folder: Path
) -> tuple[Device, Iterator[None]]:
    """Steps of the engine's own loop, on a memory-mapped shard."""
    device = Device(settings.device)
    return device, _eff_steps(settings, vocabulary, folder, device)


def _eff_steps(
    settings: BaselineSettings, vocabulary: int, folder: Path, device: Device
) -> Iterator[None]:
    entry = {"tokens": SHARD_TOKENS, "documents": 1, "bytes": 1, "shards": [SHARD]}
    split = Split(folder, entry, "uint16" if vocabulary <= 2**16 else "uint32", SHARD_TOKENS)
    model = build_model(settings.model, vocabulary, 0)
    device.adopt(model)
    parts = assemble(settings, model, split, device)
    if is_compiled(settings.device):
        parts.compile(settings.batch.sequences)
    for _ in train(parts):
        yield


def is_compiled(settings: DeviceSettings) -> bool:
    """Whether an arm is compiled: always, unless it says otherwise or there is no compiler."""
    return settings.compile == "on" or (settings.compile == "auto" and compiler() is not None)


def peak_steps(settings: DeviceSettings) -> tuple[Device, Iterator[None]]:
    """The matrix product that every speed is a share of."""
    device = Device(settings)
    return device, _peak_steps(device)


def _peak_steps(device: Device) -> Iterator[None]:
    a, b, _ = large_product(device)
    while True:
        a @ b
        yield


def step_flops(settings: BaselineSettings, vocabulary: int) -> float:
    """FLOPs of the model's products in one step; an optimizer's own are not among them."""
    with torch.device("meta"):
        model = build_model(settings.model, vocabulary, 0)
    return 3 * model.forward_flops(settings.batch.sequences, model.context)


def step_tokens(settings: BaselineSettings) -> int:
    """Tokens of one step."""
    return int(settings.batch.sequences * settings.model.context)


def measure(
    race: Race, folder: Path, watch: Watch = unwatched, stop: Stop = never
) -> dict[str, Any]:
    """The speed of all arms at one shape. What counts are ratios of turns of the same round."""
    write_shard(folder, race.vocabulary)
    settings = {REFERENCE: race.reference, **race.arms}
    with ExitStack() as stack:

        def start(*what: Any) -> Worker:
            worker = Worker(stop, *what)
            stack.callback(worker.kill)
            return worker

        workers = {REFERENCE: start(reference_steps, race.reference, race.vocabulary)}
        for name, arm in race.arms.items():
            workers[name] = start(eff_steps, arm, race.vocabulary, folder)
        peak = start(peak_steps, race.reference.device)
        for worker in (*workers.values(), peak):
            worker.warm(race.seconds)
        for number in range(race.rounds):
            for name, worker in workers.items():
                watch(Turn(name, number / race.rounds))
                worker.turn()
            peak.turn()
        device = Device(race.reference.device)
        product = large_product(device)[2]
        limit = product / peak.median
        rows = {
            name: _row(worker, workers[REFERENCE], settings[name], race, limit)
            for name, worker in workers.items()
        }
    return {
        "preset": race.reference.preset,
        "tokens_per_step": step_tokens(race.reference),
        "precision": str(device.dtype).removeprefix("torch."),
        "peak": limit,
        "rows": rows,
    }


def _row(
    worker: Worker, reference: Worker, settings: BaselineSettings, race: Race, peak: float
) -> dict[str, Any]:
    larger = step_tokens(settings) / step_tokens(race.reference)
    pairs = zip(reference.seconds, worker.seconds, strict=True)
    ratios = [larger * plain / own for plain, own in pairs]
    return {
        "tokens_per_second": step_tokens(settings) / worker.median,
        "times_reference": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "utilization": step_flops(settings, race.vocabulary) / worker.median / peak,
        "first_step_seconds": worker.first_step,
        "memory_bytes": worker.memory_bytes(),
    }
