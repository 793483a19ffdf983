"""Trusted text: what good text is, to tell it from the rest of a pool."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from effcli.engine.data.corpus import Corpus
from effcli.engine.data.local import Local, find
from effcli.engine.data.source import items
from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.data.write import describe_file
from effcli.engine.selection.overlap import Grams
from effcli.engine.selection.passages import Ids, Text
from effcli.errors import InputError

AUTO = "auto"
FEWEST = 64  # passages, below which nothing can be learned from it
ALIKE = ("python", "grammar", "hub")  # kinds of sources whose splits are of one text
Mode = str
"""`file`: trusted text is given; `alike`: the pool is like the held-out text; `none`."""


class Row:
    """Tokens of several documents in one row, in memory."""

    def __init__(self, documents: list[Ids]) -> None:
        lengths = np.array([len(one) for one in documents], dtype=np.int64)
        self._row = np.concatenate(documents)
        self._starts = np.cumsum(lengths) - lengths
        self.tokens = len(self._row)

    def read(self, starts: Ids | list[int], count: int) -> Ids:
        """`count` tokens from each start."""
        places: Ids = np.asarray(starts, dtype=np.int64)[:, None] + np.arange(count)
        return self._row[places]

    def document_starts(self) -> Ids:
        """Where each document begins."""
        return self._starts


def mode_of(holdout: str, corpus: Corpus) -> Mode:
    """What is known about good text, without reading any."""
    if holdout != AUTO or corpus.trusted is not None:
        return "file"
    sources, rules = corpus.manifest["sources"], corpus.manifest["split_rule"].values()
    is_split_here = all(rule != "its own" for rule in rules)
    is_alike = all(source.get("kind") in ALIKE for source in sources)
    return "alike" if is_split_here or is_alike else "none"


def describe(holdout: str, corpus: Corpus) -> dict[str, Any]:
    """What names trusted text by its content."""
    mode = mode_of(holdout, corpus)
    if holdout == AUTO:  # a split of the corpus has its hash
        return {"mode": mode}
    path = Path(holdout)
    if not path.exists():
        hint = "name a file of text that you trust, or leave --holdout out"
        raise InputError(f"there is no file {holdout} to hold out", hint)
    files = [describe_file(file)["sha256"] for file in find(holdout)]
    named = hashlib.sha256(repr(files).encode()).hexdigest()
    return {"mode": mode, "name": path.name, "sha256": named}


def read(holdout: str, corpus: Corpus, held_out: Grams) -> Text | None:
    """Trusted text as this corpus's tokens, if there is any; it must hold no validation text."""
    text: Text | None = corpus.trusted
    if holdout != AUTO:
        text = _of_files(holdout, corpus.tokenizer)
    if text is None:
        return None
    if count := held_out.documents_in(text):
        name = "the trusted text" if holdout == AUTO else holdout
        message = f"{name} holds {count} of the documents that the run is judged on"
        raise InputError(message, "trusted text and validation text must be different documents")
    return text


def _of_files(place: str, tokenizer: Tokenizer) -> Row:
    documents = []
    for item in items(Local(place).rows("train"), None):
        if not item.rejected and (ids := tokenizer.encode_several([item.text])[0]) is not None:
            documents.append(np.concatenate(([tokenizer.separator], ids)).astype(np.int64))
    if not documents:
        raise InputError(f"there is no text in {place}", "name a file of text that you trust")
    return Row(documents)
