"""Counts of pairs and triples in tables of fixed size: scores of text that cost next to nothing.

p(w|h) = (c(hw) + k p'(w)) / (c(h) + k), the trigram over the bigram over the unigram
(MacKay & Peto 1995). Pairs and triples share buckets by a hash, so a table is as large
as it is, whatever the text.
"""

import numpy as np
from numpy.typing import NDArray

from effcli.engine.selection.passages import Ids, Passages, Text, flat

Floats = NDArray[np.float32]
BUCKETS = 2**22
STRENGTH = 3.0, 10.0  # of the prior of pairs, of triples
RARE = 1.0  # what is added to a context's count before it is inverted
FLOPS_PER_TOKEN = 12.0  # of a score: the arithmetic below, lookups are none
_FIRST, _SECOND, _THIRD = (np.uint32(n) for n in (2654435761, 2246822519, 3266489917))
_SHIFT = np.uint32(32 - 22)


class NGrams:
    """Counts of tokens, pairs and triples of a text."""

    def __init__(self, vocab_size: int) -> None:
        self._ones = np.zeros(vocab_size, dtype=np.int64)
        self._pairs = np.zeros(BUCKETS, dtype=np.int32)
        self._triples = np.zeros(BUCKETS, dtype=np.int32)
        self.tokens = 0

    def add(self, tokens: Ids) -> None:
        """Count a stretch of text."""
        self._ones += np.bincount(tokens, minlength=len(self._ones))
        pairs, triples = _buckets(tokens)
        self._pairs += np.bincount(pairs, minlength=BUCKETS).astype(np.int32)
        self._triples += np.bincount(triples, minlength=BUCKETS).astype(np.int32)
        self.tokens += len(tokens)

    def score(self, tokens: Ids) -> tuple[Floats, Floats]:
        """Of every token: its loss in nats, and how rare the two before it are as a pair, 0..1.

        Nothing is known before the first token, so it has the loss of its frequency.
        """
        total = self._ones.sum() + len(self._ones)
        known = self._ones.astype(np.float32)
        alone = ((known + 1) / np.float32(total))[tokens]
        pairs, triples = _buckets(tokens)
        both = self._pairs[pairs].astype(np.float32)
        two, three = (np.float32(one) for one in STRENGTH)
        chance = alone.copy()
        chance[1:] = (both + two * alone[1:]) / (known[tokens[:-1]] + two)
        all_three = self._triples[triples].astype(np.float32)
        chance[2:] = (all_three + three * chance[2:]) / (both[:-1] + three)
        rare = np.full(len(tokens), 1 / RARE, dtype=np.float32)
        rare[2:] = 1 / (both[:-1] + np.float32(RARE))
        return -np.log(chance), rare


def _buckets(tokens: Ids) -> tuple[Ids, Ids]:
    """Of each pair and of each triple, by its last tokens."""
    small = tokens.astype(np.uint32)
    with np.errstate(over="ignore"):
        one, two, three = small * _FIRST, small * _SECOND, small * _THIRD
        pairs = ((one[:-1] ^ (two[1:] + np.uint32(0x9E3779B9))) * _THIRD) >> _SHIFT
        mixed = (one[:-2] ^ (two[1:-1] >> np.uint32(5)) ^ (three[2:] << np.uint32(3))) * _SECOND
    return pairs.astype(np.int64), (mixed >> _SHIFT).astype(np.int64)


def counted(text: Text, passages: Passages, vocab_size: int) -> NGrams:
    """Tables of the tokens of passages."""
    table = NGrams(vocab_size)
    for part in passages.stretches():
        table.add(flat(text, passages.part(part)))
    return table


def scored(table: NGrams, text: Text, passages: Passages) -> tuple[Floats, Floats]:
    """Mean loss and mean rarity of every passage."""
    losses = np.empty(len(passages), dtype=np.float32)
    rarities = np.empty(len(passages), dtype=np.float32)
    for part in passages.stretches():
        some = passages.part(part)
        loss, rare = table.score(flat(text, some))
        losses[part], rarities[part] = means(loss, some.lengths), means(rare, some.lengths)
    return losses, rarities


def means(values: Floats, lengths: Ids) -> Floats:
    """Means over consecutive stretches of these lengths."""
    edges = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    sums = np.add.reduceat(values.astype(np.float64), edges)
    return (sums / np.maximum(1, lengths)).astype(np.float32)
