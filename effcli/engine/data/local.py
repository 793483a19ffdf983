"""Files of your own: plain text, JSON lines (also compressed), Parquet and Arrow."""

import bz2
import glob
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from effcli.engine.data.source import Row
from effcli.engine.data.write import describe_file
from effcli.errors import InputError, ResourceError

SEPARATOR = "<|endoftext|>"
BLOCK = 2**20  # bytes read at a time
LONGEST_LINE = 2**26  # bytes of one line of JSON; a longer one is rejected, not held in memory
UNDIVIDED = 2**14  # bytes; longer plain text is cut, so that it can be split and mixed
PLAIN_PIECE = 2**13  # bytes of each part of it
PLAIN = (".txt", ".md")
SUFFIXES = (*PLAIN, ".jsonl", ".ndjson", ".parquet", ".arrow")
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
    """A file, a folder or a glob; with `val` and `test` from files of their own, if given."""

    tokenizer = "bpe:4096"
    held_out_share = 0.05

    def __init__(
        self,
        place: str,
        text_column: str | None = None,
        separator: str | None = None,
        held_out: dict[str, Path] | None = None,
    ) -> None:
        self._files = {"train": find(place)}
        for split, path in (held_out or {}).items():
            self._files[split] = find(str(path))
        self.splits = frozenset(self._files)
        self.name = title(place)
        self._column = text_column or "text"
        self._separator = (separator or SEPARATOR).encode()
        everything = [file for files in self._files.values() for file in files]
        plain = [file for file in everything if _kind(file) in PLAIN]
        self.used = frozenset(
            (["separator"] if plain else [])
            + (["text_column"] if len(plain) < len(everything) else [])
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
            yield from self._rows_of(file)
            self._read = before + file.stat().st_size

    def _rows_of(self, file: Path) -> Iterator[Row]:
        kind = _kind(file)
        try:
            if kind in (".parquet", ".arrow"):
                yield from self._table(file, kind)
                return
            with file.open("rb") as raw:
                counted = _Counted(raw, self)
                opener = _OPENERS.get(file.suffix.lower())
                stream = opener(counted) if opener else counted
                yield from self._plain(stream) if kind in PLAIN else self._json(stream, file)
        except PermissionError as error:
            raise ResourceError(f"{file} may not be read", "change its permissions") from error
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise InputError(f"{file} cannot be read: {error}") from error
        except Exception as error:
            if type(error).__name__ == "ArrowInvalid":
                raise InputError(f"{file} is damaged: {error}") from error
            raise

    def _plain(self, stream: Any) -> Iterator[Row]:
        """Documents between separators; a long one in parts, however long its lines."""
        kept = b""
        while block := stream.read(BLOCK):
            *whole, kept = (kept + block).split(self._separator)
            for document in whole:
                yield from _parts(document)
            if len(kept) > BLOCK:
                *parts, kept = _cut_bytes(kept)
                yield from (Row(part) for part in parts if part.strip())
        yield from _parts(kept, is_last=True)

    def _json(self, stream: Any, file: Path) -> Iterator[Row]:
        lines = io.BufferedReader(stream, BLOCK)
        self._has_column = False
        while line := lines.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                while (rest := lines.readline(BLOCK)) and not rest.endswith(b"\n"):
                    pass
                yield Row(None)
            elif not line.isspace():
                yield Row(self._field(line, file))

    def _field(self, line: bytes, file: Path) -> object:
        try:
            row = json.loads(line)
        except UnicodeDecodeError:
            return line  # bytes that are not UTF-8: counted as such
        except (ValueError, RecursionError):
            return None
        if not isinstance(row, dict):
            return None
        if self._column not in row and not self._has_column:  # a single row may lack it
            raise InputError(
                f"{file} begins without the field {self._column!r}",
                f"--text-column is one of: {', '.join(map(str, list(row)[:12]))}",
            )
        self._has_column = True
        return row.get(self._column)

    def _table(self, file: Path, kind: str) -> Iterator[Row]:
        import pyarrow as arrow
        from pyarrow import parquet

        if kind == ".parquet":
            table = parquet.ParquetFile(file)
            names = table.schema_arrow.names
            batches = table.iter_batches(batch_size=256, columns=[self._column])
        else:
            names, batches = _arrow(file)
        if self._column not in names:
            hint = f"--text-column is one of: {', '.join(names)}"
            raise InputError(f"{file} has no column {self._column!r}", hint)
        for batch in batches:
            column = batch.column(batch.schema.names.index(self._column))
            if arrow.types.is_string(column.type):  # as bytes, so that a bad row is one bad row
                column = column.view(arrow.binary())
            elif arrow.types.is_large_string(column.type):
                column = column.view(arrow.large_binary())
            column.validate(full=True)  # else offsets of a damaged file lead anywhere in memory
            for value in column:
                yield Row(value.as_py())

    def share_read(self) -> float | None:
        """By bytes of the files, compressed as they are."""
        return min(1.0, self._read / self._total)

    def describe(self) -> dict[str, Any]:
        """Every file with its size and hash."""
        return {
            "kind": "local",
            "column": self._column,
            "separator": self._separator.decode(),
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


def _arrow(file: Path) -> tuple[list[str], Iterator[Any]]:
    import pyarrow as arrow

    try:
        stream = arrow.ipc.open_stream(arrow.memory_map(str(file)))
        return stream.schema.names, iter(stream)
    except arrow.ArrowInvalid:  # the other of Arrow's two formats
        table = arrow.ipc.open_file(arrow.memory_map(str(file)))
        return table.schema.names, map(table.get_batch, range(table.num_record_batches))


def _parts(document: bytes, is_last: bool = False) -> Iterator[Row]:
    if len(document) <= UNDIVIDED:
        if document.strip() or not is_last:  # the end of a file is no document
            yield Row(document.strip(b"\r\n"))
        return
    yield from (Row(part) for part in _cut_bytes(document) if part.strip())


def _cut_bytes(text: bytes) -> Iterator[bytes]:
    """Parts of about PLAIN_PIECE bytes: at a blank line, else a line, a space, a character."""
    start = 0
    while len(text) - start > PLAIN_PIECE:
        end = start + PLAIN_PIECE
        for mark in (b"\n\n", b"\n", b" "):
            at = text.rfind(mark, start + PLAIN_PIECE // 2, end)
            if at > 0:
                end = at + len(mark)
                break
        else:
            while text[end] & 0b1100_0000 == 0b1000_0000 and end > start + 1:
                end -= 1  # inside a character of several bytes
        yield text[start:end]
        start = end
    yield text[start:]


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
