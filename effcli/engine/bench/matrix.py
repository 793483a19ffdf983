"""The runs of a suite. Each has a name that says everything its result depends on."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from effcli import __version__
from effcli.catalog import METHODS
from effcli.engine.device import Device
from effcli.engine.trials import HORIZON, Range, budget_of, candidates, usual_ranges
from effcli.errors import InputError
from effcli.settings.layers import stack, storable
from effcli.settings.suite import Suite
from effcli.settings.train import BUDGETS, EvaluationSettings, TrainSettings

#: What a suite decides for all arms alike, so that no arm has a say in it.
_RESERVED = ("data", "seed", "out", "resume", "save_at", "tune")
_WITHOUT_EFFECT = ("data", "save_every", "save_at", "keep", "price_per_hour", "track", "page")
#: Of a checkout, what a run's figures can depend on: not who compares, looks or draws.
_SOURCE = (
    *("engine", "methods", "settings", "catalog.py", "registry.py"),
    *("engine/bench/branch.py", "engine/bench/outcome.py"),
)
_NOT_SOURCE = (
    *("bench", "checkup", "templates", "suites", "page.py", "plots.py", "compare.py"),
    *("bench.py", "bench_speed.py", "suite.py", "speed.py", "doctor.py", "trackers.py"),
)

Layer = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One run: an arm, a seed, a budget."""

    id: str
    arm: str
    command: str
    is_trial: bool
    seed: int
    share: float
    """Of the tier's budget."""
    settings: TrainSettings
    teacher: str = ""
    """The cell that it learns from; none unless its arm has a teacher."""

    @property
    def title(self) -> str:
        """What it is, for people."""
        what = "a trial of " if self.is_trial else ""
        return f"{what}{self.arm}, seed {self.seed}, budget × {self.share:g}"


