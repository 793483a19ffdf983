"""A mix of prepared corpora by shares of their tokens, made while it is read."""

import hashlib
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effcli.engine.data.corpus import Corpus, Split, locate
from effcli.engine.data.local import MOST_LABELS
from effcli.engine.data.order import dealt, mix64, training_order
from effcli.engine.data.tokenizers import describe
from effcli.errors import InputError
from effcli.settings.corpora import MIX_HINT, is_mix, shares_of

Numbers = NDArray[np.int64]


def opened(data: str | None) -> Corpus:
    """The corpus, or the mix of corpora, that `--data` names."""
    if data is None or not is_mix(data):
        return Corpus.open(locate(data))
    shares = shares_of(data, "--data")
    return Mixed([Corpus.open(locate(name)) for name in shares], list(shares.values()))


class MixedSplit(Split):
    """The beginnings of several splits, one after the other; no window is of two of them."""

    def __init__(self, parts: Sequence[Split], labels: Sequence[Sequence[int]]) -> None:
        self._parts = parts
        self._labels = labels  # in the mix, of those of each part
        self.tokens = sum(part.tokens for part in parts)
        self.documents = sum(part.documents for part in parts)
        self.bytes = sum(part.bytes for part in parts)
        self.in_row = min(part.tokens for part in parts)
        self._ends = np.cumsum([part.tokens for part in parts])
        self._begins = self._ends - [part.tokens for part in parts]

    def _windows(self, length: int) -> list[int]:
        return [part.windows(length) for part in self._parts]

    def windows(self, length: int) -> int:
        """How many windows of `length` tokens there are, each with one more to predict."""
        return sum(self._windows(length))

    def begins(self, windows: Numbers, length: int) -> Numbers:
        """Where the windows of `length` tokens with these numbers begin."""
        ends = np.cumsum(sizes := self._windows(length))
        part = np.searchsorted(ends, windows, side="right")
        return np.asarray(self._begins[part] + (windows - (ends - sizes)[part]) * length)

    def order(self, start: int, count: int, length: int, seed: int) -> Numbers:
        """The windows that are read from the place `start` on: the parts take turns.

        Each part is read in an order of its own, the first in that of its windows alone.
        """
        sizes, first = self._windows(length), 0
        owners, turns = dealt(np.arange(start, start + count, dtype=np.int64), sizes)
        order = np.empty(count, dtype=np.int64)
        for part, size in enumerate(sizes):
            own = turns[mine := owners == part]  # one after the other
            if len(own):
                key = mix64(mix64(seed) + part) if part else seed
                order[mine] = first + training_order(int(own[0]), len(own), size, key)
            first += size
        return order

    def stretches(self, tokens: int) -> list[tuple[int, int]]:
        """Where so many tokens lie, the first of every part: from where to where."""
        sizes = [part.tokens * tokens // max(1, self.tokens) for part in self._parts]
        begins = [int(begin) for begin in self._begins]
        return [(begin, begin + size) for begin, size in zip(begins, sizes, strict=True)]

    def read(self, starts: Sequence[int] | Numbers, count: int) -> Numbers:
        """`count` tokens from each start, as an array of shape (starts, count)."""
        places = np.asarray(starts, dtype=np.int64)
        assert (places + count <= self.tokens).all()
        out = np.empty((len(places), count), dtype=np.int64)
        for part, begin, end in zip(self._parts, self._begins, self._ends, strict=True):
            inside = (places >= begin) & (places + count <= end)
            out[inside] = part.read(places[inside] - begin, count)
            for row in np.flatnonzero((begin <= places) & (places < end) & ~inside):
                own = int(end - places[row])  # what follows is another corpus's
                out[row, :own] = part.read([int(places[row] - begin)], own)[0]
                out[row, own:] = self.read([int(end)], count - own)[0]
        return out

    def document_starts(self) -> Numbers:
        """Where each document's separator is, in tokens."""
        begins = zip(self._parts, self._begins, strict=True)
        return np.concatenate([part.document_starts() + begin for part, begin in begins])

    def labels(self) -> NDArray[np.uint8]:
        """The label of each document; of a corpus without labels, that corpus."""
        told = []
        for part, names in zip(self._parts, self._labels, strict=True):
            own = part.labels() if len(names) > 1 else None
            told.append(np.asarray(names)[np.zeros(part.documents, int) if own is None else own])
        return np.concatenate(told).astype(np.uint8)


class Mixed(Corpus):
    """Several corpora of the same tokens, as one: as much of each as the scarcest allows."""

    def __init__(
        self, corpora: Sequence[Corpus], shares: Sequence[float], text_share: float = 1.0
    ) -> None:
        self._corpora, self._given, self._text_share = corpora, shares, text_share
        self._shares = [share / sum(shares) for share in shares]  # of the tokens
        self.tokenizer, self.trusted = corpora[0].tokenizer, None
        for number, corpus in enumerate(corpora):
            self._require_fit(corpus, corpora[:number])
        names = self.label_names
        if len(names) > MOST_LABELS:
            raise InputError(f"{self} has {len(names)} labels, more than {MOST_LABELS}")
        labels = [[names.index(label) for label in _labels(corpus)] for corpus in corpora]
        self.train = MixedSplit(self._cut("train", text_share), labels)
        self.val = MixedSplit(self._cut("val"), labels)
        self.splits = {"train": self.train, "val": self.val}

    def _require_fit(self, corpus: Corpus, before: Sequence[Corpus]) -> None:
        if corpus.tokenizer.hash != self.tokenizer.hash:
            hint = f"prepare its text again with --tokenizer like:{self._corpora[0]}"
            raise InputError(f"{corpus} has other tokens than {self._corpora[0]}", hint)
        if any(corpus.hash == other.hash for other in before):
            raise InputError(f"{corpus} is in the mix twice: give it one share")
        if "," in corpus.data:
            raise InputError(f"{corpus.data} cannot be in a mix", "its path has a comma")

    def _cut(self, split: str, text_share: float = 1.0) -> list[Split]:
        """The same number of tokens for each unit of its share, of every corpus."""
        parts = [corpus.splits[split] for corpus in self._corpora]
        pairs = list(zip(parts, self._shares, strict=True))
        tokens = min(part.tokens / share for part, share in pairs) * text_share
        return [_first(part, min(part.tokens, round(tokens * share))) for part, share in pairs]

    def first(self, share: float) -> "Mixed":
        """The same with only the beginnings of its training text, which its hash then says."""
        return self if share == 1 else Mixed(self._corpora, self._given, share)

    def __str__(self) -> str:
        return self.name

    def _titled(self, titles: Sequence[str]) -> str:
        return ",".join(f"{title}:{s!r}" for title, s in zip(titles, self._given, strict=True))

    @property
    def name(self) -> str:
        """The names and shares, as they are given to `--data`."""
        return self._titled([corpus.name for corpus in self._corpora])

    @property
    def data(self) -> str:
        """The same with full paths."""
        return self._titled([corpus.data for corpus in self._corpora])

    @property
    def label_names(self) -> list[str]:
        """Those of the corpora; one without labels is one itself."""
        return list(dict.fromkeys(name for corpus in self._corpora for name in _labels(corpus)))

    @property
    def hash(self) -> str:
        """Names the content: that of every corpus, its share, and how much of it is read."""
        parts = [
            (corpus.hash, share) for corpus, share in zip(self._corpora, self._shares, strict=True)
        ]
        cut = "" if self._text_share == 1 else self.train.tokens
        return hashlib.sha256(f"mix {parts!r}{cut}".encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """What a run writes down about its corpora."""
        text = self.train.stretches(self.train.tokens)
        told = zip(self._corpora, self._shares, text, strict=True)
        return {
            "name": self.name,
            "hash": self.hash,
            "tokenizer": describe(self.tokenizer),
            "train_tokens": self.train.tokens,
            "entropy_bits_per_byte": None,
            "parts": [
                {"name": c.name, "hash": c.hash, "share": share, "train_tokens": stop - start}
                for c, share, (start, stop) in told
            ],
        }

    def __getattr__(self, name: str) -> Any:
        if name in ("folder", "manifest"):
            raise InputError(f"{self} is a mix, which has no folder", MIX_HINT)
        raise AttributeError(name)


def _labels(corpus: Corpus) -> list[str]:
    return corpus.label_names or [corpus.name]


def _first(split: Split, tokens: int) -> Split:
    """The beginning of a split."""
    part = copy(split)
    part.tokens = part.in_row = tokens
    part.documents = int(np.searchsorted(split.document_starts(), tokens))
    part.bytes = split.bytes * tokens // max(1, split.tokens)
    return part
