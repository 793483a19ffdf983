"""Figures to trackers, which may fail, hang or be slow without the run noticing.

Each tracker has a queue, a thread and a process. The run only ever puts into the queue, and
what does not fit is dropped.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from effcli import launch
from effcli.catalog import TRACKERS
from effcli.engine.records import Evaluation, Ledger, Notice, Record, Step, Watch
from effcli.engine.runs.trackers import Config
from effcli.errors import InputError
from effcli.settings.layers import storable
from effcli.settings.train import TrainSettings

MOST_WAITING = 10_000
"""Records between a run and a tracker that is slow; more than that are dropped."""
CLOSING_SECONDS = 8.0
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from effcli.engine.runs.trackers import serve; serve()"
)


def require(names: tuple[str, ...]) -> None:
    """Refuse a tracker that is not installed, before anything is begun."""
    for name in names:
        if any(not is_installed(module) for module in TRACKERS.load(name).needs):
            raise InputError(f"track: {name} is not installed", f"pip install 'effcli[{name}]'")


def is_installed(module: str) -> bool:
    """Whether a module can be imported; a folder of that name, as wandb leaves, is none."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None


@contextmanager
def tracked(settings: TrainSettings, folder: Path, watch: Watch) -> Iterator[Watch]:
    """A watcher that also feeds the trackers of a run; says once of each that it failed."""
    names = settings.track if launch.rank() == 0 else ()  # the first process speaks for all
    feeds = [_Feed(name, folder, storable(settings)) for name in names]

    def see(record: Record) -> None:
        watch(record)
        if values := figures(record):
            line = json.dumps(values).encode() + b"\n"
            for feed in feeds:
                feed.put(line)
        _complain(feeds, watch)

    try:
        yield see
    finally:
        end = time.monotonic() + CLOSING_SECONDS
        for feed in feeds:
            feed.finish()
        for feed in feeds:
            feed.close(end)
        _complain(feeds, watch)


def _complain(feeds: list["_Feed"], watch: Watch) -> None:
    for feed in feeds:
        if feed.failure is not None and not feed.is_known:
            feed.is_known = True
            watch(Notice(f"{feed.name} gets no more of this run, which goes on: {feed.failure}"))


def figures(record: Record) -> tuple[int, dict[str, float]] | None:
    """The step and the figures of a record, under the names that trackers show."""
    if isinstance(record, Step):
        return record.index, {**_named("train", record, _TRAIN), **_named("cost", record, _COST)}
    if isinstance(record, Evaluation):
        return record.step, {**_named("held_out", record, _HELD_OUT), "cost/joules": record.joules}
    if isinstance(record, Ledger):
        kinds = {"flops": record.flops, "seconds": record.seconds, "joules": record.joules}
        accounts = {f"{kind}/{a}": v for kind, bill in kinds.items() for a, v in bill.items()}
        memory = {"memory/peak_bytes": float(record.peak_memory_bytes)}
        return record.steps, {**accounts, **memory}
    return None


_TRAIN = ("loss", "lr", "grad_norm", "progress")
_COST = ("tokens", "flops", "seconds")
_HELD_OUT = ("loss", "bits_per_byte")


def _named(group: str, record: Record, names: tuple[str, ...]) -> dict[str, float]:
    return {f"{group}/{name}": getattr(record, name) for name in names}


class _Feed:
    """The way to one tracker. Nothing is started before there is something to say."""

    def __init__(self, name: str, folder: Path, config: Config) -> None:
        self.name = name
        self.failure: str | None = None
        self.is_known = False
        about = {"place": TRACKERS[name], "folder": str(folder.resolve()), "config": config}
        self._first = json.dumps(about).encode() + b"\n"
        self._queue: queue.Queue[bytes | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name=f"track-{name}", daemon=True)
        self._child: subprocess.Popen[bytes] | None = None
        self._is_over = threading.Event()

    def put(self, line: bytes) -> None:
        """Say something, now or never."""
        if self._thread.ident is None:
            self._thread.start()
        try:
            if self.failure is None:
                self._queue.put_nowait(line)
        except queue.Full:
            self.failure = f"{MOST_WAITING} records wait already"

    def finish(self) -> None:
        """Say that there is no more."""
        self._is_over.set()
        with suppress(queue.Full):
            self._queue.put_nowait(None)

    def close(self, end: float) -> None:
        """Wait until then, and no longer."""
        if self._thread.ident is None:
            return
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            self.failure = self.failure or f"no answer within {CLOSING_SECONDS:.0f} seconds"
            self._kill()
            self._thread.join(1)

    def _kill(self) -> None:
        if (child := self._child) is None:
            return
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(child.pid, signal.SIGKILL)  # with whatever it started
            else:
                child.kill()

    def _run(self) -> None:
        try:
            self._feed()
        except Exception as error:
            self.failure = self.failure or f"{type(error).__name__}: {error}"

    def _feed(self) -> None:
        command = [sys.executable, "-P", "-c", _CHILD, json.dumps(sys.path)]
        self._child = child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # a buffer's lock could be held when the interpreter ends
            start_new_session=True,  # Ctrl-C is meant for the run
        )
        assert child.stdin is not None
        assert child.stdout is not None
        with suppress(BrokenPipeError):  # it has something to say, then
            _write(child.stdin.fileno(), self._first)
            while (line := self._next()) is not None:
                _write(child.stdin.fileno(), line)
        with suppress(OSError):
            child.stdin.close()
        why = child.stdout.read().decode("utf8", "replace").strip()
        child.stdout.close()
        if child.wait() != 0:
            self.failure = self.failure or why or f"its process ended with {child.returncode}"

    def _next(self) -> bytes | None:
        """The next line; None when all is said, also where that could not be put."""
        while True:
            try:
                return self._queue.get(timeout=0.5)
            except queue.Empty:
                if self._is_over.is_set():
                    return None


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
