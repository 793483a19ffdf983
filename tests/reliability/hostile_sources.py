"""Hostile text sources: each is a file or folder, and what `eff prepare` may make of it."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as arrow
from pyarrow import parquet

ROWS = [f"Document {n} with some words, {'and more ' * (n % 9)}" for n in range(400)]
GOOD = [json.dumps({"text": row}).encode() for row in ROWS]
BOMB = 2**28  # bytes that a small file unpacks to
MARKER = "executed"


class Payload:
    """An object that leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self._marker), "w")


def pickled(case: Path) -> bytes:
    """A pickle that leaves the marker."""
    return pickle.dumps(Payload(case / MARKER))


def _zip(case: Path) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("../../outside.txt", "text")
        archive.writestr("/tmp/outside-of-eff.txt", "text")
    return data.getvalue()


def _tar(case: Path) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
        up = tarfile.TarInfo("../../outside.txt")
        up.size = 4
        archive.addfile(up, io.BytesIO(b"text"))
    return data.getvalue()


def _table(case: Path, column: Any = ROWS) -> bytes:
    data = io.BytesIO()
    parquet.write_table(arrow.table({"text": column}), data, compression="none")
    return data.getvalue()


def _stream(case: Path) -> bytes:
    data = io.BytesIO()
    table = arrow.table({"text": ROWS})
    with arrow.ipc.new_stream(data, table.schema) as stream:
        stream.write_table(table)
    return data.getvalue()


def _flipped(make: Callable[[Path], bytes], seed: int) -> Callable[[Path], bytes]:
    """The same file with 40 bits flipped, also among offsets and lengths."""

    def flipped(case: Path) -> bytes:
        data, dice = bytearray(make(case)), random.Random(seed)
        for _ in range(40):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        return bytes(data)

    return flipped


def _zstd(data: bytes) -> bytes:
    return bytes(arrow.compress(data, codec="zstd", asbytes=True))


def _lines(*bad: bytes) -> Callable[[Path], bytes]:
    return lambda _: b"\n".join([*GOOD, *bad]) + b"\n"


def _only(data: bytes) -> Callable[[Path], bytes]:
    return lambda _: data


def _packed_zeros(pack: Callable[[bytes], bytes]) -> Callable[[Path], bytes]:
    return lambda _: pack(bytes(BOMB))


def _packed_text(pack: Callable[[bytes], bytes]) -> Callable[[Path], bytes]:
    return lambda _: pack(b'{"text": "' + b"a" * BOMB + b'"}\n')


