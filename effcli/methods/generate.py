"""Write text with the model of a run."""

from collections.abc import Iterator

from effcli.engine.device import Device
from effcli.engine.models.generate import write
from effcli.engine.records import Stop
from effcli.engine.runs.trained import open_trained
from effcli.settings.generate import GenerateSettings


def stream(settings: GenerateSettings, stop: Stop) -> Iterator[tuple[list[str], str]]:
    """All texts so far, and what is new in the first one, after every token."""
    model, tokenizer = open_trained(settings.run, Device(settings.device))
    for writings in write(model, tokenizer, settings.prompt, settings, stop):
        texts = [writing.text(tokenizer, settings.stop) for writing in writings]
        yield texts, writings[0].news(tokenizer, settings.stop)
