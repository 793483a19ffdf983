"""What is looked at once, when a run has spent its budget."""

import json
import math
from contextlib import suppress
from typing import Any

from torch import Tensor

from effcli.engine.data.corpus import Corpus
from effcli.engine.data.marked import Marked, language_of
from effcli.engine.data.mixed import Mixed
from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.device import Device
from effcli.engine.loop import Parts
from effcli.engine.measure.evaluate import HeldOut
from effcli.engine.measure.floors import ngram_floors
from effcli.engine.measure.peak import peak_flops
from effcli.engine.measure.tail import TENTHS, tail_losses
from effcli.engine.measure.text import WINDOWS, compared
from effcli.engine.models.generate import write
from effcli.engine.records import (
    FloorsFound,
    LanguagesFound,
    Sample,
    Stop,
    TailFound,
    TextsMeasured,
)
from effcli.engine.runs.files import write_json
from effcli.engine.runs.logbook import Logbook
from effcli.engine.runs.page import write_page
from effcli.engine.runs.report import report_of
from effcli.engine.runs.rundir import RunDir
from effcli.settings.generate import SamplingSettings
from effcli.settings.train import TrainSettings

SAMPLE_TOKENS = 128


def write_report(run: RunDir, device: Device, with_page: bool) -> None:
    """Write down how a run ended; a device is never said to be slower than the run on it was."""
    report = report_of(run.folder)
    if report.mfu > 1:
        seen = report.mfu * report.peak_flops_per_second
        run.correct({"peak_flops_per_second": peak_flops(device, seen=seen)})
        report = report_of(run.folder)
    report.write()
    if with_page:
        write_page(run.folder, report)


def close_run(
    parts: Parts,
    corpus: Corpus,
    held_out: HeldOut,
    losses: Tensor,
    log: Logbook,
    settings: TrainSettings,
    stop: Stop,
) -> None:
    """Sort the losses of all positions, count n-gram floors, let the model write and measure it.

    All of it is at the expense of `eval`.
    """
    with parts.meter.timing("eval"):
        if held_out.predicted >= TENTHS:
            targets, vocab_size = held_out.tokens[:, 1:], corpus.tokenizer.vocab_size
            log.note(TailFound(tail_losses(corpus.train, targets, losses.numpy(), vocab_size)))
        if corpus.tokenizer.marks:
            log.note(LanguagesFound(by_language(corpus.tokenizer, held_out, losses)))
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
        if settings.evaluation.texts:
            log.note(TextsMeasured(texts_of(parts, corpus, settings, stop)))


def by_language(tokenizer: Tokenizer, held_out: HeldOut, losses: Tensor) -> dict[str, Any]:
    """The held-out loss in each language; marks do not count."""
    languages = language_of(held_out.tokens[:, :-1], tokenizer)
    targets, found = held_out.tokens[:, 1:], {}
    for number, name in enumerate(tokenizer.marks):
        own = (languages == number) & (targets < tokenizer.unmarked)
        if count := int(own.sum()):
            nats = float(losses.numpy()[own].sum(dtype=float))
            size = int(tokenizer.token_bytes[targets[own]].sum())
            bits = nats / math.log(2) / max(1, size)
            found[name] = {"loss": nats / count, "bits_per_byte": bits, "tokens": count}
    return {"held_out": found}


def texts_of(parts: Parts, corpus: Corpus, settings: TrainSettings, stop: Stop) -> dict[str, Any]:
    """How much texts of the model repeat themselves, beside windows of held-out text.

    They go on behind the ends of documents, as windows do, so that all are of one length.
    """
    length = min(settings.evaluation.text_tokens, corpus.val.in_row - 1)
    sampling = SamplingSettings(
        max_new_tokens=length,
        temperature=1.0,
        num_return_sequences=settings.evaluation.texts,
        seed=settings.seed,
    )
    tokenizer = corpus.tokenizer
    *_, writings = write(parts.model, tokenizer, [""], sampling, stop, one_document=False)
    parts.meter.charge("eval", parts.model.forward_flops(len(writings), length))
    windows = corpus.val.read(corpus.val.spread(length, WINDOWS), length).tolist()
    texts, theirs = (
        [(ids, tokenizer.decode_bytes(ids)) for ids in several]
        for several in ([writing.ids for writing in writings], windows)
    )
    return {"tokens": length, **compared(texts, theirs)}


def floors_of(corpus: Corpus, held_out: HeldOut) -> dict[str, float]:
    """The floors on these windows; kept beside the shards, since they never change."""
    if isinstance(corpus, Mixed | Marked):  # has no place of its own
        return ngram_floors(corpus.train, held_out.tokens, corpus.tokenizer.vocab_size)
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
