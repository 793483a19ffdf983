"""Write text with the model of a run."""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.device import Device
from effcli.engine.models.generate import write
from effcli.engine.models.phase import Phase
from effcli.engine.phase.widths import nested
from effcli.engine.protocols import LanguageModel
from effcli.engine.quant.packed import read
from effcli.engine.quant.running import runnable
from effcli.engine.records import Stop
from effcli.engine.runs.trained import open_trained, settle
from effcli.errors import InputError
from effcli.settings.generate import GenerateSettings

Warn = Callable[[str], None]
"""Hears that something is not as it should be, and was not used."""


def _unheard(_: str) -> None:
    """Nobody listens."""


class Written(NamedTuple):
    """A text, and why it ended."""

    text: str
    reason: str


def texts(settings: GenerateSettings, stop: Stop, warn: Warn = _unheard) -> list[list[Written]]:
    """What continues each prompt, as often as asked."""
    model, tokenizer = _opened(settings, warn)
    *_, writings = write(model, tokenizer, settings.begun, settings, stop)
    written = [Written(w.text(tokenizer, settings.stop), str(w.reason)) for w in writings]
    copies = settings.num_return_sequences
    return [written[start : start + copies] for start in range(0, len(written), copies)]


def stream(settings: GenerateSettings, stop: Stop, warn: Warn = _unheard) -> Iterator[str]:
    """One text that continues one prompt, bit by bit."""
    model, tokenizer = _opened(settings, warn)
    for (writing,) in write(model, tokenizer, settings.begun, settings, stop):
        yield writing.news(tokenizer, settings.stop)


def _opened(settings: GenerateSettings, warn: Warn) -> tuple[LanguageModel, Tokenizer]:
    device = Device(settings.device)
    if settings.run.is_file():
        if device.kind != "cpu":
            hint = "--set device.name=cpu, or name the folder of its run"
            raise InputError("a packed model runs on the CPU", hint)
        if settings.phase_dim != "full":
            raise InputError("phase_dim: a packed model has no phases", "leave out --phase-dim")
        packed = read(settings.run)
        return runnable(packed), packed.tokenizer
    model, tokenizer = open_trained(settings.run, device, warn)
    if settings.phase_dim != "full":
        _narrow(model, settings.phase_dim, warn)
    settle(model)
    if isinstance(model, Phase) and (why := model.unfused):
        warn(why)
    return model, tokenizer


def _narrow(model: LanguageModel, asked: Literal["auto"] | int, warn: Warn) -> None:
    """Have fewer phases of each head count, if that is possible."""
    if not isinstance(model, Phase):
        hint = "leave out --phase-dim, or name a run of another model"
        raise InputError("the model has no phases: phase_dim needs a phase model", hint)
    widths, pairs = model.widths, model.pairs
    if asked == "auto":
        if widths is None or not widths.steps:
            hint = "train with eff qllm train --phase-dim auto, or give a number"
            raise InputError("the model has not learned when to keep fewer phases", hint)
        widths.way = asked
        return
    if asked > pairs:
        raise InputError(f"phase_dim: each head has {pairs} phases, not {asked}", "give fewer")
    prepared = [pairs] if widths is None else nested(pairs)
    if asked not in prepared:
        known = ", ".join(map(str, sorted({*prepared})))
        warn(f"the model was trained to keep {known} phases of each head, not {asked}")
    model.keep(asked)
