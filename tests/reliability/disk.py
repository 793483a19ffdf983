"""A disk that is full: one clear line, exit code 3, and everything before it is still good."""

import ctypes
import json
import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from effcli.engine.data.corpus import Corpus
from effcli.engine.runs import checkpoint
from reliability.harness import (
    Outcome,
    Tally,
    command,
    eff,
    fork,
    need,
    outcome,
    prepared,
    same,
    training,
    wait,
    warm,
    weights,
)

NEW_MOUNTS, NEW_USER, PRIVATE, REMOUNT = 0x20000, 0x10000000, 0x44000, 32  # of sched.h, mount.h
ROOMY = 2**28
Result = Callable[[Path], Any]


class Job:
    """Something that writes: its command line, what must come out, and the sizes to try."""

    def __init__(self, work: Path, name: str) -> None:
        self.work, self.name = work, name
        self.corpus = prepared(work, tokens=30_000)
        make = {"preparing": self._prepare, "training": self._train, "reporting": self._report}
        self.line: Callable[[Path], list[Any]] = make[name]
        need(eff(work, *self.line(work / f"{name}-reference")))
        self.expected = self.result(work / f"{name}-reference")

    def _prepare(self, out: Path) -> list[Any]:
        return ["prepare", "grammar:1", "--max-tokens", "90000", "--quiet", "--out", out]

    def _train(self, out: Path) -> list[Any]:
        flags = {"steps": 30, "save_every": 5, "eval_every": 10}
        return [*training(self.corpus, out, "model.layers=1", **flags), "--resume"]

    def _report(self, out: Path) -> list[Any]:
        if not out.exists():
            shutil.copytree(self.work / "training-reference", out)
            (out / "report.html").unlink()
        return ["report", out, "--quiet"]

    def result(self, out: Path) -> Any:
        """What must be equal, whatever happened on the way."""
        if self.name == "preparing":
            return Corpus.open(out).hash
        page = (out / "report.html").stat().st_size > 10_000
        return page, checkpoint.steps(out / "checkpoints")[-1].name, weights(out)

    def largest(self) -> int:
        """Of the files that it writes, in bytes."""
        files = (self.work / f"{self.name}-reference").rglob("*")
        return max(path.stat().st_size for path in files if path.is_file())

    def total(self) -> int:
        """Of all files that it leaves, in bytes."""
        files = (self.work / f"{self.name}-reference").rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file())


def _limited(line: list[Any], size: int) -> Callable[[], int]:
    def work() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return command(*line)()

    return work


def _judge(job: Job, out: Path, limited: Outcome, resumed: Callable[[], Outcome]) -> str | None:
    """Whether a full disk was said, and nothing lost."""
    if reason := limited.complaint(0, 3):
        return reason
    if limited.code and not any(word in limited.err for word in ("make room", "free")):
        return f"unclear: {limited.err!r}"
    if (end := resumed()).code:
        return f"does not go on: {end.err[-300:]!r}"
    return None if same(job.result(out), job.expected) else "another result"


def _sizes(low: int, high: int, n: int, dice: random.Random) -> list[int]:
    """Sizes all over a range, as many small as large ones."""
    steps = [(high / low) ** ((k + dice.random()) / n) for k in range(n)]
    return [int(low * step) for step in steps]


def full_disks(work: Path, n: int, tally: Tally) -> None:
    """So many sizes of the largest file, and of a whole disk where one can be mounted."""
    warm(work)
    dice = random.Random(9)
    can_mount = wait(fork(lambda: 0 if _disk(work / "probe", 2**20) else 1)) == 0
    tally.facts["disks mounted"] = can_mount
    for name in ("training", "preparing", "reporting"):
        job = Job(work, name)
        for size in _sizes(700, job.largest(), n, dice):
            out = work / "limited"
            shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(work / "limited.partial", ignore_errors=True)
            line = job.line(out)
            end = outcome(_limited(line, size), work)
            tally.count("had room enough", end.code == 0)
            reason = _judge(job, out, end, lambda job=job, line=line: eff(job.work, *line))
            tally.see(reason and f"{name}, files of {size} bytes: {reason}")
        if can_mount and name != "reporting":
            for size in _sizes(12_000, int(job.total() * 1.5), n, dice):
                reason = _on_a_disk(job, size, tally)
                tally.see(reason and f"{name}, a disk of {size} bytes: {reason}")


def _disk(point: Path, size: int, more: int = 0) -> bool:
    """Mount (or resize) a disk in memory that only this process and its children see."""
    libc = ctypes.CDLL(None, use_errno=True)
    point.mkdir(exist_ok=True)
    if not more:
        spaces = NEW_MOUNTS if os.getuid() == 0 else NEW_MOUNTS | NEW_USER
        user = os.getuid()
        if libc.unshare(spaces) != 0 or libc.mount(b"none", b"/", None, PRIVATE, None) != 0:
            return False
        if spaces & NEW_USER:
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    kind, options = b"tmpfs", f"size={size}".encode()
    return bool(libc.mount(kind, bytes(point), kind, more, options) == 0)


def _on_a_disk(job: Job, size: int, tally: Tally) -> str | None:
    """Do a job on a small disk, then make it larger and do it again."""
    told = job.work / "told.json"
    told.unlink(missing_ok=True)
    point = job.work / "disk"

    def work() -> int:
        _disk(point, size)
        line = job.line(point / "out")
        end = eff(job.work, *line)

        def again() -> Outcome:
            _disk(point, ROOMY, REMOUNT)
            return eff(job.work, *line)

        reason = _judge(job, point / "out", end, again)
        told.write_text(json.dumps([reason, end.code]))
        return 0

    if code := wait(fork(work)):
        return f"exit code {code} of the trial itself"
    reason, code = json.loads(told.read_text())
    tally.count("had room enough", code == 0)
    return str(reason) if reason else None
