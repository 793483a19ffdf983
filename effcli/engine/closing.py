"""What is looked at once, when a run has spent its budget."""

import json
from contextlib import suppress

from torch import Tensor

from effcli.engine.data.corpus import Corpus
from effcli.engine.loop import Parts
from effcli.engine.measure.evaluate import HeldOut
from effcli.engine.measure.floors import ngram_floors
from effcli.engine.measure.tail import TENTHS, tail_losses
from effcli.engine.models.generate import write
from effcli.engine.records import FloorsFound, Sample, Stop, TailFound
from effcli.engine.runs.files import write_json
from effcli.engine.runs.logbook import Logbook
from effcli.settings.generate import SamplingSettings
from effcli.settings.train import TrainSettings

SAMPLE_TOKENS = 128


def close_run(
    parts: Parts,
    corpus: Corpus,
    held_out: HeldOut,
    losses: Tensor,
    log: Logbook,
    settings: TrainSettings,
    stop: Stop,
) -> None:
    """Sort the losses of all positions, count n-gram floors and let the model write.

    All of it is at the expense of `eval`.
    """
    with parts.meter.timing("eval"):
        if held_out.predicted >= TENTHS:
            targets, vocab_size = held_out.tokens[:, 1:], corpus.tokenizer.vocab_size
            log.note(TailFound(tail_losses(corpus.train, targets, losses.numpy(), vocab_size)))
        if settings.evaluation.floors:
            log.note(FloorsFound(**floors_of(corpus, held_out)))
        if settings.evaluation.samples:
            sampling = SamplingSettings(
                max_new_tokens=SAMPLE_TOKENS,
                num_return_sequences=settings.evaluation.samples,
                seed=settings.seed,
            )
            *_, writings = write(parts.model, corpus.tokenizer, [""], sampling, stop)
            for writing in writings:
                log.note(Sample("", writing.text(corpus.tokenizer, ())))
                shape = (1, len(writing.ids))
                parts.meter.charge("eval", parts.model.forward_flops(*shape))


def floors_of(corpus: Corpus, held_out: HeldOut) -> dict[str, float]:
    """The floors on these windows; kept beside the shards, since they never change."""
    rows, length = held_out.tokens.shape
    path = corpus.folder / f"floors-{length - 1}-{rows}.json"
    try:
        known = json.loads(path.read_bytes())
        return {name: float(known[name]) for name in ("unigram", "bigram", "trigram")}
    except (OSError, ValueError, KeyError, TypeError):
        found = ngram_floors(corpus.train, held_out.tokens, corpus.tokenizer.vocab_size)
    with suppress(OSError):  # the corpus may belong to somebody else; then it is counted again
        write_json(path, found)
    return found
