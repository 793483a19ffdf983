"""A corpus whose documents begin with a mark of their language."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effcli.engine.data.corpus import Corpus, Split
from effcli.engine.data.tokenizers import Tokenizer, describe
from effcli.errors import InputError
from effcli.registry import suggestion

Numbers = NDArray[np.int64]
_LABELS = "prepare it with --label-column, the field that says each document's language"


class MarkedSplit(Split):
    """A split that reads a mark in the place of each separator.

    A window that begins within a document has another mark of its language in the place of its
    first token, which is never predicted: so everything that is read is in a known language.
    """

    def __init__(self, inner: Split, marks: Numbers, languages: int, separator: int) -> None:
        self.tokens, self.documents, self.bytes = inner.tokens, inner.documents, inner.bytes
        self.in_row = inner.in_row
        self._inner, self._languages, self._separator = inner, languages, separator
        self._starts = inner.document_starts()
        labels = inner.labels()
        self._marks = marks[np.zeros(inner.documents, np.int64) if labels is None else labels]

    def read(self, starts: Sequence[int] | Numbers, count: int) -> Numbers:
        """`count` tokens from each start, as an array of shape (starts, count)."""
        places = np.asarray(starts, dtype=np.int64)
        out = self._inner.read(places, count)
        begins = out == self._separator
        rows, columns = np.nonzero(begins)
        out[rows, columns] = self._mark(places[rows] + columns)
        if count:
            within = ~begins[:, 0]
            out[within, 0] = self._mark(places[within]) + self._languages
        return out

    def windows(self, length: int) -> int:
        """How many windows of `length` tokens there are, each with one more to predict."""
        return self._inner.windows(length)

    def begins(self, windows: Numbers, length: int) -> Numbers:
        """Where the windows of `length` tokens with these numbers begin."""
        return self._inner.begins(windows, length)

    def order(self, start: int, count: int, length: int, seed: int) -> Numbers:
        """The windows that are read from the place `start` on."""
        return self._inner.order(start, count, length, seed)

    def stretches(self, tokens: int) -> list[tuple[int, int]]:
        """Where so many tokens lie, the first of every corpus: from where to where."""
        return self._inner.stretches(tokens)

    def document_starts(self) -> Numbers:
        """Where each document's mark is, in tokens."""
        return self._starts

    def labels(self) -> NDArray[np.uint8] | None:
        """The label of each document."""
        return self._inner.labels()

    def _mark(self, places: Numbers) -> Numbers:
        return self._marks[np.searchsorted(self._starts, places, side="right") - 1]


class Marked(Corpus):
    """A corpus whose labels are languages, all of which are named."""

    def __init__(self, inner: Corpus, languages: Sequence[str]) -> None:
        names = inner.label_names
        if not names:
            raise InputError(f"languages: the documents of {inner.name} have no labels", _LABELS)
        for name in languages:
            if name not in names:
                message = f"languages: there is no text in {name!r} in {inner.name}"
                raise InputError(message, suggestion(name, names))
        if missing := sorted(set(names) - set(languages)):
            hint = f"--languages {','.join(names)}"
            raise InputError(f"languages: {inner.name} has {', '.join(missing)}, too", hint)
        self._inner, self.languages = inner, tuple(languages)
        self.tokenizer = inner.tokenizer.marked(languages)
        marks = np.array([self.tokenizer.begin(name) for name in names], dtype=np.int64)
        how = (marks, len(languages), self.tokenizer.separator)
        self.splits = {name: MarkedSplit(split, *how) for name, split in inner.splits.items()}
        self.train, self.val, self.trusted = self.splits["train"], self.splits["val"], None

    @property
    def hash(self) -> str:
        """Names the content and the languages."""
        return hashlib.sha256(f"{self._inner.hash}{self.languages}".encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """What a run writes down about its corpus."""
        told = {"hash": self.hash, "tokenizer": describe(self.tokenizer)}
        return {**self._inner.identity(), **told, "languages": list(self.languages)}

    @property
    def name(self) -> str:
        """That of the corpus."""
        return self._inner.name

    @property
    def data(self) -> str:
        """What names the corpus anywhere."""
        return self._inner.data

    @property
    def label_names(self) -> list[str]:
        """Those of the corpus, in its order."""
        return self._inner.label_names

    def __getattr__(self, name: str) -> Any:
        if name in ("folder", "manifest"):
            return getattr(self._inner, name)
        raise AttributeError(name)


def language_of(tokens: Numbers, tokenizer: Tokenizer) -> Numbers:
    """The number of the language at every position of windows, by the last mark; -1 before it."""
    is_mark = tokens >= tokenizer.unmarked
    at = np.maximum.accumulate(np.where(is_mark, np.arange(tokens.shape[1]), -1), axis=1)
    found = np.take_along_axis(tokens, np.maximum(at, 0), axis=1) - tokenizer.unmarked
    return np.where(at >= 0, found % max(1, len(tokenizer.marks)), -1)
