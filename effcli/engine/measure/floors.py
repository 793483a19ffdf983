"""What counting alone would have reached, so that a loss can be judged.

Uni-, bi- and trigram frequencies of the training text, each smoothed with the next
lower one: p(w|h) = (c(hw) + k·p'(w)) / (c(h) + k) (MacKay & Peto 1995). The constants
k are chosen on the end of the training text, which is then not counted.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from effcli.engine.data.corpus import Split

Ids = NDArray[np.int64]
CHUNK = 2**20
COUNTED = 2**25  # tokens; enough for trigrams, and some seconds of work
TUNED_ON = 2**16  # tokens at the end of the training text
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)


def ngram_floors(train: Split, windows: Ids, vocab_size: int) -> dict[str, float]:
    """Mean nats per predicted token of `windows` (rows of tokens), for each order."""
    set_aside = min(train.tokens // 10, TUNED_ON)
    whole, counted = (train.stretches(train.tokens - aside) for aside in (0, set_aside))
    ends = [(stop, end - stop) for (_, end), (_, stop) in zip(whole, counted, strict=True)]
    tuning = np.concatenate([train.read([start], tokens) for start, tokens in ends], axis=1)
    counts = _Counts(vocab_size, [windows, tuning])
    for chunk in chunks(train, train.tokens - set_aside):
        counts.add(chunk)
    two = _best(lambda k: counts.bigram(tuning, k))
    three = _best(lambda k: counts.trigram(tuning, two, k))
    return {
        "unigram": _nats(counts.unigram(windows[:, 1:])),
        "bigram": _nats(counts.bigram(windows, two)),
        "trigram": _nats(counts.trigram(windows, two, three)),
    }


def chunks(train: Split, tokens: int) -> Iterator[Ids]:
    """So many tokens of a text to count, or parts spread evenly over them.

    Each corpus of a mix keeps its share: its chunks are as many as that asks for, or shorter.
    """
    for begin, end in train.stretches(tokens):
        size = end - begin
        counted = min(tokens, COUNTED) * size // max(1, tokens)
        parts = -(-counted // CHUNK)
        for part in range(parts):
            start, stop = size * part // parts, size * (part + 1) // parts
            yield train.read([begin + start], min(-(-counted // parts), stop - start))[0]


def _best(probability: Callable[[float], NDArray[np.float64]]) -> float:
    return min(STRENGTHS, key=lambda strength: _nats(probability(strength)))


def _nats(probabilities: NDArray[np.float64]) -> float:
    return float(-np.log(probabilities).mean()) if probabilities.size else 0.0


class _Counts:
    """Counts of just those pairs and triples that will be asked for: memory stays small."""

    def __init__(self, vocab_size: int, queries: list[Ids]) -> None:
        self._vocab = vocab_size
        self._ones = np.zeros(vocab_size, dtype=np.int64)
        self._pairs = np.unique(np.concatenate([self._pair(q).ravel() for q in queries]))
        self._triples = np.unique(np.concatenate([self._triple(q).ravel() for q in queries]))
        self._pair_counts = np.zeros(len(self._pairs), dtype=np.int64)
        self._triple_counts = np.zeros(len(self._triples), dtype=np.int64)

    def _pair(self, rows: Ids) -> Ids:
        return rows[..., :-1] * self._vocab + rows[..., 1:]

    def _triple(self, rows: Ids) -> Ids:
        return self._pair(rows)[..., :-1] * self._vocab + rows[..., 2:]

    def add(self, tokens: Ids) -> None:
        self._ones += np.bincount(tokens, minlength=self._vocab)
        _tally(self._pair(tokens), self._pairs, self._pair_counts)
        _tally(self._triple(tokens), self._triples, self._triple_counts)

    def unigram(self, targets: Ids) -> NDArray[np.float64]:
        probabilities = (self._ones + 1) / (self._ones.sum() + self._vocab)
        picked: NDArray[np.float64] = probabilities[targets]
        return picked

    def bigram(self, rows: Ids, strength: float) -> NDArray[np.float64]:
        both = self._pair_counts[np.searchsorted(self._pairs, self._pair(rows))]
        below = self.unigram(rows[:, 1:])
        smooth: NDArray[np.float64] = (both + strength * below) / (
            self._ones[rows[:, :-1]] + strength
        )
        return smooth

    def trigram(self, rows: Ids, below: float, strength: float) -> NDArray[np.float64]:
        """Nothing is known before a row, so its first token is predicted by its bigram."""
        probabilities = self.bigram(rows, below)
        triples = self._triple_counts[np.searchsorted(self._triples, self._triple(rows))]
        pairs = self._pair_counts[np.searchsorted(self._pairs, self._pair(rows)[:, :-1])]
        lower = probabilities[:, 1:]
        probabilities[:, 1:] = (triples + strength * lower) / (pairs + strength)
        return probabilities


def _tally(keys: Ids, wanted: Ids, counts: Ids) -> None:
    places = np.searchsorted(wanted, keys)
    places[places == len(wanted)] = 0
    hits = places[wanted[places] == keys]
    counts += np.bincount(hits, minlength=len(counts))
