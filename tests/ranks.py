"""The processes of a run without torchrun: forked, so that nothing is imported again."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from reliability.harness import Outcome, command, finished, fork

from effcli.engine.processes import join


class Ranks:
    """Some work, done by several processes that can meet as those of torchrun do."""

    def __init__(self, place: Path, work: Callable[[], int], count: int = 2) -> None:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        about = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": count}
        about["LOCAL_WORLD_SIZE"] = count
        self._places = [place / f"rank-{rank}" for rank in range(count)]
        self.pids: list[int] = []
        """By their rank."""
        for rank, said in enumerate(self._places):
            said.mkdir()
            here = {**about, "RANK": rank, "LOCAL_RANK": rank}
            self.pids.append(fork(_launched(here, work), said))

    def poll(self) -> int | None:
        """One of them that has ended, if there is one."""
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        ended = (pid for pid in self.pids if os.waitid(os.P_PID, pid, how) is not None)
        return next(ended, None)

    def kill(self) -> None:
        """End all of them, whatever they do."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)

    def communicate(self) -> list[Outcome]:
        """Wait for all of them."""
        return [finished(*one) for one in zip(self.pids, self._places, strict=True)]


def _launched(about: dict[str, str | int], work: Callable[[], int]) -> Callable[[], int]:
    def run() -> int:
        os.environ.update({name: str(value) for name, value in about.items()})
        join.cache_clear()  # of the parent, who is alone
        code = work()
        if dist.is_initialized():
            join("cpu").leave()  # as at the end of a program
        return code

    return run


def ranks(place: Path, *arguments: object) -> Ranks:
    """A command line, as two processes."""
    return Ranks(place, command(*arguments))
