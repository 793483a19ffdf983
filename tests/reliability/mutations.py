"""Damaged files: flipped, cut, zeroed, exchanged, older. Every one is refused, none is used."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.runs import checkpoint
from reliability.harness import (
    Outcome,
    Tally,
    eff,
    fork,
    need,
    prepared,
    same,
    training,
    wait,
    warm,
    weights,
)

PAGE = 4096
STEPS, STOPPED_AT = 8, 5


class Originals:
    """What is damaged in copies: a corpus, a finished run, and one to be continued."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.corpus = prepared(work, tokens=30_000, name="original-corpus")
        other = prepared(work, tokens=31_000, name="older-corpus")
        self.run, self.stopped = work / "original-run", work / "original-stopped"
        need(eff(work, *self.line(self.run)))
        need(eff(work, *self.line(work / "older-run", "optim.lr=0.03")))
        self.expected = weights(self.run)
        wait(fork(lambda: self._stop(self.stopped)))
        assert [path.name[-1] for path in checkpoint.steps(self.stopped / "checkpoints")] == [
            "4",
            "5",
        ]
        tokenizer = Tokenizer("bpe:258", "eff", {**_BYTES, b"e ": 256}, 257)
        tokenizer.save(other / "tokenizer.json")
        shutil.copy(other / "tokenizer.json", work / "older-run" / "tokenizer.json")
        self.older = {self.corpus: other, self.run: work / "older-run"}
        self.older[self.stopped] = work / "older-run"

    def line(self, out: Path, *assignments: str) -> list[Any]:
        """The command line of a run."""
        flags = {"steps": STEPS, "save_every": 2, "eval_every": 0}
        return [*training(self.corpus, out, *assignments, **flags), "--resume"]

    def _stop(self, out: Path) -> int:
        from unittest.mock import patch

        from effcli.engine.interrupt import Interrupt
        from effcli.engine.runs.rundir import RunDir
        from reliability.harness import command

        steps = [0]
        real = RunDir.append

        def append(run: RunDir, record: Any) -> None:
            steps[0] = getattr(record, "index", steps[0])
            real(run, record)

        def asks(_: Interrupt) -> int | None:
            return 15 if steps[0] >= STOPPED_AT else None

        with patch.object(RunDir, "append", append), patch.object(Interrupt, "__call__", asks):
            return command(*self.line(out))()


_BYTES = {bytes([value]): value for value in range(256)}
Change = Callable[[Path, Path, random.Random], None]
"""Damages the first file; the second is the older one of the same name."""


def _flip(path: Path, _: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def _truncate(path: Path, _: Path, dice: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: dice.randrange(len(data) - 1)])  # more than a last line feed is lost


def _zero(path: Path, _: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = dice.randrange(0, len(data), PAGE)
    data[start : start + PAGE] = bytes(len(data[start : start + PAGE]))
    path.write_bytes(data)


def _swap(path: Path, _: Path, dice: random.Random) -> None:
    """Exchange a file with another one of its kind and size, or else with any of its kind."""
    others = [p for p in path.parent.glob(f"*{path.suffix}") if p != path]
    equal = [p for p in others if p.stat().st_size == path.stat().st_size] or others
    other = dice.choice(sorted(equal))
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def _swap_checkpoints(path: Path, _: Path, dice: random.Random) -> None:
    """Give both checkpoints of a run each other's name: every hash in them still holds."""
    one, two = checkpoint.steps(path.parent.parent)
    aside = one.with_name("aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


def _older(path: Path, older: Path, dice: random.Random) -> None:
    shutil.copy(older, path)


DAMAGE: tuple[Change, ...] = (_flip, _truncate, _zero)


class Target:
    """A kind of file: where it is, what can happen to it, and who has to notice."""

    def __init__(self, name: str, origin: Path, glob: str, more: tuple[Change, ...]) -> None:
        self.name, self.origin, self._glob = name, origin, glob
        self.changes = (*DAMAGE, *more)

    def damage(self, copy: Path, older: Path, dice: random.Random) -> str:
        """Damage one file of a copy; returns what was done."""
        path = dice.choice(sorted(copy.glob(self._glob)))
        before = path.read_bytes()
        change = dice.choice(self.changes)
        name = path.relative_to(copy)
        same_name = older / name
        if name.parts[0] == "checkpoints":
            # The older one is that of the checkpoint before, in the same run.
            path = checkpoint.steps(copy / "checkpoints")[-1] / path.name
            before = path.read_bytes()
            same_name = checkpoint.steps(copy / "checkpoints")[0] / path.name
        change(path, same_name, dice)
        if path.exists() and path.read_bytes() == before:
            return self.damage(copy, older, dice)  # zeros where there had been zeros
        return f"{self.name}: {change.__name__[1:]} of {path.relative_to(copy)}"


def _targets(originals: Originals) -> list[tuple[int, Target]]:
    """Every kind of file, with its weight."""
    corpus, run, stopped = originals.corpus, originals.run, originals.stopped
    saved = (_older, _swap_checkpoints, _swap)
    files = "checkpoints/*/*"
    return [
        (5, Target("shard", corpus, "*.bin", (_swap,))),
        (1, Target("document starts", corpus, "*.documents", (_swap,))),
        (3, Target("manifest", corpus, "corpus.json", (_older,))),
        (2, Target("tokenizer", corpus, "tokenizer.json", (_older,))),
        (2, Target("tokenizer", run, "tokenizer.json", (_older,))),
        (2, Target("settings", run, "config.toml", (_older,))),
        (2, Target("settings", stopped, "config.toml", (_older,))),
        (4, Target("checkpoint", run, files, saved)),
        (2, Target("checkpoint", stopped, files, saved)),
    ]


def mutations(work: Path, n: int, tally: Tally) -> None:
    """Damage a random file in a random way and use it."""
    warm(work)
    originals, dice = Originals(work), random.Random(6)
    shares, targets = zip(*_targets(originals), strict=True)
    while tally.n < n:
        (target,) = dice.choices(targets, shares)
        copy = work / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(target.origin, copy)
        done = target.damage(copy, originals.older[target.origin], dice)
        tally.count(target.name)
        reason = _noticed(originals, target, copy, tally)
        tally.see(None if reason is None else f"{done}: {reason}")


def _noticed(originals: Originals, target: Target, copy: Path, tally: Tally) -> str | None:
    if target.origin == originals.corpus:
        out = originals.work / "trained"
        shutil.rmtree(out, ignore_errors=True)
        return eff(originals.work, *training(copy, out, steps=1)).complaint(2)
    if target.origin == originals.run:
        end = _generate(originals.work, copy)
    else:
        line = originals.line(copy)
        line.remove("--quiet")  # the warnings are looked for
        end = eff(originals.work, *line)
    if end.code == 0 and target.name == "checkpoint":
        tally.count("older checkpoint used, with a warning")
        if "is damaged and was" not in end.err:
            return f"used without a warning: {end.err!r}"
        if target.origin == originals.stopped and not same(weights(copy), originals.expected):
            return "resumed to other weights"
        return None
    return Outcome(end.code, end.out, _without_notes(end.err), end.memory).complaint(2)


def _without_notes(err: str) -> str:
    lines = err.splitlines()
    begun = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    return "\n".join(lines[begun[0] :] if begun else lines)


def _generate(work: Path, run: Path) -> Outcome:
    threads = ["--set", "device.threads=1"]
    return eff(work, "generate", run, "a", "--max-new-tokens", "1", *threads)
