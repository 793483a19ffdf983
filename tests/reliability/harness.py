"""What every measurement shares: children, their outcomes, a tally, a tiny corpus and model."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from conftest import TINY
from torch import Tensor

from effcli.engine.runs import checkpoint

SETS = [part for assignment in TINY for part in ("--set", assignment)]
PATIENCE = 120  # seconds that a child may take; then it is killed, and that is a failure
KEPT_FAILURES = 20
OUT, ERR = ".stdout", ".stderr"


def _nothing(_: int) -> None:
    """Progress that nobody watches."""


@dataclass
class Tally:
    """What one measurement found: how often it looked, and every failure in words."""

    n: int = 0
    failures: int = 0
    examples: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    watch: Callable[[int], None] = _nothing

    def see(self, reason: str | None) -> None:
        """Count a trial; `reason` says why it failed, if it did."""
        self.n += 1
        if reason is not None:
            self.failures += 1
            if len(self.examples) < KEPT_FAILURES:
                self.examples.append(reason)
        self.watch(self.n)

    def count(self, name: str, more: int = 1) -> None:
        """Count something worth knowing beside the failures."""
        self.facts[name] = self.facts.get(name, 0) + more


@dataclass(frozen=True)
class Outcome:
    """How a child ended."""

    code: int
    out: str
    err: str
    memory: int
    """The most bytes that it held."""

    def complaint(self, *codes: int) -> str | None:
        """None if it ended with one of `codes` and exactly one line that says why."""
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        if self.code not in codes:
            return f"exit code {self.code}, not {codes}: {self.err[-300:]!r}"
        if "Traceback" in self.err or len(errors) != (self.code != 0):
            return f"not one line: {self.err[-300:]!r}"
        rest = [
            line for line in self.err.splitlines() if not line.startswith(("error: ", "hint: "))
        ]
        return f"more than one line: {rest}" if rest and self.code else None


def fork(work: Callable[[], int], place: Path | None = None) -> int:
    """Run `work` in a child that has everything imported already; returns its process.

    What it says goes into files in `place`, or nowhere. It must keep to one thread: those
    of its parent are not there, and OpenMP waits for them for ever.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(PATIENCE)
        for number in (signal.SIGINT, signal.SIGTERM):  # whatever the parent made of them
            default = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if default else signal.SIG_DFL)
        for descriptor, name in ((1, OUT), (2, ERR)):
            path = place / name if place else os.devnull
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
        sys.stdout = open(1, "w", encoding="utf8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf8", closefd=False)  # noqa: SIM115
        code = work()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """The exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(child: int) -> bool:
    """Kill a child as hard as can be; whether it was still there."""
    os.kill(child, signal.SIGKILL)
    return wait(child) == -signal.SIGKILL


def command(*arguments: object) -> Callable[[], int]:
    """A command line, as work for a child."""

    def work() -> int:
        from effcli.app import run

        return run([os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments])

    return work


def finished(child: int, place: Path) -> Outcome:
    """Wait for a child that says what it says in `place`, and see how it ended."""
    _, status, usage = os.wait4(child, 0)
    unit = 1 if sys.platform == "darwin" else 1024
    said = ((place / name).read_text("utf8", errors="replace") for name in (OUT, ERR))
    return Outcome(os.waitstatus_to_exitcode(status), *said, usage.ru_maxrss * unit)


def outcome(work: Callable[[], int], place: Path) -> Outcome:
    """Let a child do `work` and see how it ends."""
    return finished(fork(work, place), place)


def eff(place: Path, *arguments: object) -> Outcome:
    """Run `eff` in a child."""
    return outcome(command(*arguments), place)


def need(outcome: Outcome) -> Outcome:
    """An outcome without which nothing can be measured."""
    if outcome.code:
        raise RuntimeError(f"exit code {outcome.code}: {outcome.err}")
    return outcome


_is_warm: list[bool] = []


def warm(place: Path) -> None:
    """Import in this process what every child will need, by doing everything once."""
    if _is_warm:
        return
    _is_warm.append(True)
    folder = place / "warm"
    shutil.rmtree(folder, ignore_errors=True)
    train = training(prepared(folder), folder / "run", steps=1)
    with open(os.devnull, "w") as null, redirect_stdout(null):
        for arguments in (train, ["generate", folder / "run", "a", "--max-new-tokens", "1"]):
            if code := command(*arguments)():
                raise RuntimeError(f"exit code {code}")


def prepared(work: Path, tokens: int = 60_000, name: str = "corpus") -> Path:
    """A corpus of bytes, made once."""
    folder = work / name
    if not folder.exists():
        work.mkdir(parents=True, exist_ok=True)
        options = ["--max-tokens", tokens, "--set", "shard_tokens=16384", "--quiet"]
        need(eff(work, "prepare", "grammar:1", "--out", folder, *options))
    return folder


def training(corpus: Path, out: Path, *assignments: str, **flags: Any) -> list[Any]:
    """The command line of a tiny run with dropout, several parts per step, and many saves."""
    flags = {"steps": 60, "save_every": 3, "eval_every": 20, **flags}
    options = [
        part
        for name, value in flags.items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    more = ["model.dropout=0.1", "batch.micro=2", "evaluation.floors=false", *assignments]
    sets = [part for assignment in more for part in ("--set", assignment)]
    return ["baseline", "--data", corpus, "--out", out, "--quiet", *options, *SETS, *sets]


def weights(run: Path) -> dict[str, Tensor] | None:
    """The newest weights of a run; None if there are none that are whole."""
    place, _ = checkpoint.newest(run / "checkpoints")
    return None if place is None else checkpoint.load_model(place, torch.device("cpu"))


def same(one: Any, other: Any) -> bool:
    """Whether two trees hold the same bits."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return bool(one == other)
