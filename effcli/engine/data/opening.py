"""The text of a training run, opened as the run reads it."""

from effcli.engine.data.corpus import Corpus, locate
from effcli.engine.data.marked import marked
from effcli.errors import InputError
from effcli.settings.train import TrainSettings


def opened(settings: TrainSettings) -> Corpus:
    """As much of the corpus as may be read, with marks of languages where these are told."""
    corpus = Corpus.open(locate(settings.data)).first(settings.text_share)
    known = getattr(settings.model, "languages", 0)
    if known not in (0, len(settings.marks)):
        message = f"model.languages: the text has marks of {len(settings.marks)}, not {known}"
        raise InputError(message, "eff qllm train --languages names them")
    return marked(corpus, settings.marks) if settings.marks else corpus
