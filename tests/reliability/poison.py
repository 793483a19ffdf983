"""A number that is not finite, put into a weight or a gradient, is caught before the update."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch

from effcli.engine.records import Record, Step
from effcli.engine.runs import checkpoint
from effcli.engine.session import Session
from effcli.errors import DivergedError
from effcli.settings.baseline import BaselineSettings
from effcli.settings.layers import resolve
from reliability.harness import TINY, Tally, prepared, same, warm

STEPS, SAVE_EVERY = 30, 5


def _settings(corpus: Path, out: Path) -> BaselineSettings:
    flags = {"data": str(corpus), "out": out, "steps": STEPS}
    flags |= {"save_every": SAVE_EVERY, "eval_every": 0}
    return resolve(BaselineSettings, flags, [*TINY, "evaluation.floors=false"]).settings


class _Poison:
    """Watches a run, and puts something in when a step has been done."""

    def __init__(self, at: int, kind: str, value: float, dice: random.Random) -> None:
        self._at, self._kind, self._value, self._dice = at, kind, value, dice
        self.before: dict[str, torch.Tensor] = {}
        self.model: Any = None

    def __call__(self, record: Record) -> None:
        if not isinstance(record, Step) or record.index != self._at:
            return
        # The rows of an embedding that no text asks for may hold anything.
        tensors = [p for name, p in self.model.named_parameters() if "embed" not in name]
        target = self._dice.choice(tensors)
        at = self._dice.randrange(target.numel())
        if self._kind == "weight":
            target.data.view(-1)[at] = self._value
        else:
            target.register_hook(lambda gradient: self._spoiled(gradient, at))
        self.before = {name: p.detach().clone() for name, p in self.model.state_dict().items()}

    def _spoiled(self, gradient: torch.Tensor, at: int) -> torch.Tensor:
        spoiled = gradient.clone() if not gradient.is_sparse else gradient.coalesce().clone()
        values = spoiled.values() if spoiled.is_sparse else spoiled
        values.view(-1)[at % values.numel()] = self._value  # of a table, in one of the rows read
        return spoiled


def poisoned(work: Path, n: int, tally: Tally) -> None:
    """Poison a weight or a gradient at a random step; the run ends with 5 and says so."""
    warm(work)
    corpus, dice = prepared(work), random.Random(5)
    for number in range(n):
        run = work / f"run-{number}"
        # Not right before a save: a weight that was poisoned by hand would be in it.
        at = dice.choice([step for step in range(1, STEPS) if step % SAVE_EVERY])
        kind = ("weight", "gradient")[number % 2]
        poison = _Poison(at, kind, dice.choice([float("nan"), float("inf")]), dice)
        tally.see(_caught(_settings(corpus, run), poison, at, kind))
        shutil.rmtree(run)


def _caught(settings: BaselineSettings, poison: _Poison, at: int, kind: str) -> str | None:
    where = f"{kind} after step {at}"
    try:
        with Session("baseline", settings, poison) as session:
            poison.model = session.parts.model
            session.train()
        return f"{where}: not caught"
    except DivergedError as error:
        if error.exit_code != 5:
            return f"{where}: exit code {error.exit_code}"
    now = poison.model.state_dict()
    if not all(torch.equal(now[k].nan_to_num(), v.nan_to_num()) for k, v in poison.before.items()):
        return f"{where}: the weights were touched"
    run: Any = settings.out
    last = [json.loads(line) for line in (run / "records.jsonl").read_text("utf8").splitlines()]
    if [row["step"] for row in last if row["kind"] == "diverged"] != [at + 1]:
        return f"{where}: the log does not show it"
    place, _ = checkpoint.newest(run / "checkpoints")
    kept = {} if place is None else checkpoint.load_model(place, torch.device("cpu"))
    is_finite = all(torch.isfinite(value).all() for value in kept.values())
    return None if is_finite and same(bool(kept), at >= SAVE_EVERY) else f"{where}: in a checkpoint"
