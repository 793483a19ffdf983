"""A crash before, in and after every single call that changes the disk during a save."""

import builtins
import io
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from effcli.engine.runs import checkpoint
from reliability.harness import Tally, fork, wait
from reliability.kills import content, loaded

OLD, NEW = 3, 4
CHANGING = ("mkdir", "rename", "replace", "unlink", "rmdir", "remove", "fsync")
WAYS = ("before", "half", "after", "power")
"""`half`: only a part of what is written arrives. `power`: what was not flushed is lost."""


class Shim:
    """Counts the calls that change the disk, and dies at one of them."""

    def __init__(self, folder: Path, at: int, way: str) -> None:
        self._folder, self._at, self._way = folder, at, way
        self._unsafe: set[tuple[int, int]] = set()
        self.calls: list[str] = []

    def __call__(self, name: str, call: Callable[[], Any], half: Callable[[], Any]) -> Any:
        """Do a call, or the part of it that was asked for and nothing after it."""
        self.calls.append(name)
        is_last = len(self.calls) - 1 == self._at
        if is_last and self._way in ("before", "half"):
            if self._way == "half":
                half()
            self._die()
        result = call()
        if is_last:
            if self._way == "power":
                self._lose()
            self._die()
        return result

    def wrote(self, descriptor: int) -> None:
        """Something was written that is not flushed yet."""
        self._unsafe.add(_identity(os.fstat(descriptor)))

    def flushed(self, descriptor: int) -> None:
        """Everything in this file is safe."""
        self._unsafe.discard(_identity(os.fstat(descriptor)))

    def _lose(self) -> None:
        for path in self._folder.rglob("*"):
            if path.is_file() and _identity(path.stat()) in self._unsafe:
                os.truncate(path, 0)

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


class _Stream:
    """A file whose writes pass by the shim."""

    def __init__(self, stream: Any, shim: Shim) -> None:
        self._stream, self._shim = stream, shim

    def write(self, data: bytes) -> int:
        def all_of_it(part: bytes) -> int:
            count = self._stream.write(part)
            self._stream.flush()
            self._shim.wrote(self._stream.fileno())
            return int(count)

        half = data[: len(data) // 2]
        return int(self._shim("write", lambda: all_of_it(data), lambda: all_of_it(half)))

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def shimmed(shim: Shim) -> Iterator[None]:
    """Every call that changes the disk goes through the shim."""
    real_open, real_save = io.open, checkpoint.save_file

    def open_file(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if "w" not in mode:
            return real_open(file, mode, *rest, **named)
        opened = shim("open", lambda: real_open(file, mode, *rest, **named), lambda: None)
        return _Stream(opened, shim)

    def save_file(tensors: Any, path: Path) -> None:
        def write(keep: float) -> None:
            real_save(tensors, path)
            os.truncate(path, int(path.stat().st_size * keep))
            with real_open(path, "rb") as stream:
                shim.wrote(stream.fileno())

        shim("save_file", lambda: write(1), lambda: write(0.5))

    def changing(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            done = shim(name, lambda: real(*arguments, **named), lambda: None)
            if name == "fsync":
                shim.flushed(arguments[0])
            return done

        return call

    with ExitStack() as stack:
        for name in CHANGING:
            stack.enter_context(patch.object(os, name, changing(name)))
        stack.enter_context(patch.object(io, "open", open_file))
        stack.enter_context(patch.object(builtins, "open", open_file))
        stack.enter_context(patch.object(checkpoint, "save_file", save_file))
        yield


def _calls(folder: Path) -> list[str]:
    """What a save and its rotation call when nothing goes wrong."""
    shim = Shim(folder, -1, "before")
    with shimmed(shim):
        checkpoint.save(folder, NEW, *content(NEW), keep=2)
    return shim.calls


def _crash(folder: Path, at: int, way: str) -> None:
    def work() -> int:
        with shimmed(Shim(folder, at, way)):
            checkpoint.save(folder, NEW, *content(NEW), keep=2)
        return 0

    wait(fork(work))


def crash_points(work: Path, n: int, tally: Tally) -> None:
    """At most `n` crashes, spread evenly over every call and every way; all if 0."""
    before = work / "before"
    for step in (OLD - 1, OLD):  # so that the save has something to rotate out
        if not (before / f"step-{step:09d}").exists():
            before.mkdir(parents=True, exist_ok=True)
            checkpoint.save(before, step, *content(step), keep=2)
    shutil.copytree(before, work / "counted")
    calls = _calls(work / "counted")
    tally.facts["calls of a save"] = len(calls)
    points = [(at, way) for at in range(len(calls)) for way in WAYS]
    for at, way in points[:: max(1, len(points) // n)] if n else points:
        folder = work / "crashed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        _crash(folder, at, way)
        tally.see(_recovered(folder, f"{way} call {at} ({calls[at]})", tally))


def _recovered(folder: Path, where: str, tally: Tally) -> str | None:
    """What a resume would find after a crash, and whether saving goes on from there."""
    found = loaded(folder)
    tally.count(f"step {found} was loaded")
    if found not in (OLD, NEW):
        return f"{where}: {found} is loaded"
    checkpoint.clean(folder)
    checkpoint.save(folder, NEW + 1, *content(NEW + 1), keep=2)
    names = sorted(path.name for path in folder.iterdir())
    expected = [f"step-{step:09d}" for step in (found, NEW + 1)]
    return None if loaded(folder) == NEW + 1 and names == expected else f"{where}: left {names}"
