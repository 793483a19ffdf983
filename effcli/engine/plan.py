"""What a run will cost, before anything is spent."""

import os
import shutil
from dataclasses import dataclass

from effcli.engine.device import LONGEST_BY_PRODUCTS, Device
from effcli.engine.loop import Parts
from effcli.engine.measure.meter import Budget
from effcli.engine.objectives.cross_entropy import CHUNK_LOGITS
from effcli.engine.runs.trained import training_bytes
from effcli.settings.model import GPTSettings
from effcli.settings.train import TrainSettings

MICRO_TOKENS = 8192  # measured: fewer at once are slower, more are not faster
GPU_GIGABYTES = 10  # for as many tokens at the size of gpt2; an estimate, batch.micro overrides it
ASSUMED_MFU = 0.3
COMPILING_EARNS_AFTER = (
    300.0  # seconds of training; it takes tens of them and saves about a quarter
)


PROCESS = 350 * 2**20  # bytes of an interpreter with torch in it


@dataclass(frozen=True)
class Forecast:
    """Sizes are exact; seconds and memory are estimates."""

    parameters: int
    steps: int
    tokens: int
    flops: float
    epochs: float
    seconds: float
    memory_bytes: int
    micro: int

    @property
    def earns_compiling(self) -> bool:
        """Whether the run is long enough, and the machine able."""
        return compiler() is not None and self.seconds > COMPILING_EARNS_AFTER


def compiler() -> str | None:
    """The C++ compiler that torch.compile would find."""
    named = os.environ.get("CXX")  # which torch tries first
    names = ([named] if named else []) + ["g++", "c++", "clang++", "cl"]
    return next((path for name in names if (path := shutil.which(name))), None)


def micro_batch(settings: TrainSettings, context: int, device: Device) -> int:
    """Sequences per forward pass: the most that divide a step evenly and fit at once."""
    sequences = settings.batch.sequences
    if settings.batch.micro is not None:
        return settings.batch.micro
    at_once = MICRO_TOKENS
    if gigabytes := device.gpu_bytes() / 1e9:  # the whole card's, so that it is always the same
        at_once = int(MICRO_TOKENS * max(1.0, min(gigabytes / GPU_GIGABYTES, 8.0)))
    most = max(1, min(sequences, at_once // context))
    return next(size for size in range(most, 0, -1) if sequences % size == 0)


def forecast(settings: TrainSettings, parts: Parts, corpus_tokens: int, peak: float) -> Forecast:
    """Spend the budget on paper."""
    sequences = settings.batch.sequences
    flops, tokens = parts.step_flops(sequences), sequences * parts.model.context
    seconds = flops / (peak * ASSUMED_MFU)
    each = {"steps": 1, "tokens": tokens, "flops": flops, "seconds": seconds}
    steps = min(-int(-limit // each[name]) for name, limit in Budget(settings).limits.items())
    return Forecast(
        parameters=parts.model.parameter_count(),
        steps=steps,
        tokens=steps * tokens,
        flops=steps * flops,
        epochs=steps * tokens / corpus_tokens,
        seconds=steps * seconds,
        memory_bytes=_memory(settings, parts),
        micro=parts.micro,
    )


def _memory(settings: TrainSettings, parts: Parts) -> int:
    """Weights, gradients and moments in float32, and the activations of one forward pass."""
    model, device, shape = parts.model, parts.device, settings.model
    item = device.dtype.itemsize
    held = training_bytes(model) + model.parameter_count() * item + PROCESS
    tokens = parts.micro * model.context
    logits = max(CHUNK_LOGITS, 256 * len(model.head)) * 12
    if not isinstance(shape, GPTSettings):
        return held + logits
    per_layer = 34 * shape.width * item
    if device.kind == "cpu" and shape.context <= LONGEST_BY_PRODUCTS:  # which keep their weights
        per_layer += 3 * shape.heads * shape.context * item
    layers = 1 if settings.device.recompute else shape.layers
    return held + logits + tokens * (per_layer * layers + 12 * shape.width)
