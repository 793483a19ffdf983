"""Every cut of a short run, with and without accumulation, cut once or twice: equal bits."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import torch

from effcli.engine.records import Record, Step
from effcli.engine.runs import checkpoint
from effcli.errors import Stopped
from effcli.methods import baseline
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve
from reliability.harness import TINY, Tally, prepared, same, warm

STEPS = 60
UNEQUAL = ("seconds", "joules", "peak_memory_bytes")
"""What two runs cannot share, however equal they are."""


def final_state(run: Path) -> dict[str, Any]:
    """Everything that must be equal at the end."""
    place, _ = checkpoint.newest(run / "checkpoints")
    assert place is not None
    state = checkpoint.load_state(place)
    meter = state["parts"]["meter"]
    records = [json.loads(line) for line in (run / "records.jsonl").read_text("utf8").splitlines()]
    return {
        "weights": checkpoint.load_model(place, torch.device("cpu")),
        "optimizer": state["parts"]["optimizer"],
        "batches": state["parts"]["batches"],
        "rng": state["parts"]["rng"],
        "ledger": {name: meter[name] for name in ("flops", "steps", "tokens")},
        "records": [{k: v for k, v in row.items() if k not in UNEQUAL} for row in records],
    }


def _settings(corpus: Path, out: Path, parts: int) -> BaselineSettings:
    """Dropout, evaluations and two ends of an epoch, with a step in so many parts."""
    shape = ["model.dropout=0.1", "model.layers=1", "batch.sequences=8"]
    looks = ["evaluation.floors=false", f"batch.micro={8 // parts}"]
    flags = {"data": str(corpus), "out": out, "resume": True, "steps": STEPS}
    flags |= {"eval_every": 25, "save_every": 20}
    return resolve(BaselineSettings, flags, [*TINY, *shape, *looks]).settings


def _train(settings: BaselineSettings, cut: int | None = None) -> bool:
    """Train, until a signal comes after step `cut`; whether it came."""
    seen = [0]

    def watch(record: Record) -> None:
        if isinstance(record, Step):
            seen[0] = record.index

    def stop() -> int | None:
        return signal.SIGTERM if cut is not None and seen[0] >= cut else None

    try:
        baseline.run(settings, watch, stop)
    except Stopped:
        return True
    return False


def every_cut(work: Path, n: int, tally: Tally) -> None:
    """Cut after every step, resume, and compare; at most `n` of these, spread evenly, if not 0."""
    warm(work)
    corpus = prepared(work, tokens=8_000, name="short")  # 249 windows of 32 tokens
    trials = [
        (parts, cut, twice) for parts in (1, 4) for cut in range(1, STEPS) for twice in (0, 1)
    ]
    expected: dict[int, Any] = {}
    for parts, cut, twice in trials[:: max(1, len(trials) // n)] if n else trials:
        if parts not in expected:
            _train(_settings(corpus, work / f"reference-{parts}", parts))
            expected[parts] = final_state(work / f"reference-{parts}")
        where = f"{parts} parts, cut after step {cut}{', and again' if twice else ''}"
        tally.see(_cut(_settings(corpus, work / "cut", parts), cut, twice, expected[parts], where))
        shutil.rmtree(work / "cut")


def _cut(settings: Any, cut: int, twice: int, expected: Any, where: str) -> str | None:
    again = min(cut + 1 + cut % 7, STEPS - 1)
    for at in (cut, again) if twice else (cut,):
        if not _train(settings, at):
            return f"{where}: was not stopped"
    _train(settings)
    found = final_state(settings.out)
    wrong = [name for name in expected if not same(found[name], expected[name])]
    return f"{where}: unequal {', '.join(wrong)}" if wrong else None
