"""Score a corpus before training: duplicates, clusters, counts, and which of it is good text."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effcli.engine.data.corpus import Corpus
from effcli.engine.records import Reading, Stop, Watch
from effcli.engine.selection import holdout, sidecar
from effcli.engine.selection.clusters import Clusters, find_clusters
from effcli.engine.selection.duplicates import contents, copies, shingle
from effcli.engine.selection.keys import uniform
from effcli.engine.selection.ngrams import NGrams, counted
from effcli.engine.selection.overlap import stretches_of
from effcli.engine.selection.passages import Ids, Passages, Text, documents_of, passages_of
from effcli.engine.selection.ratio import gate_of
from effcli.engine.selection.sidecar import Scores
from effcli.engine.selection.yardstick import Floats, Yardstick, evidence
from effcli.errors import InputError, Stopped
from effcli.settings.aql import PreparationSettings

WARM_SHARE = 0.04  # of the pool, that its own counts are made of
REFERENCE_SHARE = 0.7  # of trusted text, that is counted; the rest says how such text scores
STAGES = ("trusted text", "duplicates", "clusters", "counts", "gate", "overlap")


def request_of(corpus: Corpus, settings: PreparationSettings) -> dict[str, Any]:
    """All that the scores depend on."""
    own = settings.model_dump(mode="json", exclude={"holdout"})
    trusted = holdout.describe(settings.holdout, corpus)
    return {"corpus": corpus.hash, "holdout": trusted, "settings": own, "schema": sidecar.SCHEMA}


def prepared(
    corpus: Corpus,
    settings: PreparationSettings,
    watch: Watch,
    stop: Stop,
    *,
    again: bool = False,
) -> Scores:
    """The scores of a corpus: those that are there, or new ones."""
    request = request_of(corpus, settings)
    folder = sidecar.place(corpus, request)
    if (folder / sidecar.MANIFEST).exists() and not again:
        return sidecar.read(folder, corpus)
    columns, facts = Preparation(corpus, settings, watch, stop).run()
    return sidecar.write(folder, columns, {**request, **facts})


class Preparation:
    """One pass over a corpus and its trusted text."""

    def __init__(
        self, corpus: Corpus, settings: PreparationSettings, watch: Watch, stop: Stop
    ) -> None:
        self._corpus, self._settings, self._watch, self._stop = corpus, settings, watch, stop
        self._text, self._vocab = corpus.train, corpus.tokenizer.vocab_size
        self._seconds: dict[str, float] = {}
        self._flops = 0.0
        self._passages = pool_of(corpus.train, settings)

    def run(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Columns of the scores, and what they are about."""
        passages, settings = self._passages, self._settings
        with self._timed("duplicates"):
            copy, documents = self._copies()
        with self._timed("trusted text"):
            held_out = stretches_of(self._corpus.val)
            trusted = holdout.read(settings.holdout, self._corpus, held_out)
        with self._timed("clusters"):
            centers, clusters = self._clusters()
        with self._timed("counts"):
            reference, others = (None, None) if trusted is None else self._reference(trusted)
            known = 0 if reference is None else reference.tokens
            is_known = self._known(trusted)
            tokens = max(known, int(WARM_SHARE * passages.tokens))
            warm, second, first = self._warm(tokens, is_known)
            yardstick = Yardstick(warm, reference, None, centers, held_out, self._vocab)
            scores = yardstick.counted(self._text, passages)
            own = passages.part(first)  # whoever was counted is scored by other counts
            again = replace(yardstick, warm=second).counted(self._text, own)
            for name, column in again.items():
                scores[name][first] = column
        with self._timed("gate"):
            gate, ratios = None, np.ones_like(scores["loss"])
            if trusted is not None and others is not None:
                kinds = evidence(yardstick.counted(trusted, others))
                gate, ratios = gate_of(evidence(scores), kinds, passages.lengths, settings.seed)
                self._trust(is_known, scores, ratios)
        with self._timed("overlap"):
            overlaps = held_out.passages_with(self._text, passages)
        self.yardstick = replace(yardstick, gate=gate)
        self._flops += yardstick.flops_per_token * (passages.tokens + own.tokens)
        places = {"document": passages.documents, "start": passages.starts}
        counts = {"length": passages.lengths, "copy": copy, "cluster": clusters}
        scores["ratio"], lengths = ratios, passages.lengths
        return {**places, **counts, **scores, "overlaps": overlaps}, {
            "tokens": passages.tokens,
            "passages": len(passages),
            "documents": documents,
            "contamination": None if gate is None else gate.contamination,
            "exponent": 0.0 if gate is None else gate.exponent,
            "trusted_tokens": 0 if trusted is None else trusted.tokens,
            "duplicate_tokens": int(lengths[copy >= settings.copies].sum()),
            "overlapping_tokens": int(lengths[overlaps].sum()),
            "quarantined": int((~sidecar.sound(scores)).sum()),
            "clusters": int(clusters.max()) + 1,
            "seconds": self._seconds,
            "flops": self._flops,
        }

    def _copies(self) -> tuple[Ids, int]:
        """The copy number of every passage's document."""
        documents = np.unique(self._passages.documents)
        begins, lengths = documents_of(self._text)
        where = begins[documents], lengths[documents]
        width = shingle(self._text.tokens, self._corpus.train.bytes)
        found = copies(self._text, *where, similar=self._settings.similar, width=width)
        return found.copy[np.searchsorted(documents, self._passages.documents)], len(documents)

    def _clusters(self) -> tuple[Clusters, NDArray[np.int16]]:
        pool, settings = self._passages, self._settings
        return find_clusters(
            self._text,
            pool.starts,
            pool.lengths,
            clusters=settings.clusters,
            seed=settings.seed,
            vocab_size=self._vocab,
        )

    def _known(self, trusted: Text | None) -> NDArray[np.bool_]:
        """Passages of documents that are trusted text themselves."""
        pool = self._passages
        if trusted is None:
            return np.zeros(len(pool), dtype=bool)
        begins, lengths = documents_of(self._text)
        documents = np.unique(pool.documents)
        own = contents(self._text, begins[documents], lengths[documents])
        is_known = np.isin(own, contents(trusted, *documents_of(trusted)))
        found: NDArray[np.bool_] = is_known[np.searchsorted(documents, pool.documents)]
        return found

    def _trust(
        self, is_known: NDArray[np.bool_], scores: dict[str, Floats], ratios: Floats
    ) -> None:
        """Trusted text in the pool is as good as the others of it.

        It was counted, so its own scores would be too good.
        """
        if not is_known.any() or is_known.all():
            return
        lengths = self._passages.lengths[~is_known]
        good = np.nan_to_num(ratios[~is_known].astype(np.float64)) * lengths
        ratios[is_known] = np.average(np.nan_to_num(ratios[~is_known]), weights=good)
        scores["excess"][is_known] = np.average(scores["excess"][~is_known], weights=good)

    def _reference(self, trusted: Text) -> tuple[NGrams, Passages]:
        """Counts of trusted text, and the passages of it that were not counted."""
        parts = passages_of(trusted, self._settings.passage)
        if len(parts) < holdout.FEWEST:
            message = f"{self._settings.holdout} has {len(parts)} passages of text"
            raise InputError(message, f"{holdout.FEWEST} are needed to learn what is good")
        cut = int(REFERENCE_SHARE * len(parts))
        counts = counted(trusted, parts.part(slice(0, cut)), self._vocab)
        return counts, parts.part(slice(cut, None))

    def _warm(self, tokens: int, is_known: NDArray[np.bool_]) -> tuple[NGrams, NGrams, Ids]:
        """Counts of two parts of the pool, and which passages the first is.

        Without trusted text, which would be told from the pool by having been counted.
        """
        pool = self._passages
        others = np.flatnonzero(~is_known) if not is_known.all() else np.arange(len(pool))
        order = others[np.argsort(uniform(others, self._settings.seed, 0, 1))]
        sizes = np.cumsum(pool.lengths[order])
        stop = max(1, int(np.searchsorted(sizes, min(tokens, sizes[-1] // 2))))
        first, second = np.sort(order[:stop]), np.sort(order[stop : 2 * stop])
        tables = [counted(self._text, pool.part(one), self._vocab) for one in (first, second)]
        return tables[0], tables[1], first

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        if (number := self._stop()) is not None:
            raise Stopped(number, "the scores were not finished", "start it again")
        started, share = time.perf_counter(), STAGES.index(stage) / len(STAGES)
        self._watch(Reading(stage, share, self._passages.tokens, 0, 0.0))
        yield
        self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - started


def pool_of(text: Text, settings: PreparationSettings) -> Passages:
    """The passages of all documents, or of as many as are wanted."""
    everything = passages_of(text, settings.passage)
    if settings.pool is None:
        return everything
    if settings.pool > text.tokens:
        message = f"the pool is to have {settings.pool:,} tokens, the text has {text.tokens:,}"
        raise InputError(message, "prepare more text, or set a smaller pool")
    chance = uniform(everything.documents, settings.seed, 0, 2)
    order = np.argsort(chance, kind="stable")
    sizes = np.cumsum(everything.lengths[order])
    return everything.part(np.sort(order[: int(np.searchsorted(sizes, settings.pool)) + 1]))
