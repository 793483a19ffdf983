"""Whether one text stands in another: stretches of tokens, told apart by a hash.

From the text to look for, one stretch is taken every STEP tokens; in the other, every
place is looked at. So whoever has a stretch and STEP - 1 more tokens in a row of it is found.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from effcli.engine.data.corpus import Split
from effcli.engine.selection.passages import Ids, Passages, Text, flat

GRAM, STEP = 32, 32
BYTES = 128  # of a stretch, roughly; shorter ones stand in many texts by chance
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_BITS = np.uint64(42)  # a first look, in a table of 2^22 flags


def stretch(tokens: int, size: int) -> int:
    """Tokens of a stretch, for a text of so many tokens and bytes: a power of two."""
    return int(2 ** round(np.log2(max(1.0, BYTES * tokens / max(1, size)))))


def stretches_of(split: Split) -> "Grams":
    """What of a split of a corpus may stand in no other text."""
    return Grams(split, stretch(split.tokens, split.bytes))


class Grams:
    """Stretches of a text, to be found in others."""

    def __init__(self, text: Text, gram: int = GRAM, step: int = STEP) -> None:
        """`gram` is the length of a stretch, `step` how far the next one is, in tokens."""
        self._gram = gram
        starts = text.document_starts()
        edges = np.append(starts, text.tokens)
        hashes = _hashes(text.read([0], text.tokens)[0], gram)
        inside = [np.arange(a, b - gram + 1, step) for a, b in pairwise(edges)]
        counts = [len(places) for places in inside]
        wanted = hashes[np.concatenate(inside)] if sum(counts) else np.empty(0, dtype=np.uint64)
        self._hashes, first = np.unique(wanted, return_index=True)
        self._document = np.repeat(np.arange(len(starts)), counts)[first]
        self._counts = np.bincount(self._document, minlength=len(starts))
        self._flags = np.zeros(2 ** int(64 - _BITS), dtype=bool)
        self._flags[(self._hashes * _MIX) >> _BITS] = True

    def found(self, tokens: Ids) -> tuple[Ids, Ids]:
        """Where one of the stretches begins in a row of tokens, and which it is."""
        hashes = _hashes(tokens, self._gram)
        places = np.flatnonzero(self._flags[(hashes * _MIX) >> _BITS])
        at = np.searchsorted(self._hashes, hashes[places])
        at[at == len(self._hashes)] = 0
        real = self._hashes[at] == hashes[places] if len(self._hashes) else at > 0
        return places[real], at[real]

    def documents_in(self, text: Text) -> int:
        """How many of the documents stand in another text, more than half of each."""
        _, which = self.found(text.read([0], text.tokens)[0])
        hits = np.bincount(self._document[np.unique(which)], minlength=len(self._counts))
        return int((2 * hits > np.maximum(self._counts, 2)).sum())

    def passages_with(self, text: Text, passages: Passages) -> NDArray[np.bool_]:
        """The passages that one of the stretches begins in."""
        out = np.zeros(len(passages), dtype=bool)
        for part in passages.stretches():
            some = passages.part(part)
            places, _ = self.found(flat(text, some))
            owners = np.searchsorted(np.cumsum(some.lengths), places, side="right")
            out[part.start + owners] = True
        return out


def _hashes(tokens: Ids, gram: int) -> NDArray[np.uint64]:
    """Of the `gram` tokens from each place on: sums of powers, put together from halves."""
    places = len(tokens) - gram + 1
    if places < 1:
        return np.empty(0, dtype=np.uint64)
    block = (tokens.astype(np.uint64) + np.uint64(1)) * _MIX
    block ^= block >> np.uint64(29)
    length, power, done = 1, _BASE, 0
    rows = np.zeros(places, dtype=np.uint64)
    with np.errstate(over="ignore"):
        while length <= gram:
            if gram & length:
                rows = rows * power + block[done : done + places]
                done += length
            block = block[:-length] * power + block[length:]
            length, power = 2 * length, power * power
    return rows