REFUSED, COUNTED, EITHER = (2,), (0,), (0, 2)
"""Refused; taken, with the bad rows counted as rejected; or either, as long as nothing breaks."""
FILES: dict[str, tuple[Callable[[Path], bytes], tuple[int, ...]]] = {
    "pickle.pkl": (pickled, REFUSED),
    "pickle.jsonl": (pickled, REFUSED),
    "pickle.parquet": (pickled, REFUSED),
    "pickle.arrow": (pickled, REFUSED),
    "pickle.txt": (pickled, REFUSED),
    "pickle.jsonl.gz": (lambda case: gzip.compress(pickled(case)), REFUSED),
    "traversal.zip": (_zip, REFUSED),
    "traversal.jsonl": (_zip, REFUSED),
    "links.tar": (_tar, REFUSED),
    "links.txt.gz": (lambda case: gzip.compress(_tar(case)), EITHER),
    "bomb.txt.gz": (_packed_zeros(gzip.compress), EITHER),
    "bomb.jsonl.gz": (_packed_text(gzip.compress), REFUSED),
    "bomb.jsonl.xz": (_packed_text(lambda data: lzma.compress(data, preset=0)), REFUSED),
    "bomb.jsonl.bz2": (_packed_zeros(bz2.compress), REFUSED),
    "bomb.jsonl.zst": (_packed_text(_zstd), REFUSED),
    "long-line.jsonl": (_lines(b'{"text": "' + b"ab " * 3_400_000 + b'"}'), COUNTED),
    "long-line.txt": (_only(b"a" * 10_000_000), EITHER),
    "nul.txt": (_only(b"\0" * 100_000), EITHER),
    "surrogates.jsonl": (_lines(b'{"text": "\\ud800"}', b'{"text": "\\udfff x"}'), COUNTED),
    "all-surrogates.jsonl": (_only(b'{"text": "\\ud800"}\n' * 50), REFUSED),
    "not-utf8.jsonl": (_lines(b'{"text": "\xff\xfe\xc0\xaf"}'), COUNTED),
    "not-utf8.txt": (_only(b"\xff\xfe\xc0\xaf\xed\xa0\x80" * 3000), REFUSED),
    "nested.jsonl": (_lines(b"[" * 1_000_000), COUNTED),
    "nested-field.jsonl": (_lines(b'{"text": ' + b'{"a":' * 200_000 + b"}" * 200_001), COUNTED),
    "huge-number.jsonl": (_lines(b'{"text": ' + b"9" * 1_000_000 + b"}"), COUNTED),
    "no-number.jsonl": (_lines(b'{"text": NaN}', b'{"text": 1e999}'), COUNTED),
    "garbage.parquet": (_only(b"PAR1" + random.Random(1).randbytes(5000) + b"PAR1"), REFUSED),
    "cut.parquet": (lambda case: _table(case)[:-100], REFUSED),
    "nested.parquet": (lambda case: _table(case, [[["a"]]] * 50), REFUSED),
    "numbers.parquet": (lambda case: _table(case, list(range(50))), REFUSED),
    "garbage.arrow": (_only(b"\xff\xff\xff\xff" + random.Random(2).randbytes(5000)), REFUSED),
    "large.arrow": (_only(b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(100)), REFUSED),
    "cut.arrow": (lambda case: _stream(case)[:-3000], EITHER),
    **{f"flipped-{k}.parquet": (_flipped(_table, k), EITHER) for k in range(6)},
    **{f"flipped-{k}.arrow": (_flipped(_stream, k), EITHER) for k in range(6)},
    "\x1b]52;c;cm0=\x07\x1b[2J.jsonl": (_lines(), COUNTED),
    "line\nfeed.jsonl": (_lines(), COUNTED),
    "\u202egpj.jsonl": (_lines(), COUNTED),
}


def _loop(case: Path) -> Path:
    folder = case / "loop"
    folder.mkdir()
    (folder / "again").symlink_to(folder)
    (folder / "outside.txt").symlink_to("/nowhere/at/all.txt")
    return folder


def _pipe(case: Path) -> Path:
    os.mkfifo(case / "pipe.txt")
    return case / "pipe.txt"


PLACES: dict[str, Callable[[Path], Path]] = {
    "a folder that links to itself": _loop,
    "a named pipe": _pipe,
    "an endless device": lambda _: Path("/dev/zero"),
}


def source_cases() -> dict[str, tuple[Callable[[Path], list[Any]], tuple[int, ...]]]:
    """Command lines by name, and the exit codes that they may end with."""
    options = ["--tokenizer", "bytes", "--max-tokens", "200000", "--quiet"]

    def of_file(name: str, make: Callable[[Path], bytes]) -> Callable[[Path], list[Any]]:
        def line(case: Path) -> list[Any]:
            (case / name).write_bytes(make(case))
            return ["prepare", case / name, "--out", case / "out" / "corpus", *options]

        return line

    def of_place(make: Callable[[Path], Path]) -> Callable[[Path], list[Any]]:
        return lambda case: ["prepare", make(case), "--out", case / "out" / "corpus", *options]

    files = {name: (of_file(name, make), codes) for name, (make, codes) in FILES.items()}
    places = {name: (of_place(make), REFUSED) for name, make in PLACES.items()}
    return {**files, **places}
