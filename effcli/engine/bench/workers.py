"""Processes that take turns on a machine, so that a noisy one is noisy for all of them."""

import multiprocessing as mp
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from effcli.engine.device import Device
from effcli.engine.records import Stop
from effcli.errors import Stopped

POLL = 0.2  # seconds between looks at whether to stop

Make = Callable[..., tuple[Device, Iterator[None]]]
"""Where a worker works, and its steps."""


class Worker:
    """A process that does steps when it is its turn. It never outlives this one."""

    def __init__(self, stop: Stop, make: Make, *arguments: Any) -> None:
        _start_tracker()
        context = mp.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, arguments), daemon=True)
        self._process.start()
        other.close()  # now the pipe ends when the process does
        self._stop = stop
        self._steps = 1
        self.seconds: list[float] = []
        """Of a step, in every turn."""
        try:
            self.first_step: float = self._answer()
        except BaseException:
            self.kill()
            raise

    def warm(self, seconds: float) -> None:
        """Do one step that is not counted, and decide how many take so long."""
        self.turn()
        self._steps = max(1, round(seconds / self.seconds.pop()))

    def turn(self) -> None:
        """Do some steps, alone on the machine."""
        self._send(self._steps)
        self.seconds.append(self._answer())

    def memory_bytes(self) -> int:
        """Stop; returns the most memory that the process held."""
        self._send(0)
        memory = int(self._answer())
        self._process.join()
        return memory

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    @property
    def median(self) -> float:
        """Seconds per step."""
        return statistics.median(self.seconds)

    def _send(self, number: int) -> None:
        with suppress(OSError):  # whoever is gone does not answer either
            self._pipe.send(number)

    def _answer(self) -> float:
        while not self._pipe.poll(POLL):
            self._look()
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._look()  # a signal to all may have ended it
            self._process.join()
            raise RuntimeError(f"its process ended with {self._process.exitcode}") from None
        if isinstance(answer, str):
            self._look()  # it may have ended a compiler
            raise RuntimeError(answer)
        return float(answer)

    def _look(self) -> None:
        if (number := self._stop()) is not None:
            raise Stopped(number, "inside a turn")


def _start_tracker() -> None:
    """Python's own process that tidies up after killed ones; it would warn of what it tidies."""
    if os.name != "posix":
        return
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    try:
        resource_tracker.ensure_running()
    finally:
        del os.environ["PYTHONWARNINGS"]
        os.environ.update({} if before is None else {"PYTHONWARNINGS": before})


def _serve(pipe: Connection, make: Make, arguments: tuple[Any, ...]) -> None:
    """Answer each number of steps with the seconds that one took."""
    for name in ("SIGINT", "SIGHUP"):  # of the terminal: the other process decides
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        started = time.perf_counter()
        device, steps = make(*arguments)
        amount = 1
        while amount:
            for _ in range(amount):
                next(steps)
            device.synchronize()
            pipe.send((time.perf_counter() - started) / amount)
            amount = pipe.recv()
            started = time.perf_counter()
        pipe.send(device.peak_memory_bytes())
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
