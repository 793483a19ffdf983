"""What teachers said about a corpus, kept beside it: made once, billed to every run that uses it.

What is said about a token belongs to all that comes before it in its window. So windows are
numbered on a grid, as batches are, and a cache is of one length of windows. Its files are rows
of windows in the order in which they were asked for, and only ever grow; the manifest says how
many rows there are and what their hash is, so that at any time there is a whole cache of some
windows.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from effcli.engine.data.corpus import Corpus, manifest_hash
from effcli.engine.objectives.signals import Mode, Said
from effcli.engine.runs.files import read_json
from effcli.engine.teaching.teachers import Teachers
from effcli.errors import InputError
from effcli.units import clock, flops

SCHEMA = 1
FOLDER, MANIFEST = "teachers", "cache.json"
MOST_DRAWS = 1024
TOKENS_AT_ONCE = 8192
BLOCK = 2**20
PRECISIONS = ("bfloat16", "float32")  # the coarser one first

Ids = NDArray[np.int64]


class Digest(Protocol):
    """A hash that can be gone on with."""

    def update(self, data: bytes, /) -> None:
        """Take in more."""

    def hexdigest(self) -> str:
        """Of all so far."""
        ...


@dataclass(frozen=True)
class Form:
    """In which form what a teacher says is kept."""

    mode: Mode = "sampled"
    count: int = 12
    """Draws at each position, or its most probable ids; 0 for `online`, which keeps nothing."""

    @classmethod
    def parse(cls, text: str, vocab_size: int) -> "Form":
        """Read `sampled:12`, `topk:32` or `online`."""
        mode, _, count = text.partition(":")
        most = {"online": 0, "sampled": MOST_DRAWS, "topk": vocab_size}.get(mode)
        if most is None:
            raise InputError(f"there is no cache {text!r}", "sampled:12, topk:32 or online")
        if mode == "online" and not count:
            return cls("online", 0)
        if not (count.isascii() and count.isdecimal() and 1 <= int(count) <= most):
            allowed = "takes no number" if mode == "online" else f"takes a number from 1 to {most}"
            raise InputError(f"there is no cache {text!r}", f"{mode} {allowed}")
        return cls("sampled" if mode == "sampled" else "topk", int(count))


@dataclass(frozen=True)
class Array:
    """One file of a cache: a row for each window."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of one row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Request:
    """All that a cache depends on."""

    corpus: Corpus
    hashes: tuple[str, ...]
    """Of the teachers."""
    width: int
    """Of the last features of all of them together."""
    form: Form
    context: int
    """Tokens of a window; window w begins at token w · context of the training text."""
    seed: int = 0
    """Decides what is drawn."""

    @classmethod
    def of(cls, corpus: Corpus, teachers: Teachers, form: Form, context: int) -> "Request":
        """What some teachers are to say about the windows that a student will read."""
        teachers.require_context(context)
        return cls(corpus, teachers.hashes, sum(teachers.widths), form, context)

    def facts(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "teachers": list(self.hashes),
            "width": self.width,
            "tokenizer": self.corpus.tokenizer.hash,
            "corpus": self.corpus.hash,
            "context": self.context,
            "mode": self.form.mode,
            "count": self.form.count,
            "seed": self.seed,
        }

    @property
    def folder(self) -> Path:
        """Where it is kept, once for all who ask for the same."""
        text = json.dumps([SCHEMA, self.facts()], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self.corpus.folder / FOLDER / key

    @property
    def windows(self) -> int:
        """How many the text has."""
        return self.corpus.train.windows(self.context)

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """What is written about each window, by the name of its file."""
        time, count = self.context, self.form.count
        small = self.corpus.tokenizer.vocab_size <= 2**16
        arrays = {
            "windows.bin": Array("<i8", ()),
            "ids.bin": Array("<u2" if small else "<u4", (time, count)),
            "pooled.bin": Array("<f2", (self.width,)),
        }
        if self.form.mode == "topk":
            arrays["logs.bin"] = Array("<f2", (time, count + 1))
        return arrays

    @property
    def at_once(self) -> int:
        """Windows that are asked for at one time."""
        return max(1, TOKENS_AT_ONCE // self.context)

    @property
    def window_bytes(self) -> int:
        """What one window takes on disk."""
        return sum(array.bytes for array in self.arrays.values())


@dataclass(frozen=True)
class Cost:
    """What was spent on some windows."""

    flops: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{flops(self.flops)} FLOPs, {clock(self.seconds)}"


class TeacherCache:
    """What was said about some windows, read by their numbers."""

    def __init__(
        self, request: Request, manifest: Mapping[str, Any], digests: Mapping[str, Digest]
    ) -> None:
        self.request, self.count = request, int(manifest["count"])
        self.made = Cost(float(manifest["flops"]), float(manifest["seconds"]))
        self.precision = str(manifest["precision"])
        self.digests = digests
        """Of what is in each file, to be gone on with."""
        self._arrays = {name: self._mapped(name) for name in request.arrays}
        self._places = np.full(request.windows, -1, dtype=np.int64)
        self._places[self.windows] = np.arange(self.count)

    def _mapped(self, name: str) -> NDArray[Any]:
        array = self.request.arrays[name]
        shape = (self.count, *array.shape)
        if not self.count:  # nothing cannot be mapped
            return np.empty(shape, dtype=array.dtype)
        return np.memmap(self.request.folder / name, dtype=array.dtype, mode="r", shape=shape)

    @classmethod
    def open(cls, request: Request) -> "TeacherCache":
        """What is there; an InputError if it is not what was written, or not what is asked for."""
        manifest = read_json(request.folder / MANIFEST)
        try:
            return cls(request, manifest, _checked(request, manifest))
        except (OSError, KeyError, TypeError, ValueError) as error:
            message = f"the teacher's cache in {request.folder} cannot be used: {error}"
            raise InputError(message, "remove that folder, and it will be made again") from None

    @property
    def windows(self) -> Ids:
        """The numbers of the windows that are in it."""
        return np.asarray(self._arrays["windows.bin"])

    def missing(self, windows: Ids) -> Ids:
        """Those of some windows that are not in it, each once, in ascending order."""
        return np.unique(windows[self._places[windows] < 0])

    def said(self, windows: Ids) -> Said:
        """About a batch of windows."""
        places = self._found(windows)
        ids = self._arrays["ids.bin"][places]
        if ids.max(initial=0) >= self.request.corpus.tokenizer.vocab_size:
            raise InputError(f"{self.request.folder} holds ids that its tokenizer does not have")
        logs = self._arrays["logs.bin"][places] if "logs.bin" in self._arrays else None
        return Said(torch.from_numpy(ids), None if logs is None else torch.from_numpy(logs))

    def pooled(self, windows: Ids) -> NDArray[np.float16]:
        """Means over each window of the teachers' last features, side by side."""
        return np.asarray(self._arrays["pooled.bin"][self._found(windows)])

    def _found(self, windows: Ids) -> Ids:
        places = self._places[windows]
        if places.min(initial=0) < 0:
            number = int(windows[np.argmin(places)])
            message = f"the teacher's cache in {self.request.folder} lacks window {number}"
            raise InputError(message, "make it for every window that is read")
        return places

    def cost(self, windows: Ids) -> Cost:
        """What a run pays that reads these windows: their share, whoever had them made."""
        share = len(np.unique(windows)) / max(1, self.count)
        return Cost(self.made.flops * share, self.made.seconds * share)


def _checked(request: Request, manifest: Any) -> dict[str, Digest]:
    """The hash of what is in each file; an error that says what is wrong, if anything is."""
    content = dict(manifest)
    _require(content.pop("sha256") == manifest_hash(content), f"{MANIFEST} was changed")
    _require(content["schema"] == SCHEMA, "it is of another version")
    for name, value in request.facts().items():
        _require(content["request"][name] == value, f"it is of another {name}")
    count, costs = content["count"], (content["flops"], content["seconds"])
    is_number = type(count) is int and 0 <= count <= request.windows
    _require(is_number, "it has more windows than the text")
    _require(all(0 <= float(cost) < math.inf for cost in costs), "what it cost makes no sense")
    _require(content["precision"] in PRECISIONS, "its precision is unknown")
    digests = {}
    for name, array in request.arrays.items():
        digests[name] = digest = _prefix(request.folder / name, count * array.bytes)
        is_same = digest.hexdigest() == content["files"][name]
        _require(is_same, f"{name} is not what was written")
    windows = np.fromfile(request.folder / "windows.bin", "<i8", count)
    is_inside = windows.min(initial=0) >= 0 and windows.max(initial=0) < request.windows
    _require(is_inside and len(np.unique(windows)) == count, "its windows are not the text's")
    return digests


def _require(holds: object, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _prefix(path: Path, size: int) -> Digest:
    """The hash of the first `size` bytes of a file, which has to have so many."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while size > 0 and (block := stream.read(min(BLOCK, size))):
            digest.update(block)
            size -= len(block)
    _require(size == 0, f"{path.name} is cut short")
    return digest
