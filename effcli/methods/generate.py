"""Write text with the model of a run."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.device import Device
from effcli.engine.models.generate import write
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
    *_, writings = write(model, tokenizer, settings.prompts, settings, stop)
    written = [Written(w.text(tokenizer, settings.stop), str(w.reason)) for w in writings]
    copies = settings.num_return_sequences
    return [written[start : start + copies] for start in range(0, len(written), copies)]


def stream(settings: GenerateSettings, stop: Stop, warn: Warn = _unheard) -> Iterator[str]:
    """One text that continues one prompt, bit by bit."""
    model, tokenizer = _opened(settings, warn)
    for (writing,) in write(model, tokenizer, settings.prompts, settings, stop):
        yield writing.news(tokenizer, settings.stop)


def _opened(settings: GenerateSettings, warn: Warn) -> tuple[LanguageModel, Tokenizer]:
    device = Device(settings.device)
    if settings.run.is_file():
        if device.kind != "cpu":
            hint = "--set device.name=cpu, or name the folder of its run"
            raise InputError("a packed model runs on the CPU", hint)
        packed = read(settings.run)
        return runnable(packed), packed.tokenizer
    model, tokenizer = open_trained(settings.run, device, warn)
    settle(model)
    return model, tokenizer
