"""Find the weights of a learned policy by many cheap runs."""

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

from effcli.engine.data.corpus import Corpus, locate
from effcli.engine.records import Notice, Stop, Watch, never, unwatched
from effcli.engine.runs.files import read_json, write_json, write_text
from effcli.engine.runs.report import Report, report_of
from effcli.engine.selection.policy import LARGEST_WEIGHT, WEIGHTS, Floats, meta_train, weights
from effcli.errors import DivergedError, InputError
from effcli.methods import aql
from effcli.settings.aql import AqlSettings, PolicySettings
from effcli.settings.layers import storable

FINISHED = "finished.json"
_OWN = {"runs", "sigma", "rate", "out"}


class Evaluations:
    """Held-out losses of cheap runs; one that is finished is never run again."""

    def __init__(self, settings: PolicySettings, watch: Watch, stop: Stop) -> None:
        self.folder = settings.out.with_suffix(".runs")
        self._settings, self._watch, self._stop = settings, watch, stop
        plain = settings.model_dump(exclude=_OWN | {"resume"})
        self._run = AqlSettings.model_validate(plain)
        self._corpus = Corpus.open(locate(settings.data)).hash
        self._path = self.folder / FINISHED
        self._finished: dict[str, Any] = read_json(self._path) if self._path.exists() else {}
        self._asked: list[str] = []

    def reward(self, tried: Floats) -> float:
        """Minus the loss; both looks of a round have the same seed."""
        return -self.loss(tried, self._settings.seed + len(self._asked) // 2)

    def loss(self, tried: Floats, seed: int) -> float:
        """On held-out text, after a run with these weights; infinite where it diverged."""
        tried = within_bounds(tried)
        request = [storable(self._run), self._corpus, tried.tolist(), seed]
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
        self._asked.append(key)
        if key not in self._finished:
            self._finished = {**self._finished, key: self._found(key, tried, seed)}
            write_json(self._path, self._finished)
        loss = self._finished[key]["loss"]
        shown = "diverged" if loss is None else f"loss {loss:.4f}"
        self._watch(Notice(f"run {len(self._asked)} of {self._settings.runs}: {shown}"))
        return math.inf if loss is None else float(loss)

    def _found(self, key: str, tried: Floats, seed: int) -> dict[str, Any]:
        folder, path = self.folder / key, self.folder / f"{key}.toml"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_weights(path, tried)
        report = self._report(folder, path, seed)
        shutil.rmtree(folder)
        path.unlink()
        return {
            "loss": None if report.held_out is None else report.held_out.loss,
            "flops": report.cost_flops,
            "seconds": report.seconds["total"],
        }

    def _report(self, folder: Path, path: Path, seed: int) -> Report:
        run = self._run
        looks = run.evaluation.bare()
        choice = run.choice.model_copy(update={"policy_weights": path})
        changes = {"out": folder, "resume": True, "seed": seed, "evaluation": looks, "page": False}
        changes |= {"choice": choice, "eval_every": 0, "track": ()}
        try:
            return aql.run(run.model_copy(update=changes), self._watch, self._stop)
        except DivergedError:
            return report_of(folder).model_copy(update={"held_out": None})

    def total(self, name: str) -> float:
        """FLOPs or seconds of all runs that were asked for, whenever they were run."""
        return math.fsum(self._finished[key][name] for key in set(self._asked))


def run(settings: PolicySettings, watch: Watch = unwatched, stop: Stop = never) -> dict[str, Any]:
    """Weights that were found, what they are worth at one more seed, and what they cost."""
    if settings.out.is_dir():
        raise InputError(f"{settings.out} is a folder", "name a file for the weights with --out")
    evaluations, start = Evaluations(settings, watch, stop), weights()
    found = meta_train(
        evaluations.reward,
        start,
        sigma=settings.sigma,
        rate=settings.rate,
        rounds=(settings.runs - 2) // 2,
        seed=settings.seed,
    )
    found, judged = within_bounds(found), settings.seed + settings.runs
    before, after = (evaluations.loss(one, judged) for one in (start, found))
    write_weights(settings.out, found)
    return {
        "schema": 1,
        "command": "aql policy train",
        "out": str(settings.out),
        "runs": settings.runs,
        "weights": dict(zip(WEIGHTS, found.tolist(), strict=True)),
        "loss_before": before if math.isfinite(before) else None,
        "loss_after": after if math.isfinite(after) else None,
        "flops": {"meta": evaluations.total("flops")},
        "seconds": {"meta": evaluations.total("seconds")},
    }


def within_bounds(tried: Floats) -> Floats:
    """The nearest weights that a file may hold."""
    return tried.clip(-LARGEST_WEIGHT, LARGEST_WEIGHT)


def write_weights(path: Path, found: Floats) -> None:
    """Keep weights as a TOML file of numbers."""
    rows = (f"{name} = {value!r}\n" for name, value in zip(WEIGHTS, found.tolist(), strict=True))
    write_text(path, "".join(rows))
