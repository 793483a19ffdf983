"""The units of a selection: documents, the long ones in parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
CHUNK = 2**21  # tokens that are worked on at one time


class Text(Protocol):
    """Tokens in one long row, and where each document begins."""

    tokens: int

    def read(self, starts: Ids | list[int], count: int) -> Ids:
        """`count` tokens from each start."""
        ...

    def document_starts(self) -> Ids:
        """Where each document begins, in tokens."""
        ...


@dataclass(frozen=True)
class Passages:
    """Stretches of a text, in its order; a passage's id is its place in the whole list."""

    documents: Ids
    """The document that each is of."""
    starts: Ids
    """In tokens."""
    lengths: Ids
    """In tokens."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def tokens(self) -> int:
        """Of all of them."""
        return int(self.lengths.sum())

    def part(self, chosen: Ids | slice) -> "Passages":
        """Some of them."""
        return Passages(self.documents[chosen], self.starts[chosen], self.lengths[chosen])

    def at(self, places: Ids) -> Ids:
        """The last one that begins at or before each place; -1 before the first."""
        return np.searchsorted(self.starts, places, side="right") - 1

    def stretches(self) -> Iterator[slice]:
        """Slices of about CHUNK tokens."""
        sizes, start = np.cumsum(self.lengths), 0
        while start < len(self):
            before = sizes[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(sizes, before + CHUNK, side="right")))
            yield slice(start, stop)
            start = stop


def documents_of(text: Text) -> tuple[Ids, Ids]:
    """Where each document begins, and how long it is."""
    begins = text.document_starts()
    return begins, np.diff(np.append(begins, text.tokens))


def passages_of(text: Text, longest: int) -> Passages:
    """Every document of a text, cut evenly where it has more than `longest` tokens."""
    begins, lengths = documents_of(text)
    counts = np.maximum(1, -(-lengths // longest))
    documents = np.repeat(np.arange(len(begins)), counts)
    number = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    whole, parts = lengths[documents], counts[documents]
    starts = begins[documents] + number * whole // parts
    ends = begins[documents] + (number + 1) * whole // parts
    return Passages(documents, starts, ends - starts)


def flat(text: Text, passages: Passages) -> Ids:
    """The tokens of passages, one after the other; neighbors are read together."""
    ends = passages.starts + passages.lengths
    breaks = np.flatnonzero(passages.starts[1:] != ends[:-1]) + 1
    firsts, lasts = np.concatenate(([0], breaks)), np.concatenate((breaks, [len(passages)])) - 1
    if not len(passages):
        return np.empty(0, dtype=np.int64)
    pieces = [
        text.read([int(start)], int(end - start))[0]
        for start, end in zip(passages.starts[firsts], ends[lasts], strict=True)
    ]
    return np.concatenate(pieces)
