"""Models, new and trained."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from effcli.catalog import MODELS
from effcli.engine.data.tokenizers import Tokenizer, describe
from effcli.engine.device import Device
from effcli.engine.measure.causality import require_causal
from effcli.engine.models.algebra import ComplexLinear
from effcli.engine.models.layers import Linear
from effcli.engine.protocols import LanguageModel
from effcli.engine.quant.bitlinear import set_blend
from effcli.engine.quant.student import lacks_gains
from effcli.engine.runs import checkpoint
from effcli.engine.runs.files import read_json
from effcli.engine.runs.rundir import CHECKPOINTS, CONFIG, REPORT, TOKENIZER, RunDir, root
from effcli.errors import InputError, OutOfMemory
from effcli.registry import resolve_place
from effcli.settings.base import PartSettings
from effcli.settings.layers import read_toml
from effcli.units import size


def build_model(settings: PartSettings, vocab_size: int, seed: int) -> LanguageModel:
    """A model with its initial weights."""
    model: LanguageModel = resolve_place(settings.place)(settings, vocab_size, seed)
    return model


def new_model(settings: PartSettings, vocab_size: int, seed: int, device: Device) -> LanguageModel:
    """A model to train, if it fits here and does not look ahead."""
    require_memory(settings, vocab_size, device)
    require_causal(build_model(settings, vocab_size, seed))
    return build_model(settings, vocab_size, seed)


@torch.no_grad()
def settle(model: LanguageModel) -> None:
    """Cast weights once to the type that they are used in: only for a model that is not trained."""
    for module in model.modules():
        if isinstance(module, Linear | ComplexLinear):
            module.settle(model.dtype)
    model.settled_head = model.head[: model.vocab_size].to(model.dtype)


def training_bytes(model: LanguageModel) -> int:
    """Weights in float32, their gradients and two moments; a table has one moment for each row."""
    tables = [p for name, p in model.named_parameters() if model.role(name, p) == "table"]
    looked_up = sum(table.numel() for table in tables)
    rows = sum(len(table) for table in tables)
    return 16 * (model.parameter_count() - looked_up) + 4 * (looked_up + rows)


def require_memory(
    settings: PartSettings, vocab_size: int, device: Device, what: str = "training"
) -> None:
    """Refuse a model whose weights alone, and in training gradients and moments, do not fit."""
    with torch.device("meta"):
        model = build_model(settings, vocab_size, 0)
    needed = training_bytes(model) if what == "training" else 4 * model.parameter_count()
    there = device.available_bytes()
    if there is not None and needed > there:
        sizes = f"at least {size(needed)}, and {size(there)} are available"
        hint = "use a smaller preset, model.width or model.layers"
        raise OutOfMemory(f"out of memory before it began: {what} this model takes {sizes}", hint)


def best_run(corpus: str) -> Path | None:
    """The complete run on a corpus, given by its hash, with the lowest held-out loss."""
    losses = {}
    for path in root().glob(f"*/{REPORT}"):
        with suppress(InputError, KeyError, TypeError):
            report, env = read_json(path), RunDir(path.parent).env()
            if report["status"] == "complete" and env["corpus"]["hash"] == corpus:
                losses[path.parent] = report["held_out"]["loss"]
    return min(losses, key=lambda folder: losses[folder], default=None)


def open_trained(
    folder: Path, device: Device, warn: Callable[[str], None] = lambda _: None
) -> tuple[LanguageModel, Tokenizer]:
    """The model and the tokenizer of a run, at its newest whole checkpoint.

    One whose few bits were not all there yet computes as it did when it was saved.
    """
    if not (folder / CONFIG).exists():
        raise InputError(f"there is no run in {folder}", "give the folder of a trained run")
    run, tokenizer = RunDir(folder), Tokenizer.load(folder / TOKENIZER)
    corpus = run.env().get("corpus")
    if not isinstance(corpus, dict) or describe(tokenizer) != corpus.get("tokenizer"):
        raise InputError(f"{folder / TOKENIZER} is not the one that the run was trained with")
    place = _newest(folder, warn)
    run.require_asked(checkpoint.load_value(place, "asked"))
    settings = _settings(folder / CONFIG, checkpoint.load_value(place, "shape"))
    require_memory(settings, tokenizer.vocab_size, device, "using")
    model = build_model(settings, tokenizer.vocab_size, 0)
    weights = checkpoint.load_model(place, torch.device("cpu"))
    own = {name: there.is_floating_point() for name, there in model.state_dict().items()}
    if not all(
        w.is_floating_point() == own.get(name, True) and w.isfinite().all()
        for name, w in weights.items()
    ):
        raise InputError(f"{place} holds weights that are not finite numbers")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{place} does not fit {folder / CONFIG}: {error}") from None
    if lacks_gains(model):  # saved before the first step, or by a version that kept no blend
        set_blend(model, 0.0)
    device.adopt(model)
    return model, tokenizer


def _settings(config: Path, shape: Any) -> PartSettings:
    """Which model a run has; one that grows has a shape of its own in each checkpoint."""
    try:
        shape = read_toml(config)["model"] if shape is None else json.loads(shape)
        settings: PartSettings = MODELS.load(shape["name"]).model_validate(shape)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{config} does not describe a model: {reason}") from None
    return settings


def _newest(folder: Path, warn: Callable[[str], None]) -> Path:
    """The newest whole checkpoint; a damaged one is passed over, but never silently."""
    place = checkpoint.newest_whole(folder / CHECKPOINTS, warn)
    if place is None:
        hint = "let it train until its first checkpoint"
        raise InputError(f"the run in {folder} has no whole checkpoint", hint)
    return place
