"""Scores of a corpus's passages, kept beside it: made once, billed to every run that uses them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effcli.engine.data.columns import packed, unpacked
from effcli.engine.data.corpus import Corpus
from effcli.engine.runs.files import read_json, write_bytes, write_json
from effcli.engine.selection.passages import Ids, Passages
from effcli.errors import InputError

SCHEMA = 4
FOLDER, MANIFEST, SCORES = "aql", "prep.json", "scores.parquet"
COLUMNS = {
    "document": np.int64,
    "start": np.int64,
    "length": np.int64,
    "copy": np.int32,
    "cluster": np.int16,
    "loss": np.float32,
    "excess": np.float32,
    "rarity": np.float32,
    "compression": np.float32,
    "ratio": np.float32,
    "overlaps": np.bool_,
}


@dataclass(frozen=True)
class Scores:
    """What is known of every passage of a pool before any training."""

    columns: Mapping[str, NDArray[Any]]
    facts: Mapping[str, Any]
    """What was done, what was found, and what it cost."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self["start"])

    @property
    def passages(self) -> Passages:
        """Where they are."""
        return Passages(self["document"], self["start"], self["length"])

    @property
    def clusters(self) -> int:
        """How many there are."""
        return int(self["cluster"].max()) + 1

    @property
    def is_gated(self) -> bool:
        """Whether trusted text says which passages are good."""
        return bool(self.facts["holdout"]["mode"] == "file")

    @property
    def is_trusted(self) -> bool:
        """Whether anything says that the pool is good, as a whole or in parts."""
        return bool(self.facts["holdout"]["mode"] != "none")

    def eligible(self, copies: int) -> NDArray[np.bool_]:
        """Passages that may be read: held-out text and more than so many copies may not."""
        return readable(self.columns) & (self["copy"] < copies)


def sound(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Passages whose scores are numbers."""
    is_sound: NDArray[np.bool_] = np.isfinite(columns["loss"]) & np.isfinite(columns["ratio"])
    return is_sound


def readable(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Of those, the ones without held-out text."""
    is_readable: NDArray[np.bool_] = sound(columns) & ~columns["overlaps"]
    return is_readable


def key(request: Mapping[str, Any]) -> str:
    """Names what was asked for."""
    text = json.dumps(request, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def place(corpus: Corpus, request: Mapping[str, Any]) -> Path:
    """The folder of a sidecar."""
    return corpus.folder / FOLDER / key(request)


def write(folder: Path, columns: Mapping[str, NDArray[Any]], facts: dict[str, Any]) -> Scores:
    """Keep scores: the manifest, which names the rest, is written last."""
    typed: dict[str, NDArray[Any]] = {
        name: np.asarray(columns[name]).astype(kind) for name, kind in COLUMNS.items()
    }
    data = packed(typed)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / SCORES, data)
    facts = {"schema": SCHEMA, **facts, "sha256": hashlib.sha256(data).hexdigest()}
    write_json(folder / MANIFEST, facts)
    return Scores(typed, facts)


def read(folder: Path, corpus: Corpus) -> Scores:
    """Scores that were kept; those of another text, or damaged ones, are refused."""
    hint = f"make them again: `eff aql prep {corpus.name} --force`"
    facts = read_json(folder / MANIFEST)
    try:
        data = (folder / SCORES).read_bytes()
        if facts["schema"] != SCHEMA or facts["sha256"] != hashlib.sha256(data).hexdigest():
            raise InputError(f"the scores in {folder} are not what was written", hint)
        if facts["corpus"] != corpus.hash:
            raise InputError(f"the scores in {folder} are of another text", hint)
        found = unpacked(data, COLUMNS)
        columns: dict[str, NDArray[Any]] = {
            name: found[name].astype(kind, copy=False) for name, kind in COLUMNS.items()
        }
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"the scores in {folder} are damaged: {error}", hint) from None
    _require_inside(columns, corpus, folder, hint)
    return Scores(columns, facts)


def _require_inside(columns: Mapping[str, Ids], corpus: Corpus, folder: Path, hint: str) -> None:
    starts, lengths = columns["start"], columns["length"]
    is_sound = len(starts) and starts.min() >= 0 and lengths.min() >= 1
    if (
        not is_sound
        or (starts + lengths).max() > corpus.train.tokens
        or columns["cluster"].min() < 0
    ):
        raise InputError(f"the scores in {folder} make no sense", hint)
