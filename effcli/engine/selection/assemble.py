"""From settings and scores to what a selective run reads."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from effcli.catalog import CURRICULA, POLICIES, SELECTORS, UNCERTAINTIES
from effcli.engine.data.corpus import Corpus
from effcli.engine.loop import Parts
from effcli.engine.objectives.self_distillation import Snapshot
from effcli.engine.plan import forecast
from effcli.engine.protocols import Batch
from effcli.engine.selection import holdout, sidecar, visits
from effcli.engine.selection.aids import Aids
from effcli.engine.selection.choose import Quotas
from effcli.engine.selection.chooser import BINS, GROUPS, Chooser, Standards
from effcli.engine.selection.governor import Governor
from effcli.engine.selection.listener import TRUSTED_SEQUENCES, Listener
from effcli.engine.selection.overlap import Grams, stretches_of
from effcli.engine.selection.passages import Text
from effcli.engine.selection.policy import Exp3, Learned, Policy, weights
from effcli.engine.selection.pool import Pool, Shards
from effcli.engine.selection.prep import request_of
from effcli.engine.selection.quotas import bounds
from effcli.engine.selection.scorers import Proxy, Scorer, proxy_shape
from effcli.engine.selection.selectors import AUTO, CAUTIOUS, Selector
from effcli.engine.selection.sidecar import Scores
from effcli.engine.selection.source import Reading, Selected
from effcli.engine.selection.stages import Stages
from effcli.engine.selection.streamed import Terms, streamed
from effcli.engine.selection.synth import Gate, Writer, forbidden
from effcli.engine.selection.uncertainty import Uncertainty
from effcli.engine.selection.visits import Visits
from effcli.engine.selection.yardstick import Yardstick
from effcli.errors import InputError
from effcli.settings.aql import AqlSettings, ChoiceSettings, PreparationSettings

MANY = 10**9  # copies of a document: as many as there are
CANNOT_GATE = (
    "nothing says what good text is, so none can be told from noise: choosing at random, without "
    "copies and by cluster; --holdout FILE names text that you trust"
)


def selector_of(name: str, scores: Scores) -> Selector:
    """The selector of a name, or what stands in for it where no text is trusted."""
    selector: Selector = SELECTORS.load(name)
    if selector.needs_ratio and not scores.is_gated:
        hint = "name text that you trust with --holdout FILE"
        raise InputError(f"the selector {name!r} goes by trusted text, and there is none", hint)
    return CAUTIOUS if selector is AUTO and not scores.is_trusted else selector


def copies_of(selector: Selector, prep: PreparationSettings) -> int:
    """How many copies of a document may be read."""
    return MANY if selector.keeps_copies else prep.copies


def exponent_of(choice: ChoiceSettings, scores: Scores) -> float:
    """Of the ratio of densities: what was asked for, or what suits the pool."""
    return float(scores.facts["exponent"] if choice.exponent is None else choice.exponent)


def quotas_of(
    scores: Scores, eligible: NDArray[np.bool_], exponent: float, choice: ChoiceSettings
) -> Quotas:
    """Bounds around each cluster's share of the pool, weighted by how good it is."""
    clusters, lengths = scores["cluster"][eligible], scores["length"][eligible]
    good = scores["ratio"][eligible].astype(np.float64) ** exponent
    tokens = np.bincount(clusters, lengths, scores.clusters)
    means = np.bincount(clusters, lengths * good, scores.clusters) / np.maximum(tokens, 1)
    return Quotas(*bounds(tokens / tokens.sum(), means, choice.least, choice.most))


