"""How runs are cut short, and how the ends of two of them are compared."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from effcli.engine.records import Record, Step
from effcli.engine.runs import checkpoint
from effcli.engine.runs.rundir import RunDir

NEVER_EQUAL = ("seconds", "joules", "peak_memory_bytes")


def stopping_after(cut: int) -> tuple[Callable[[Record], None], Callable[[], int | None]]:
    """A watcher and a stop: a signal comes when step `cut` has been seen."""
    seen = [0]

    def watch(record: Record) -> None:
        if isinstance(record, Step):
            seen[0] = record.index

    return watch, lambda: signal.SIGTERM if seen[0] >= cut else None


def final_state(folder: Path) -> dict[str, Any]:
    """All that must be equal at the end of a run."""
    newest, _ = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    parts = checkpoint.load_state(newest)["parts"]
    rows = RunDir(folder).records()
    return {
        "weights": checkpoint.load_model(newest, torch.device("cpu")),
        "ledger": {name: parts["meter"][name] for name in ("flops", "steps", "tokens")},
        "records": [{k: v for k, v in row.items() if k not in NEVER_EQUAL} for row in rows],
        **{name: parts[name] for name in ("batches", "optimizer", "rng")},
    }


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two trees are not the same, bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = one.keys() | other.keys()
        return [p for k in keys for p in differences(one.get(k), other.get(k), f"{path}/{k}")]
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one.nan_to_num(7e7), other.nan_to_num(7e7)) else [path]
    return [] if one == other else [path]