@cache
def source_hash() -> str:
    """Names the source that computes results: an edit of it makes other cells."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256(__version__.encode())
    for name in _SOURCE:
        place = root / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            inside = path.relative_to(root)
            is_other = path != place and set(inside.parts) & set(_NOT_SOURCE)
            if path.suffix in (".py", ".toml") and not is_other:
                digest.update(f"{inside.as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


class Matrix:
    """A suite at one tier, on one corpus."""

    def __init__(self, suite: Suite, tier: str, corpus: str, corpus_hash: str) -> None:
        if tier not in suite.tiers:
            raise InputError(f"this suite has no tier {tier!r}: {', '.join(suite.tiers)}")
        self.suite, self.tier_name, self.tier = suite, tier, suite.tiers[tier]
        self._corpus, self._corpus_hash = corpus, corpus_hash
        self.arms = dict(suite.arms)

    def only(self, names: tuple[str, ...]) -> None:
        """Leave out all arms but these."""
        for name in names:
            if name not in self.arms:
                raise InputError(f"there is no arm {name!r}: {', '.join(self.arms)}")
        wanted = {*names, *(self.arms[name].teacher for name in names)}
        self.arms = {name: arm for name, arm in self.arms.items() if not names or name in wanted}
        if not self.references:
            raise InputError(f"no reference among them: {', '.join(self.suite.references)}")

    @property
    def references(self) -> list[str]:
        """The references that are run."""
        return [name for name in self.suite.references if name in self.arms]

    def ordered(self) -> list[str]:
        """Arms, teachers and references first: a matrix that is cut off has something to say."""
        teachers = [arm.teacher for arm in self.arms.values() if arm.teacher is not None]
        return list(dict.fromkeys((*teachers, *self.references, *self.arms)))

    def shares(self, name: str) -> list[float]:
        """The budgets of an arm, small ones first."""
        return sorted(self.arms[name].shares or self.tier.shares)

    @cache  # noqa: B019 - there is one matrix in a process
    def tried(self, name: str) -> list[dict[str, float]]:
        """What the trials of an arm change."""
        arm, trials = self.arms[name], self.tier.trials
        if not arm.is_tuned or not trials:
            return []
        ranges = usual_ranges(self.settings(name))
        if (knob := arm.knob) is not None:
            if knob.name.partition(".")[0] in (*_RESERVED, *BUDGETS):
                raise InputError(f"arm {name}: {knob.name} is no knob, it is the same for all arms")
            ranges.append(Range(knob.name, knob.low, knob.high, knob.scale == "log"))
        return candidates(ranges, trials, self.suite.tuning_seed)

    @cache  # noqa: B019 - there is one matrix in a process
    def trials(self, name: str, teacher: str = "") -> list[Cell]:
        """The trials of an arm, in the order of `tried`: a quarter of its largest budget each."""
        share, numbers = HORIZON * self.shares(name)[-1], range(len(self.tried(name)))
        return [self._trial(name, number, share, teacher) for number in numbers]

    def finals(self, name: str, numbers: Iterable[int], teacher: str = "") -> list[Cell]:
        """Some of the trials once more, at the largest budget that all arms have."""
        arms = self.suite.arms.values()
        share = min(max(arm.shares or self.tier.shares) for arm in arms)
        return [self._trial(name, number, share, teacher) for number in numbers]

    def _trial(self, name: str, number: int, share: float, teacher: str) -> Cell:
        bare = {f"evaluation.{name}": value for name, value in EvaluationSettings.BARE.items()}
        layer = ("trial", {"eval_every": 0, **bare, **self.tried(name)[number]})
        return self._cell(name, self.suite.tuning_seed, share, layer, teacher, is_trial=True)

    @cache  # noqa: B019 - there is one matrix in a process
    def runs(self, name: str, seed: int, teacher: str = "", **chosen: float) -> list[Cell]:
        """The runs of an arm and a seed, small budgets first, with what its trials chose."""
        return [
            self._cell(name, seed, share, ("tuning", chosen), teacher)
            for share in self.shares(name)
        ]

    def settings(self, name: str, *layers: Layer) -> TrainSettings:
        """The settings of an arm at the whole budget."""
        arm, tier = self.arms[name], self.tier
        looks = {"evaluation.samples": 0, "device.compile": "off", "page": False}
        above: list[Layer] = [
            ("bench", {"data": self._corpus, **looks}),
            ("suite", self.suite.settings),
            (f"tier {self.tier_name}", tier.settings),
            (f"arm {name}", arm.settings),
        ]
        for origin, values in above[1:]:
            if taken := sorted(set(_RESERVED) & set(values)):
                message = f"{origin}: {taken[0]} is decided by the suite, not by its settings"
                raise InputError(message, "leave it out; --data names the corpus")
        cls: Any = METHODS.load(arm.command)
        if arm.teacher is not None and arm.settings.get("student", "same") == "same":
            above.insert(1, ("teacher", cls.like(storable(self.settings(arm.teacher)))))
        try:
            settings: TrainSettings = stack(cls, [*above, *layers]).settings
        except InputError as error:
            raise InputError(f"arm {name}: {error.message}", error.hint) from None
        if settings.minutes is not None:
            raise InputError(f"arm {name}: minutes are no budget that two runs can share")
        return settings

    def _cell(
        self,
        name: str,
        seed: int,
        share: float,
        layer: Layer,
        teacher: str,
        *,
        is_trial: bool = False,
    ) -> Cell:
        whole = self.settings(name, layer)
        limits = {one: value for one in BUDGETS if (value := getattr(whole, one)) is not None}
        settings = whole.model_copy(update={**budget_of(limits, share), "seed": seed})
        command = self.arms[name].command
        name_of_it = self._id(command, settings, teacher)
        return Cell(name_of_it, name, command, is_trial, seed, share, settings, teacher)

    def _id(self, command: str, settings: TrainSettings, teacher: str) -> str:
        tree = storable(settings)
        for name in _WITHOUT_EFFECT:
            tree.pop(name, None)
        device = Device(settings.device)
        where = [device.kind, str(device.dtype), torch.__version__]
        facts = [command, tree, where, self._corpus_hash, source_hash()]
        facts += [teacher] if teacher else []
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def in_order(matrix: Matrix, seeds: range) -> Iterator[tuple[int, str]]:
    """(seed, arm), cheapest information first: one seed of everything, then the next."""
    for seed in seeds:
        for name in matrix.ordered():
            yield seed, name


def require_pairs(matrix: Matrix) -> None:
    """Arms whose windows of text differ cannot be paired."""
    seen: dict[tuple[int, int], str] = {}
    for name in matrix.ordered():
        for cell in (*matrix.trials(name), *matrix.runs(name, matrix.suite.first_seed)):
            settings = cell.settings
            seen.setdefault((settings.model.context, settings.evaluation.tokens), cell.title)
    if len(seen) > 1:
        first, second, *_ = seen.values()
        raise InputError(
            f"{first} and {second} read windows of other lengths, so they are no pairs",
            "give them the same model.context and evaluation.tokens",
        )
