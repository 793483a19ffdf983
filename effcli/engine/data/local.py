"""Files of your own: plain text, JSON lines (also compressed), Parquet and Arrow."""

import bz2
import glob
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import IO, Any

from effcli.engine.data.source import Row, cut_bytes, label_name, parts
from effcli.engine.data.write import describe_file
from effcli.errors import InputError, ResourceError

SEPARATOR = "<|endoftext|>"
BLOCK = 2**20  # bytes read at a time
LONGEST_LINE = 2**26  # bytes of one line of JSON; a longer one is rejected, not held in memory
MOST_LABELS = 2**8  # a label is a byte
PLAIN = (".txt", ".md")
SUFFIXES = (*PLAIN, ".jsonl", ".ndjson", ".parquet", ".arrow")
Pair = tuple[object, object]  # what stands where the text is expected, and where the label
_OPENERS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".xz": lzma.LZMAFile,
    ".bz2": bz2.BZ2File,
    ".zst": lambda raw: _zstd(raw),
}


def _zstd(raw: IO[bytes]) -> Any:
    import pyarrow as arrow  # unlike others, it notices a file that is cut short

    return arrow.CompressedInputStream(arrow.PythonFile(raw, mode="r"), "zstd")


class Local:
    """A file, a folder or a glob; with `val` and `test` from files of their own, if given.

    Labels are numbered as they appear in the files of `train`; `describe()` names them.
    """

    tokenizer = "bpe:4096"
    held_out_share = 0.05

    def __init__(
        self,
        place: str,
        text_column: str | None = None,
        separator: str | None = None,
        held_out: dict[str, Path] | None = None,
        label_column: str | None = None,
    ) -> None:
        self._files = {"train": find(place)}
        for split, path in (held_out or {}).items():
            self._files[split] = find(str(path))
        self.splits = frozenset(self._files)
        self.name = title(place)
        self._place, self._label_column = place, label_column
        self._column = text_column or "text"
        self._separator = (separator or SEPARATOR).encode()
        everything = [file for files in self._files.values() for file in files]
        plain = [file for file in everything if _kind(file) in PLAIN]
        self.used = frozenset(
            (["separator"] if plain else [])
            + (["text_column"] if len(plain) < len(everything) else [])
            + (["label_column"] if not set(plain).issuperset(self._files["train"]) else [])
        )
        self._read = 0
        self._total = 1
        self._has_column = False

    def stamp(self) -> dict[str, list[Any]]:
        """Name, size and time of every file."""
        return {
            split: [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
            for split, files in sorted(self._files.items())
        }

    def rows(self, split: str) -> Iterator[Row]:
        """Every document of every file, in the order of their names."""
        files = self._files[split]
        self._read, self._total = 0, max(1, sum(file.stat().st_size for file in files))
        for file in files:
            before = self._read
            for text, value in self._pairs(file):
                # Held-out text may have other labels, or none.
                own = label_name(value) if split == "train" else str(value)
                yield Row(text, self._numbers.get(own, 0))
            self._read = before + file.stat().st_size

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """A pass of its own, so that what is begun anywhere numbers the labels alike."""
        if self._label_column is None:
            return {}
        found: dict[str, int] = {}
        for file in self._files["train"]:
            for _, value in self._pairs(file):
                found.setdefault(label_name(value), len(found))
                if len(found) > MOST_LABELS:
                    message = f"{file}: {self._label_column!r} has more than {MOST_LABELS} values"
                    raise InputError(message, "--label-column is for a few kinds of documents")
        if not any(found):
            raise InputError(f"nothing in {self._place} has a label {self._label_column!r}")
        return found

    def _pairs(self, file: Path) -> Iterator[Pair]:
        kind = _kind(file)
        try:
            if kind in (".parquet", ".arrow"):
                yield from self._table(file, kind)
                return
            with file.open("rb") as raw:
                counted = _Counted(raw, self)
                opener = _OPENERS.get(file.suffix.lower())
                stream = opener(counted) if opener else counted
                plain = zip(self._plain(stream), repeat(None)) if kind in PLAIN else None
                yield from plain or self._json(stream, file)
        except PermissionError as error:
            raise ResourceError(f"{file} may not be read", "change its permissions") from error
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise InputError(f"{file} cannot be read: {error}") from error
        except Exception as error:
            if type(error).__name__ == "ArrowInvalid":
                raise InputError(f"{file} is damaged: {error}") from error
            raise

    def _plain(self, stream: Any) -> Iterator[bytes]:
        """Documents between separators; a long one in parts, however long its lines."""
        kept = b""
        while block := stream.read(BLOCK):
            *whole, kept = (kept + block).split(self._separator)
            for document in whole:
                yield from parts(document)
            if len(kept) > BLOCK:
                *pieces, kept = cut_bytes(kept)
                yield from (part for part in pieces if part.strip())
        yield from parts(kept, is_last=True)

    def _json(self, stream: Any, file: Path) -> Iterator[Pair]:
        lines = io.BufferedReader(stream, BLOCK)
        self._has_column = False
        while line := lines.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                while (rest := lines.readline(BLOCK)) and not rest.endswith(b"\n"):
                    pass
                yield None, None
            elif not line.isspace():
                yield self._fields(line, file)

    def _fields(self, line: bytes, file: Path) -> Pair:
        try:
            row = json.loads(line)
        except UnicodeDecodeError:
            return line, None  # bytes that are not UTF-8: counted as such
        except (ValueError, RecursionError):
            return None, None
        if not isinstance(row, dict):
            return None, None
        if self._column not in row and not self._has_column:  # a single row may lack it
            raise InputError(
                f"{file} begins without the field {self._column!r}",
                f"--text-column is one of: {', '.join(map(str, list(row)[:12]))}",
            )
        self._has_column = True
        return row.get(self._column), row.get(self._label_column)

    def _table(self, file: Path, kind: str) -> Iterator[Pair]:
        from pyarrow import parquet

        if kind == ".parquet":
            table = parquet.ParquetFile(file)
            names = table.schema_arrow.names
            wanted = [name for name in (self._column, self._label_column) if name in names]
            batches = table.iter_batches(batch_size=256, columns=wanted)
        else:
            names, batches = _arrow(file)
        if self._column not in names:
            hint = f"--text-column is one of: {', '.join(names)}"
            raise InputError(f"{file} has no column {self._column!r}", hint)
        for batch in batches:
            texts, label = _column(batch, self._column), self._label_column
            labels = _column(batch, label) if label in names else repeat(None)
            yield from zip(texts, labels)  # noqa: B905

    def share_read(self) -> float | None:
        """By bytes of the files, compressed as they are."""
        return min(1.0, self._read / self._total)

    def describe(self) -> dict[str, Any]:
        """Every file with its size and hash."""
        return {
            "kind": "local",
            "column": self._column,
            "separator": self._separator.decode(),
            **({"labels": list(self._numbers)} if self._label_column else {}),
            "files": {
                split: [{"path": str(file.resolve()), **describe_file(file)} for file in files]
                for split, files in sorted(self._files.items())
            },
        }


class _Counted(io.RawIOBase):
    """Counts what is read from a file, for the progress bar."""

    def __init__(self, raw: IO[bytes], owner: Local) -> None:
        self._raw, self._owner = raw, owner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        buffer[: len(data)] = data
        self._owner._read += len(data)
        return len(data)


def _column(batch: Any, name: str | None) -> Iterator[object]:
    import pyarrow as arrow

    column = batch.column(batch.schema.names.index(name))
    if arrow.types.is_string(column.type):  # as bytes, so that a bad row is one bad row
        column = column.view(arrow.binary())
    elif arrow.types.is_large_string(column.type):
        column = column.view(arrow.large_binary())
    column.validate(full=True)  # else offsets of a damaged file lead anywhere in memory
    return (value.as_py() for value in column)


def _arrow(file: Path) -> tuple[list[str], Iterator[Any]]:
    import pyarrow as arrow

    try:
        stream = arrow.ipc.open_stream(arrow.memory_map(str(file)))
        return stream.schema.names, iter(stream)
    except arrow.ArrowInvalid:  # the other of Arrow's two formats
        table = arrow.ipc.open_file(arrow.memory_map(str(file)))
        return table.schema.names, map(table.get_batch, range(table.num_record_batches))


def find(place: str) -> list[Path]:
    """The files that a path, folder or glob stands for, sorted."""
    if not place.strip():
        raise InputError("a source without a name", "give a corpus, file or folder")
    path = Path(place).expanduser()
    if path.is_dir():
        found = [p for p in _below(path) if p.is_file() and _kind(p) in SUFFIXES]
        if not found:
            raise InputError(f"{place} holds no text files", f"known endings: {' '.join(SUFFIXES)}")
    elif path.is_file():
        found = [path]
    else:
        found = [Path(p) for p in glob.glob(str(path), recursive=True)]
        found = [p for p in found if p.is_file()]
        if not found:
            raise InputError(f"there is no corpus, file or folder {place!r}", _known(place))
    for file in found:
        if _kind(file) not in SUFFIXES:
            hint = f"known endings: {' '.join(SUFFIXES)}, the text ones also with .gz .xz .zst .bz2"
            raise InputError(f"{file}: unknown kind of file", hint)
    return sorted(found)


def _below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise ResourceError(f"{error.filename} may not be read", "change its permissions")

    for where, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(where) / name for name in names)


def _known(place: str) -> str:
    if "." in place or "/" in place:
        return "paths are relative to the folder that eff is started in"
    from effcli.registry import suggestion
    from effcli.settings.corpora import CORPORA, MIXES

    return suggestion(place, ["python", "python:docs", "grammar:1", *CORPORA, *MIXES])


def _kind(file: Path) -> str:
    suffixes = [s.lower() for s in file.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def title(place: str) -> str:
    """A short name for a corpus of local files."""
    name = Path(place).expanduser().name
    stem = name.split(".")[0] if "*" not in name else Path(place).parent.name
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in stem)[:60].strip("-") or "text"
