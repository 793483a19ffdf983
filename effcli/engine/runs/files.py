"""Files that are there whole or not at all, also after a power cut."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from effcli.errors import InputError
from effcli.safe import safe_json


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """A draft beside the file, to be written and closed; then, safe on disk, it is the file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        yield draft
        with draft.open("rb+") as stream:
            os.fsync(stream.fileno())
        draft.replace(path)
    except BaseException as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # nobody knows of drafts
        raise
    sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a draft beside the file, and put it in place only when it is safe on disk."""
    with drafted(path) as draft:
        draft.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text."""
    write_bytes(path, text.encode("utf8"))


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for anything that is JSON; what controls a terminal is escaped."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, safe_json(text) + "\n")


def read_json(path: Path) -> Any:
    """Read a file of JSON, or say that it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files behind them."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
