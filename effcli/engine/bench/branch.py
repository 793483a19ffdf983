"""Runs that share a trunk: a longer budget goes on where a shorter one began to decay.

Two runs that differ in their budget alone take the same steps as long as their schedules
say the same. So the longer one begins with a checkpoint of the shorter, and ends with the
bits that it would have had alone; its ledger holds the trunk as if it had paid for it.
"""

import json
import shutil
from functools import partial
from pathlib import Path

import torch

from effcli.engine.measure.meter import Budget, Meter
from effcli.engine.runs import checkpoint
from effcli.engine.runs.files import write_bytes
from effcli.engine.runs.rundir import CHECKPOINTS, CONFIG, ENV, RECORDS, TOKENIZER, RunDir
from effcli.registry import resolve_place
from effcli.settings.layers import read_toml, storable
from effcli.settings.train import BUDGETS, TrainSettings

WORTH = 0.02  # of the shorter run
_FREE = {*BUDGETS, "out", "resume", "save_every", "save_at", "keep"}


def shared_steps(shorter: TrainSettings, longer: TrainSettings, tokens: int, flops: float) -> int:
    """How many steps from the beginning are the same in both, where that is worth a copy.

    It is 0 unless the runs differ in their budget alone. A step costs so many tokens and FLOPs.
    """
    is_other = shorter.model_dump(exclude=_FREE) != longer.model_dump(exclude=_FREE)
    if is_other or not shorter.shares_trunk:
        return 0
    factor = partial(resolve_place(shorter.schedule.place), settings=shorter.schedule)
    first, second, meter = Budget(shorter), Budget(longer), Meter()
    while (progress := first.progress(meter)) < 1:
        if factor(progress) != factor(second.progress(meter)):
            break
        meter.steps, meter.tokens = meter.steps + 1, meter.tokens + tokens
        meter.charge("train", flops)
    return meter.steps if first.progress(meter) >= WORTH else 0


def branch(source: Path, step: int, command: str, settings: TrainSettings) -> None:
    """Make `settings.out` a run that has come to this step, as the run in `source` has.

    It is made beside its place and moved there when it is whole.
    """
    folder = settings.out
    assert folder is not None
    draft = folder.with_name(f".draft-{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    before = read_toml(source / CONFIG)
    shutil.copy2(source / TOKENIZER, draft / TOKENIZER)
    shutil.copy2(source / ENV, draft / ENV)
    RunDir(draft).begin(command, {**storable(settings), "data": before["data"]})
    place = checkpoint.of_step(source / CHECKPOINTS, step)
    state = checkpoint.load_state(place)
    rows = _retold(source, state["records"], Budget(settings))
    write_bytes(draft / RECORDS, b"".join(rows))
    state |= {"records": sum(map(len, rows)), "asked": RunDir(draft).asked()}
    weights = checkpoint.load_model(place, torch.device("cpu"))
    checkpoint.save(draft / CHECKPOINTS, step, weights, state, settings.keep)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def _retold(source: Path, position: int, budget: Budget) -> list[bytes]:
    """The records of the trunk, with the progress that they have in the longer run."""
    with (source / RECORDS).open("rb") as stream:
        rows = [json.loads(line) for line in stream.read(position).splitlines()]
    meter = Meter()
    for row in rows:
        if row["kind"] == "step":
            row["progress"] = budget.progress(meter)
            meter.steps, meter.tokens = row["index"], row["tokens"]
            meter.flops["train"], meter.seconds["train"] = row["flops"], row["seconds"]
    return [json.dumps(row, allow_nan=False).encode() + b"\n" for row in rows]