def selected(
    settings: AqlSettings,
    parts: Parts,
    corpus: Corpus,
    scores: Scores,
    yardstick: Yardstick | None = None,
) -> Selected:
    """What is read instead of everything; a yardstick measures text that comes later."""
    selector = selector_of(settings.selector, scores)
    eligible = scores.eligible(copies_of(selector, settings.prep))
    exponent = exponent_of(settings.choice, scores)
    is_good = good_passages(corpus, scores, settings.choice)
    context, jitter = parts.model.context, settings.synth.jitter
    shards = Shards(corpus.train, scores, eligible, context, settings.seed, is_good, jitter)
    pool: Pool = shards
    if yardstick is None or not settings.streaming:
        once = _limited(shards, settings, parts, corpus, scores)
    else:
        once = _budget(settings, parts, corpus)
        terms = _terms(settings, corpus, context, selector)
        pool = streamed(corpus, scores, eligible, yardstick, terms)
    uncertainty = UNCERTAINTIES.load(settings.uncertainty or "laplace")(seed=settings.seed)
    listener = _listener(settings, parts, corpus, scores, uncertainty)
    static = "loss" if settings.uncertainty == "entropy" else "rarity"
    curriculum: Any = CURRICULA.load(settings.curriculum)
    if curriculum is Stages:
        curriculum = Stages(settings.pacing.levels, length=settings.pacing.length)
    chooser = Chooser(
        selector,
        Standards.of(shards.columns(), static, scores.clusters),
        quotas_of(scores, eligible, exponent, settings.choice),
        (curriculum, settings.pacing),
        (exponent, settings.tilt),
        _policy(settings.policy, settings.choice.policy_weights),
        listener,
    )
    shape = (context, settings.batch.sequences, settings.seed)
    is_weighted = settings.weights == "importance"
    reading = Reading(*shape, once, settings.choice.rounds, is_weighted)
    aids = Aids(
        scorer_of(settings, parts, uncertainty),
        visits_of(settings, parts, corpus),
        writer_of(settings, parts, corpus, scores, yardstick),
        Snapshot(parts.model) if settings.synth.distill else None,
    )
    return Selected(pool, chooser, listener, reading, parts.meter, aids)


def scorer_of(settings: AqlSettings, parts: Parts, uncertainty: Uncertainty) -> Scorer | None:
    """Who scores single windows. It has half of the overhead, listening the other half."""
    share, choice, model = settings.overhead_max / 2, settings.choice, parts.model
    processes, seed = parts.device.processes, settings.seed
    if choice.scorer == "model":
        governor = Governor(share, 0.0)
        return Scorer(model, uncertainty, governor, processes, parts.micro, seed)
    if choice.scorer == "proxy":
        shape = proxy_shape(choice.proxy_layers, choice.proxy_width, model.context)
        return Proxy(shape, model.vocab_size, share, processes, parts.device.torch, seed)
    return None


def writer_of(
    settings: AqlSettings,
    parts: Parts,
    corpus: Corpus,
    scores: Scores,
    yardstick: Yardstick | None,
) -> Writer | None:
    """The user's program that writes text, if there is one."""
    if settings.synth_cmd is None or yardstick is None:
        return None
    if not scores.is_gated:
        hint = "name text that you trust with --holdout FILE"
        raise InputError("--synth-cmd is gated by trusted text, and there is none", hint)
    val = corpus.val
    held_out = Grams(val, forbidden(val.tokens, val.bytes), 1)
    gate = Gate(yardstick, held_out, settings.prep.passage)
    how = (settings.synth_cmd, settings.synth.timeout, corpus.tokenizer)
    return Writer(*how, gate, parts.device.processes)


def visits_of(settings: AqlSettings, parts: Parts, corpus: Corpus) -> Visits | None:
    """What earlier runs know of windows, and what this one is to remember."""
    choice, context = settings.choice, parts.model.context
    if not (choice.remember or choice.reuse):
        return None
    windows = (corpus.train.tokens - 1) // context
    folder = sidecar.place(corpus, request_of(corpus, settings.prep))
    earlier = visits.read(folder, context, windows) if choice.reuse else None
    return Visits(is_kept=choice.remember, earlier=earlier)


