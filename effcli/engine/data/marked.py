"""A corpus whose documents begin with a mark of their language."""

from collections.abc import Sequence
from copy import copy

import numpy as np
from numpy.typing import NDArray

from effcli.engine.data.corpus import Corpus, Split
from effcli.engine.data.tokenizers import Tokenizer, describe
from effcli.errors import InputError
from effcli.registry import suggestion

_LABELS = "prepare it with --label-column, the field that says each document's language"


class MarkedSplit(Split):
    """A split that reads a mark in the place of each separator.

    A window that begins within a document has another mark of its language in the place of its
    first token, which is never predicted: so everything that is read is in a known language.
    """

    def __init__(
        self, inner: Split, marks: NDArray[np.int64], languages: int, separator: int
    ) -> None:
        self.tokens, self.documents, self.bytes = inner.tokens, inner.documents, inner.bytes
        self._inner, self._languages, self._separator = inner, languages, separator
        self._starts = inner.document_starts()
        labels = inner.labels()
        self._marks = marks[np.zeros(inner.documents, np.int64) if labels is None else labels]

    def read(self, starts: Sequence[int] | NDArray[np.int64], count: int) -> NDArray[np.int64]:
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

    def _mark(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._marks[np.searchsorted(self._starts, places, side="right") - 1]

    def document_starts(self) -> NDArray[np.int64]:
        """Where each document's mark is, in tokens."""
        return self._starts

    def labels(self) -> NDArray[np.uint8] | None:
        """The label of each document."""
        return self._inner.labels()


def marked(corpus: Corpus, languages: Sequence[str]) -> Corpus:
    """The same corpus, whose labels are languages; all of its languages are to be named."""
    names = corpus.label_names
    if not names:
        raise InputError(f"languages: the documents of {corpus.name} have no labels", _LABELS)
    for name in languages:
        if name not in names:
            message = f"languages: there is no text in {name!r} in {corpus.name}"
            raise InputError(message, suggestion(name, names))
    if missing := sorted(set(names) - set(languages)):
        hint = f"--languages {','.join(names)}"
        raise InputError(f"languages: {corpus.name} has {', '.join(missing)}, too", hint)
    tokenizer = corpus.tokenizer.marked(languages)
    marks = np.array([tokenizer.begin(name) for name in names], dtype=np.int64)
    found = copy(corpus)
    found.tokenizer = tokenizer
    told = {"marks": list(languages), "tokenizer": describe(tokenizer)}
    found.manifest = {**corpus.manifest, **told}
    separator = tokenizer.separator
    count = len(languages)
    found.splits = {n: MarkedSplit(s, marks, count, separator) for n, s in corpus.splits.items()}
    found.train, found.val = found.splits["train"], found.splits["val"]
    found.trusted = None
    return found


def language_of(tokens: NDArray[np.int64], tokenizer: Tokenizer) -> NDArray[np.int64]:
    """The number of the language at every position of windows, by the last mark; -1 before it."""
    is_mark = tokens >= tokenizer.unmarked
    at = np.maximum.accumulate(np.where(is_mark, np.arange(tokens.shape[1]), -1), axis=1)
    found = np.take_along_axis(tokens, np.maximum(at, 0), axis=1) - tokenizer.unmarked
    return np.where(at >= 0, found % max(1, len(tokenizer.marks)), -1)
