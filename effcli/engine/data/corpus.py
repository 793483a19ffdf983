"""A prepared corpus: a folder of token shards and a manifest that says what is in it."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effcli.engine.data.order import training_order
from effcli.engine.data.source import TRUSTED
from effcli.engine.data.tokenizers import Tokenizer, describe
from effcli.engine.data.write import describe_file, shard_name
from effcli.engine.runs.files import read_json, write_text
from effcli.errors import CheckError, InputError
from effcli.registry import suggestion
from effcli.settings.corpora import CORPUS_FILE, MIX_HINT, is_mix, prepared, root

SCHEMA = 1
CHECKED_WHEN_OPENED = 2**28  # bytes; smaller corpora are hashed every time, it costs no second


def remember(folder: Path) -> None:
    """Make a corpus the one that commands take by default."""
    root().mkdir(parents=True, exist_ok=True)
    write_text(root() / ".last", str(folder.resolve()))


def locate(data: str | None) -> Path:
    """The folder of a corpus: by path, by name, or the one prepared last."""
    if data is None:
        try:
            folder = Path((root() / ".last").read_text("utf8"))
        except OSError:
            hint = "run `eff prepare` first, or name a corpus with --data"
            raise InputError(f"no corpus was prepared in {root()}/", hint) from None
    elif is_mix(data):
        raise InputError(f"{data!r} is a mix, which has no folder", MIX_HINT)
    else:
        named = root() / data
        folder = named if (named / CORPUS_FILE).is_file() else Path(data)
    if not (folder / CORPUS_FILE).is_file():
        known = prepared()
        hint = suggestion(str(data), known) if known else "run `eff prepare` first"
        raise InputError(f"there is no corpus {str(data or folder)!r}", hint)
    return folder


def manifest_hash(manifest: dict[str, Any]) -> str:
    """Hash of a manifest's content, which the manifest itself carries as `sha256`."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _is_sound(manifest: dict[str, Any]) -> bool:
    """Whether a manifest speaks of a corpus that can be, in files that are in its folder."""
    limit, size = manifest["shard_tokens"], np.dtype(manifest["dtype"]).itemsize
    if limit < 1 or manifest["dtype"] not in ("uint16", "uint32"):
        return False
    for name, entry in manifest["splits"].items():
        counts = [entry[key] for key in ("tokens", "documents", "bytes")]
        files, shards = entry["files"], -(-entry["tokens"] // limit)
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            return False
        if len(entry["shards"]) != shards or shards > len(files):
            return False
        if entry["shards"] != [shard_name(name, index) for index in range(shards)]:
            return False
        if sum(files[shard]["bytes"] for shard in entry["shards"]) != entry["tokens"] * size:
            return False
        if any(Path(file).name != file for file in files):
            return False
    return True


class Split:
    """The tokens of one split, memory-mapped, as one long row."""

    def __init__(
        self,
        folder: Path,
        entry: dict[str, Any],
        dtype: str,
        shard_tokens: int,
        vocab_size: int = 2**32,
    ) -> None:
        self.tokens: int = entry["tokens"]
        self.in_row = self.tokens  # which no other corpus interrupts
        self.documents: int = entry["documents"]
        self.bytes: int = entry["bytes"]
        self._folder, self._entry = folder, entry
        self._shard_tokens, self._vocab_size = shard_tokens, vocab_size
        self._dtype = np.dtype(dtype).newbyteorder("<")

    @cached_property
    def _shards(self) -> list[NDArray[Any]]:
        names = self._entry["shards"]
        return [np.memmap(self._folder / name, dtype=self._dtype, mode="r") for name in names]

    def windows(self, length: int) -> int:
        """How many windows of `length` tokens there are, each with one more token to predict."""
        return max(0, (self.tokens - 1) // length)

    def spread(self, length: int, most: int) -> NDArray[np.int64]:
        """Where at most so many windows of `length` tokens begin, evenly over the split."""
        there = self.windows(length)
        count = min(there, most)
        return self.begins(np.arange(count, dtype=np.int64) * there // max(1, count), length)

    def begins(self, windows: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Where the windows of `length` tokens with these numbers begin."""
        return windows * length

    def order(self, start: int, count: int, length: int, seed: int) -> NDArray[np.int64]:
        """The windows that are read from the place `start` on: of an endless order."""
        return training_order(start, count, self.windows(length), seed)

    def stretches(self, tokens: int) -> list[tuple[int, int]]:
        """Where so many tokens lie, the first of every corpus: from where to where."""
        return [(0, tokens)]

    def read(self, starts: Sequence[int] | NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """`count` tokens from each start, as an array of shape (starts, count)."""
        places = np.asarray(starts, dtype=np.int64)
        out = self._gather(places, count)
        if out.max(initial=0) >= self._vocab_size:  # a model would look beyond its embedding
            raise InputError(f"{self._folder} holds ids that its tokenizer does not have")
        return out

    def _gather(self, places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        out = np.empty((len(places), count), dtype=np.int64)
        if not out.size:
            return out
        shard, behind = (
            int(edge) // self._shard_tokens for edge in (places.min(), places.max() + count - 1)
        )
        if shard == behind:  # all of it in one shard
            offsets = places - shard * self._shard_tokens
            out[:] = self._shards[shard][offsets[:, None] + np.arange(count)]
            return out
        for row, start in enumerate(places):
            shard, offset = divmod(int(start), self._shard_tokens)
            filled = 0
            while filled < count:  # perhaps the window goes on in the next shard
                part = self._shards[shard][offset : offset + count - filled]
                out[row, filled : filled + len(part)] = part
                shard, offset, filled = shard + 1, 0, filled + len(part)
        return out

    def document_starts(self) -> NDArray[np.int64]:
        """Where each document's separator is, in tokens."""
        name = next(n for n in self._entry["files"] if n.endswith(".documents"))
        return np.fromfile(self._folder / name, "<u8", self.documents).astype(np.int64)

    def labels(self) -> NDArray[np.uint8] | None:
        """The label of each document; none where all have the first one, or there are none."""
        name = next((n for n in self._entry["files"] if n.endswith(".labels")), None)
        if name is None:
            return None
        return np.fromfile(self._folder / name, np.uint8, self.documents)


class Corpus:
    """A folder of shards, with its tokenizer and its manifest."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tokenizer = Tokenizer.load(folder / "tokenizer.json")
        if describe(self.tokenizer) != manifest["tokenizer"]:
            raise InputError(f"{folder}: the tokenizer is not the one the shards were made with")
        vocab_size = self.tokenizer.vocab_size
        self.splits = {
            name: Split(folder, entry, manifest["dtype"], manifest["shard_tokens"], vocab_size)
            for name, entry in manifest["splits"].items()
        }
        self.train, self.val = self.splits["train"], self.splits["val"]
        self.trusted = self.splits.get(TRUSTED)

    @classmethod
    def open(cls, folder: Path, *, check: bool = True) -> "Corpus":
        """Open a corpus; a file that is missing, cut short or (if small) changed is an error."""
        manifest = read_json(folder / CORPUS_FILE)
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            message = f"{folder / CORPUS_FILE} is not a corpus of this version"
            raise InputError(message, "prepare it again with --force")
        if manifest.pop("sha256", None) != manifest_hash(manifest):
            hint = "prepare it again with --force"
            raise InputError(f"{folder / CORPUS_FILE} is not what was written", hint)
        try:
            if not _is_sound(manifest):
                raise InputError(f"{folder / CORPUS_FILE} makes no sense", "prepare it again")
            corpus = cls(folder, manifest)
            files = {k: v for s in manifest["splits"].values() for k, v in s["files"].items()}
            wrong = [k for k, v in files.items() if (folder / k).stat().st_size != v["bytes"]]
            is_small = sum(v["bytes"] for v in files.values()) <= CHECKED_WHEN_OPENED
        except (KeyError, TypeError, ValueError, AttributeError, FileNotFoundError) as error:
            raise InputError(f"{folder} is damaged: {error}", "prepare it again") from None
        if check and (damaged := wrong or (corpus.damaged() if is_small else [])):
            raise InputError(f"{folder / damaged[0]} is damaged", "prepare it again with --force")
        return corpus

    def first(self, share: float) -> "Corpus":
        """The same with only the beginning of its training text, which its hash then says."""
        if share == 1:
            return self
        tokens = max(1, int(self.train.tokens * share))
        documents = int(np.searchsorted(self.train.document_starts(), tokens))
        size = {"tokens": tokens, "documents": documents, "bytes": int(self.train.bytes * share)}
        splits = self.manifest["splits"]
        cut = {**splits, "train": {**splits["train"], **size}}
        return Corpus(self.folder, {**self.manifest, "splits": cut, "first": tokens})

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def data(self) -> str:
        """What it is found by from anywhere, as `--data` takes it."""
        return str(self.folder.resolve())

    @property
    def label_names(self) -> list[str]:
        """What each label of a document stands for; empty where documents have none."""
        first, *others = [list(source.get("labels", [])) for source in self.manifest["sources"]]
        return first if all(names == first for names in others) else []

    @property
    def hash(self) -> str:
        """Names the content: the tokens of every split, and how many of them are read."""
        splits = self.manifest["splits"].values()
        files = {k: v["sha256"] for split in splits for k, v in split["files"].items()}
        cut = self.manifest.get("first", "")
        return hashlib.sha256(f"{sorted(files.items())!r}{cut}".encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """What a run writes down about its corpus."""
        return {
            "name": self.name,
            "hash": self.hash,
            "tokenizer": self.manifest["tokenizer"],
            "train_tokens": self.train.tokens,
            "entropy_bits_per_byte": self.manifest["entropy_bits_per_byte"],
        }

    def damaged(self) -> list[str]:
        """The files whose content is not what was written."""
        return [
            name
            for entry in self.manifest["splits"].values()
            for name, described in entry["files"].items()
            if not (self.folder / name).is_file() or describe_file(self.folder / name) != described
        ]

    @classmethod
    def verified(cls, folder: Path) -> tuple["Corpus", int]:
        """Hash every file again; returns how many there are, too."""
        if not (folder / CORPUS_FILE).is_file():
            raise InputError(f"there is no corpus in {folder}", "run `eff prepare` first")
        try:
            corpus = cls.open(folder, check=False)
        except InputError as error:
            raise CheckError(error.message, error.hint) from None
        if damaged := corpus.damaged():
            hint = "prepare the corpus again with --force"
            raise CheckError(f"{folder}: damaged: {', '.join(damaged)}", hint)
        parts = sum(len(entry["files"]) for entry in corpus.manifest["splits"].values())
        return corpus, parts + 2  # the manifest and the tokenizer have hashes of their own

    def summary(self, status: str) -> dict[str, Any]:
        """What `eff prepare` reports."""
        m = self.manifest
        kept = ("tokens", "documents", "bytes")
        return {
            "schema": 1,
            "command": "prepare",
            "status": status,
            "corpus": str(self.folder),
            "tokenizer": m["tokenizer"]["name"],
            "vocab_size": m["tokenizer"]["vocab_size"],
            "splits": {name: {k: s[k] for k in kept} for name, s in m["splits"].items()},
            "duplicates_removed": m["duplicates_removed"],
            "rejected": sum(m["rejected"].values()),
            "rejected_by_reason": m["rejected"],
            "mix": m["mix"],
            "seconds": m["seconds"],
            "tokens_per_second": m["tokens_per_second"],
        }


def tokenizer_of(data: str) -> Tokenizer:
    """The tokenizer of a corpus that is there already, by path or by name."""
    return Corpus.open(locate(data), check=False).tokenizer
