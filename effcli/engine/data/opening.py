"""The text of a training run, opened as the run reads it."""

from collections.abc import Sequence

from effcli.engine.data.corpus import Corpus
from effcli.engine.data.marked import Marked
from effcli.engine.data.mixed import opened
from effcli.errors import InputError
from effcli.settings.train import TrainSettings


def text_of(settings: TrainSettings) -> Corpus:
    """As much of the corpus as may be read, with marks of languages where these are told."""
    known = getattr(settings.model, "languages", 0)
    if known not in (0, len(settings.marks)):
        message = f"model.languages: the text has marks of {len(settings.marks)}, not {known}"
        raise InputError(message, "eff qllm train --languages names them")
    return read_as(settings.data, settings.text_share, settings.marks)


def read_as(data: str | None, share: float, languages: Sequence[str]) -> Corpus:
    """The beginning of a corpus or mix, with marks of these languages, if any."""
    corpus = opened(data).first(share)
    return Marked(corpus, languages) if languages else corpus