def _limited(
    pool: Shards, settings: AqlSettings, parts: Parts, corpus: Corpus, scores: Scores
) -> int:
    """Tokens of one pass; a budget that pays for less takes no more of the pool than that."""
    whole = int(scores.facts["tokens"])
    once = int(settings.ratio * whole) if settings.ratio < 1 else pool.tokens
    if pool.tokens < once:
        raise InputError(
            f"the pool has {pool.tokens:,} tokens that may be read, less than the {once:,} wanted",
            "a smaller --ratio, or more copies with --set prep.copies",
        )
    if settings.minutes is not None:
        return once
    budget = forecast(settings, parts, corpus.train.tokens, 1.0).tokens
    paid = -(-budget // (settings.epochs or 1))
    if paid < once:
        pool.limit(int(pool.tokens * paid / once))
    return min(once, paid)


def _budget(settings: AqlSettings, parts: Parts, corpus: Corpus) -> int:
    """Tokens that are read of a stream, which must have enough, where it is known how many."""
    counted = settings.model_copy(update={"minutes": None})
    budget = forecast(counted, parts, corpus.train.tokens, 1.0).tokens
    most, whole = corpus.manifest["request"]["max_tokens"], corpus.train.tokens
    step = settings.batch.sequences * parts.model.context
    is_whole = most is None or whole < most
    if is_whole and budget - step > settings.ratio * whole:
        message = f"{settings.ratio:g} of a stream of {whole:,} tokens is less than {budget:,}"
        raise InputError(message, "a smaller budget, or a larger --ratio")
    return budget


def _terms(settings: AqlSettings, corpus: Corpus, context: int, selector: Selector) -> Terms:
    prep, names = settings.prep, corpus.label_names
    copies = copies_of(selector, prep)
    good = (number for number, name in enumerate(names) if name in settings.choice.good)
    return Terms(settings.ratio, context, prep.passage, copies, tuple(good))


def _listener(
    settings: AqlSettings, parts: Parts, corpus: Corpus, scores: Scores, uncertainty: Uncertainty
) -> Listener:
    if (
        settings.uncertainty == "mc-dropout"
        and settings.listens
        and not getattr(settings.model, "dropout", 0.0)
    ):
        raise InputError("mc-dropout needs a model with dropout", "--set model.dropout=0.1")
    share = settings.overhead_max / (1 if settings.choice.scorer == "none" else 2)
    return Listener(
        parts.model,
        uncertainty,
        scores.clusters * BINS,
        parts.device.processes,
        Governor(share if settings.listens else 0.0, 0.0),
        _trusted(settings, corpus, parts.model.context) if settings.policy != "fixed" else None,
    )


def _trusted(settings: AqlSettings, corpus: Corpus, context: int) -> Batch:
    """A few windows of trusted text; where there is none, of the pool."""
    given = holdout.read(settings.prep.holdout, corpus, stretches_of(corpus.val))
    text: Text = corpus.train if given is None else given
    windows = (text.tokens - 1) // context
    starts = np.arange(TRUSTED_SEQUENCES, dtype=np.int64) * windows // TRUSTED_SEQUENCES * context
    tokens = torch.from_numpy(text.read(starts, context + 1))
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(len(tokens)))


def _policy(name: str, path: Path | None) -> Policy:
    kind = POLICIES.load(name)
    if kind is Exp3:
        return Exp3(GROUPS * BINS)
    made: Policy = Learned(weights(path)) if kind is Learned else kind()
    return made


def good_passages(
    corpus: Corpus, scores: Scores, choice: ChoiceSettings
) -> NDArray[np.bool_] | None:
    """Which passages are labeled as worth reading; none where documents have no labels."""
    labels, names = corpus.train.labels(), corpus.label_names
    good = [number for number, name in enumerate(names) if name in choice.good]
    if labels is None or not good:
        return None
    is_good: NDArray[np.bool_] = np.isin(labels, good)[scores["document"]]
    return is_good
