"""Token shards, written so that a full disk is an error and an interruption costs seconds."""

import hashlib
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

RESERVE = 2**24  # bytes of disk claimed ahead of writing


class SplitWriter:
    """Appends documents to a split: `<split>-00000.bin` … and `<split>.documents`.

    A document is the separator and its ids. Shards hold a fixed number of tokens, so
    a document may cross from one to the next. `state()` after `flush()` is all that is
    needed to go on after an interruption; whatever was written later is cut off.
    """

    def __init__(
        self, folder: Path, split: str, dtype: str, shard_tokens: int, state: dict[str, Any] | None
    ) -> None:
        self._folder = folder
        self._split = split
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._shard_tokens = shard_tokens
        state = state or {"tokens": 0, "documents": 0, "bytes": 0, "labels": False}
        self.tokens: int = state["tokens"]
        self.documents: int = state["documents"]
        self.bytes: int = state["bytes"]
        self._has_labels: bool = state["labels"]
        self._reserved = 0
        self._shard = self._open_shard()
        for path in folder.glob(f"{split}-*.bin"):  # begun after the state that is gone back to
            if path.name > shard_name(split, self.tokens // shard_tokens):
                path.unlink()
        if not self._has_labels:
            (folder / f"{split}.labels").unlink(missing_ok=True)
        self._starts = self._open(f"{split}.documents", 8 * self.documents)
        self._labels = self._open(f"{split}.labels", self.documents) if self._has_labels else None

    def _open(self, name: str, size: int) -> IO[bytes]:
        path = self._folder / name
        path.touch()
        stream = path.open("r+b")
        stream.truncate(size)
        stream.seek(size)
        return stream

    def _open_shard(self) -> IO[bytes]:
        index, used = divmod(self.tokens, self._shard_tokens)
        self._reserved = used * self._dtype.itemsize
        return self._open(shard_name(self._split, index), self._reserved)

    def add(self, ids: NDArray[Any], size: int, label: int) -> None:
        """Append a document of `size` bytes of text; `ids` begin with the separator."""
        self._starts.write(self.tokens.to_bytes(8, "little"))
        if label and self._labels is None:
            self._labels = self._open(f"{self._split}.labels", self.documents)  # zeros until here
            self._has_labels = True
        if self._labels is not None:
            self._labels.write(bytes([label]))
        self.documents += 1
        self.bytes += size
        while len(ids):
            room = self._shard_tokens - self.tokens % self._shard_tokens
            part, ids = ids[:room], ids[room:]
            self._write(part.astype(self._dtype, copy=False).tobytes())
            self.tokens += len(part)
            if len(part) == room:
                self._finish_shard()
                self._shard = self._open_shard()

    def _write(self, data: bytes) -> None:
        at = self._shard.tell()
        if at + len(data) > self._reserved and hasattr(os, "posix_fallocate"):
            capacity = self._shard_tokens * self._dtype.itemsize
            claim = min(max(RESERVE, len(data)), capacity - self._reserved)
            os.posix_fallocate(self._shard.fileno(), self._reserved, claim)
            self._reserved += claim
        self._shard.write(data)

    def _finish_shard(self) -> None:
        self._shard.flush()
        self._shard.truncate(self._shard.tell())
        os.fsync(self._shard.fileno())
        self._shard.close()

    def flush(self) -> None:
        """Put everything added so far safely on disk."""
        for stream in (self._shard, self._starts, self._labels):
            if stream is not None:
                stream.flush()
                os.fsync(stream.fileno())

    def state(self) -> dict[str, Any]:
        """All that is needed to go on from the last flush."""
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "bytes": self.bytes,
            "labels": self._has_labels,
        }

    def abandon(self) -> None:
        """Let go of the files, wherever they are."""
        for stream in (self._shard, self._starts, self._labels):
            if stream is not None:
                stream.close()

    def close(self) -> dict[str, Any]:
        """Finish every file and describe the split, hashes included."""
        self._finish_shard()
        names = [f"{self._split}.documents"]
        for stream in (self._starts, self._labels):
            if stream is not None:
                stream.flush()
                os.fsync(stream.fileno())
                stream.close()
        if self._labels is not None:
            names.append(f"{self._split}.labels")
        count = -(-self.tokens // self._shard_tokens)
        shards = [shard_name(self._split, index) for index in range(count)]
        if count == 0 or self.tokens % self._shard_tokens == 0:  # opened, but not needed
            (self._folder / shard_name(self._split, count)).unlink(missing_ok=True)
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "bytes": self.bytes,
            "shards": shards,
            "files": {name: describe_file(self._folder / name) for name in [*shards, *names]},
        }


def shard_name(split: str, index: int) -> str:
    """The file of a shard."""
    return f"{split}-{index:05d}.bin"


def describe_file(path: Path) -> dict[str, Any]:
    """Size and hash of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
