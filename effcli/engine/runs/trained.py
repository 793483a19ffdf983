"""Models, new and trained."""

from pathlib import Path

import torch

from effcli.catalog import MODELS
from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.device import Device
from effcli.engine.models.layers import Linear
from effcli.engine.protocols import LanguageModel
from effcli.engine.runs import checkpoint
from effcli.engine.runs.rundir import CHECKPOINTS, CONFIG, TOKENIZER
from effcli.errors import InputError, ResourceError
from effcli.registry import resolve_place
from effcli.settings.base import PartSettings
from effcli.settings.layers import read_toml
from effcli.units import size


def build_model(settings: PartSettings, vocab_size: int, seed: int) -> LanguageModel:
    """A model with its initial weights."""
    model: LanguageModel = resolve_place(settings.place)(settings, vocab_size, seed)
    return model


@torch.no_grad()
def settle(model: LanguageModel) -> None:
    """Cast weights once to the type that they are used in: only for a model that is not trained."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.to(model.dtype)
    model.settled_head = model.head[: model.vocab_size].to(model.dtype)


def require_memory(settings: PartSettings, vocab_size: int, device: Device) -> None:
    """Refuse a model whose weights, gradients and moments alone are more than there is."""
    with torch.device("meta"):
        needed = 16 * build_model(settings, vocab_size, 0).parameter_count()
    there = device.available_bytes()
    if there is not None and needed > there:
        sizes = f"at least {size(needed)}, and {size(there)} are available"
        hint = "use a smaller preset, model.width or model.layers"
        raise ResourceError(
            f"out of memory before it began: training this model takes {sizes}", hint
        )


def open_trained(folder: Path, device: Device) -> tuple[LanguageModel, Tokenizer]:
    """The model and the tokenizer of a run, at its newest checkpoint."""
    if not (folder / CONFIG).exists():
        raise InputError(f"there is no run in {folder}", "give the folder of a trained run")
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    places = checkpoint.steps(folder / CHECKPOINTS)
    whole = [place for place in reversed(places) if checkpoint.damage(place) is None]
    if not whole:
        hint = "let it train until its first checkpoint"
        raise InputError(f"the run in {folder} has no whole checkpoint", hint)
    shape = read_toml(folder / CONFIG)["model"]
    settings = MODELS.load(shape["name"]).model_validate(shape)
    model = build_model(settings, tokenizer.vocab_size, 0)
    try:
        model.load_state_dict(checkpoint.load_model(whole[0], torch.device("cpu")))
    except RuntimeError as error:
        raise InputError(f"{whole[0]} does not fit {folder / CONFIG}: {error}") from None
    device.adopt(model)
    return model, tokenizer
