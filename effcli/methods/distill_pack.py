"""Put the model of a run into one file of few bits, and check such a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from effcli.engine.advice import resuming
from effcli.engine.data.mixed import opened
from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.device import Device
from effcli.engine.models.phase import Phase
from effcli.engine.protocols import LanguageModel
from effcli.engine.quant import packed
from effcli.engine.quant.bitlinear import bit_layers, linear_layers, quantize
from effcli.engine.quant.finish import FILE, described
from effcli.engine.quant.student import is_low, lacks_gains
from effcli.engine.quant.verify import verify
from effcli.engine.runs.rundir import CONFIG, status
from effcli.engine.runs.trained import open_trained
from effcli.errors import CheckError, InputError
from effcli.settings.distill import CheckSettings, PackSettings
from effcli.settings.layers import read_toml
from effcli.settings.train import DeviceSettings

CPU = DeviceSettings(name="cpu", compile="off")


@dataclass(frozen=True)
class Chosen:
    """What is to be written, and where."""

    path: Path
    model: LanguageModel
    tokenizer: Tokenizer
    is_trained: bool
    """Whether it was trained in the bits that it has."""


def chosen(settings: PackSettings, name: str) -> Chosen:
    """The model of a run; other bits than it was trained with are rounded now."""
    path = settings.out or settings.run / name
    if path.exists() and (settings.out is not None or name == FILE):
        raise InputError(f"{path} exists", "name another file with --out")
    model, tokenizer = open_trained(settings.run, Device(CPU))
    if isinstance(model, Phase):
        hint = "name a run of eff baseline or eff distill"
        raise InputError("a phase model fits neither into packed files nor into GGUF", hint)
    _require_low(settings, model)
    is_trained = bool(bit_layers(model)) and settings.bits is None and _trained_low(settings.run)
    if settings.bits is not None:
        is_normed = any(layer.gain is not None for layer in bit_layers(model).values())
        if is_normed and settings.bits == 16:
            raise InputError("layers of 16 bits have no sub-norms, and those of this run do")
        quantize(model, settings.bits, settings.group, subnorm=is_normed)
    return Chosen(path, model, tokenizer, is_trained)


def _trained_low(run: Path) -> bool:
    """Whether a run was to be trained in its bits, and has come to its end.

    Whatever is no distillation, and has layers of few bits, had them from the start.
    """
    return bool(read_toml(run / CONFIG).get("qat", True)) and status(run) == "complete"


def _require_low(settings: PackSettings, model: LanguageModel) -> None:
    """Refuse a student that has not come to its few bits: a file of them is another function."""
    is_there = is_low(model) if settings.bits is None else not lacks_gains(model)
    if not is_there:
        message = f"the run in {settings.run} was saved before it computed in its few bits alone"
        raise InputError(message, f"continue it with: {resuming('distill', settings.run)}")


def pack(settings: PackSettings) -> dict[str, Any]:
    """Write the packed file of a run."""
    one = chosen(settings, FILE)
    facts = {"run": str(settings.run), "is_trained_in_low_bits": one.is_trained}
    sizes = packed.write(one.path, one.model, one.tokenizer, facts)
    where = {"command": "distill pack", "file": str(one.path)}
    kept = {"is_trained_in_low_bits": one.is_trained, "matrices": len(linear_layers(one.model))}
    where["status"] = status(settings.run)
    return {"schema": 1, **where, **kept, **described(sizes)}


def check(settings: CheckSettings) -> dict[str, Any]:
    """Read a file again and compare it with the model of its run, on held-out text."""
    run = settings.run or settings.file.parent
    if not (run / CONFIG).exists():
        raise InputError(f"there is no run in {run}", "name the run that was packed with --run")
    model, tokenizer = open_trained(run, Device(CPU))
    windows = _windows(settings, model.context, tokenizer.hash)
    found = verify(settings.file, model, windows)
    document = {
        "schema": 1,
        "command": "distill verify",
        "file": str(settings.file),
        "run": str(run),
        "holds": found.holds,
        "wrong_codes": found.wrong_codes,
        "logit_gap": found.logit_gap,
        "agreement": found.agreement,
        "loss": found.loss,
        "trained_loss": found.trained_loss,
        "roundtrip_gap": found.roundtrip_gap,
        **described(packed.sizes(settings.file)),
    }
    if not found.holds:
        differs = f"{found.wrong_codes} codes, logits by {found.logit_gap:.2g}"
        error = CheckError(f"{settings.file} is not the model of {run}: {differs}")
        error.report = document
        raise error
    return document


def _windows(settings: CheckSettings, context: int, tokenizer: str) -> torch.Tensor:
    """Held-out windows, evenly spread."""
    corpus = opened(settings.data)
    if corpus.tokenizer.hash != tokenizer:
        hint = "name the corpus of its run with --data"
        raise InputError(f"{corpus.name} has other tokens than the file", hint)
    starts = corpus.val.spread(context, settings.windows)
    if not len(starts):
        raise InputError(f"the held-out text of {corpus.name} has no window of {context} tokens")
    return torch.from_numpy(corpus.val.read(starts, context + 1))
