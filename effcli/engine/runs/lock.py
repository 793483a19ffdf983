"""One process per folder."""

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from effcli.engine.records import Stop
from effcli.errors import ResourceError, Stopped

PATIENCE = 0.2  # seconds between two looks at what another process holds


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


@contextmanager
def turn(path: Path, what: str, tell: Callable[[str], None], stop: Stop) -> Iterator[None]:
    """`locked`, as soon as nobody else works there; Stopped on a signal until then."""
    with ExitStack() as stack:
        has_told = False
        while True:
            try:
                stack.enter_context(locked(path, what))
                break
            except Busy as busy:
                if (signal_number := stop()) is not None:
                    message = f"{busy.message}, which was waited for"
                    raise Stopped(signal_number, message, "start it again") from None
                if not has_told:
                    tell(f"{busy.message}: waiting for it")
                has_told = True
            time.sleep(PATIENCE)
        yield
