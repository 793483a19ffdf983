"""`kill -9` at random moments: of training, and inside the saving of a checkpoint."""

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch

from effcli.engine.runs import checkpoint
from reliability.harness import (
    Tally,
    command,
    eff,
    fork,
    kill,
    need,
    prepared,
    same,
    training,
    wait,
    warm,
    weights,
)


def random_kills(work: Path, n: int, tally: Tally) -> None:
    """Kill training anywhere, resume it, and compare the final weights with the reference."""
    warm(work)
    corpus = prepared(work)
    started = time.monotonic()
    need(eff(work, *training(corpus, work / "reference")))
    duration = time.monotonic() - started
    expected, dice = weights(work / "reference"), random.Random(4)
    for number in range(n):
        folder = work / f"run-{number}"
        line = [*training(corpus, folder), "--resume"]
        child = fork(command(*line))
        time.sleep(dice.uniform(0.02, 1.0) * duration)
        tally.count("killed", kill(child))
        before = _steps(folder)
        tally.count("killed after a save", bool(before))
        ended = eff(work, *line)
        tally.see(_lost(folder, before, expected) if ended.code == 0 else ended.err[-300:])
        shutil.rmtree(folder)


def _steps(folder: Path) -> list[str]:
    return [path.name for path in checkpoint.steps(folder / "checkpoints")]


def _lost(folder: Path, before: list[str], expected: Any) -> str | None:
    """What a resumed run lost, if anything."""
    if not same(weights(folder), expected):
        return f"{folder.name}: other weights"
    left = [path.name for path in (folder / "checkpoints").iterdir()]
    if strange := [name for name in left if not name.startswith("step-")]:
        return f"{folder.name}: left behind {strange}"
    begun = (folder / "records.jsonl").read_text("utf8").count('"kind": "step"')
    return None if begun == 60 else f"{folder.name}: {begun} steps on record"


def content(step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and state that only this step has."""
    dice = torch.Generator().manual_seed(step)
    model = {f"layer.{k}": torch.randn(64, 256, generator=dice) for k in range(4)}
    moments = {f"{name}/momentum": value + 1 for name, value in model.items()}
    return model, {"parts": {"optimizer": moments, "steps": step}, "records": step * 10}


def loaded(folder: Path) -> int:
    """The step whose content a folder gives back, bit for bit; -1 for nothing that was saved."""
    place, warnings = checkpoint.newest(folder)
    if place is None or warnings:
        return -1
    step = int(place.name.removeprefix("step-"))
    found = checkpoint.load_model(place, torch.device("cpu")), checkpoint.load_state(place)
    return step if all(same(a, b) for a, b in zip(found, content(step), strict=True)) else -1


def kills_in_a_save(work: Path, n: int, tally: Tally) -> None:
    """Kill inside `checkpoint.save`; what is loaded afterwards is the old or the new state."""
    folder = work / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    old, dice = 1, random.Random(2)
    checkpoint.save(folder, old, *content(old), keep=2)
    durations = [_save_once(work / "timed", step) for step in range(1, 8)]
    longest = sorted(durations)[-2] * 1.1
    while tally.n < n:
        new = old + 1
        is_saved = _save_and_kill(folder, new, dice.uniform(0, longest))
        tally.count("killed before the save had ended", not is_saved)
        found = loaded(folder)
        allowed = (new,) if is_saved else (old, new)
        tally.see(None if found in allowed else f"{found} is loaded, not one of {allowed}")
        tally.count("the new state was loaded", found == new)
        if dice.random() < 0.8:  # else the rubbish stays, for the next save to cope with
            checkpoint.clean(folder)
        old = max(found, old)
        if found < 0:
            shutil.rmtree(folder)
            checkpoint.save(folder, old, *content(old), keep=2)


def _save_once(folder: Path, step: int) -> float:
    model, state = content(step)
    started = time.perf_counter()
    checkpoint.save(folder, step, model, state, keep=2)
    return time.perf_counter() - started


def _save_and_kill(folder: Path, step: int, delay: float) -> bool:
    """Kill a child some time after its save began; whether the save had ended by then."""
    reading, writing = os.pipe()

    def work() -> int:
        model, state = content(step)
        os.write(writing, b"b")
        checkpoint.save(folder, step, model, state, keep=2)
        os.write(writing, b"e")
        signal.pause()
        return 0

    child = fork(work)
    os.close(writing)
    os.read(reading, 1)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    wait(child)
    is_saved = os.read(reading, 1) == b"e"
    os.close(reading)
    return is_saved
