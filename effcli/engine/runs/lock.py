"""One process per folder."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from effcli.errors import ResourceError


class Busy(ResourceError):
    """Another process works there."""


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file. The system frees it when its process ends, however it ends."""
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        owner = path.read_text("utf8", errors="replace").strip() or "another process"
        hint = "wait for it, or stop it first"
        raise Busy(f"{what} is in use by {owner}", hint) from None
    try:
        path.write_text(f"process {os.getpid()} on {platform.node()}\n", "utf8")
        yield
    finally:
        lock.release()
