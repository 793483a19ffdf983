"""A suite: which commands are compared, at what budgets, with how many seeds. A small TOML file."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from effcli.catalog import METHODS
from effcli.errors import InputError
from effcli.registry import suggestion
from effcli.settings.base import TIERS, Count, Settings
from effcli.settings.layers import LARGEST_FILE
from effcli.settings.speed import SpeedSuite

SUFFIX = ".toml"


def _unique(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    if values is not None and len(set(values)) < len(values):
        raise ValueError("one of them stands there twice")
    return values


Share = Annotated[float, Field(gt=0, le=64)]
Shares = Annotated[tuple[Share, ...], Field(min_length=1), AfterValidator(_unique)]
Names = Annotated[tuple[str, ...], AfterValidator(_unique)]
MOST_SEEDS = 40  # whose signs can be flipped in all ways
Seeds = Annotated[Count, Field(le=MOST_SEEDS)]
Seed = Annotated[int, Field(ge=0, lt=2**62)]


class Knob(Settings):
    """One setting of an arm's own that its trials vary beside rate and weight decay."""

    name: str
    low: int | float
    high: int | float
    """Two whole numbers are ends of a range of whole numbers."""
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.low < self.high:
            raise ValueError("low is not below high")
        if self.scale == "log" and self.low <= 0:
            raise ValueError("a logarithmic scale has no zero")
        return self


class Arm(Settings):
    """One side of a comparison: a command and what it changes."""

    about: str = ""
    """What it is, in a sentence."""
    command: str = "baseline"
    """The training command that it runs."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """On top of the suite's and the tier's."""
    teacher: str | None = None
    """Arm whose run of the same seed, at its largest budget, teaches this one; billed there."""
    shares: Shares | None = None
    """Its budgets, as shares of the tier's; by default the tier's."""
    is_tuned: bool = True
    """Whether it gets the tier's trials; a published recipe is taken as it is."""
    knob: Knob | None = None


class Tier(Settings):
    """A size of a suite."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """On top of the suite's."""
    shares: Shares = (0.5, 0.7, 1.0)
    """Budgets of complete runs, as shares of the one in the settings."""
    seeds: Seeds = 5
    trials: Annotated[int, Field(ge=0, le=64)] = 8
    """Short runs of every arm that is tuned."""
    finals: Annotated[int, Field(ge=0, le=16)] = 0
    """Of these the best so many are tried again, at the whole budget; 0 goes by the short runs."""

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.finals == 1 or self.finals > self.trials:
            raise ValueError("finals: some of the trials are tried again, 2 at least")
        return self


class Suite(Settings):
    """Arms that are compared with references at equal cost and equal tuning."""

    kind: Literal["loss"] = "loss"
    title: str
    about: str = ""
    references: Annotated[Names, Field(min_length=1)]
    """Arms that all others are compared with."""
    subject: str | None = None
    """The arm that it is about; by default the one that gains most."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Relative difference of costs that is no difference."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Of every arm."""
    first_seed: Seed = 0
    tuning_seed: Seed = 2**32
    """The trials' seed, which no run that is compared may have."""
    include: Names = ()
    """Shipped suites whose arms are taken over; an arm of the same name here replaces theirs."""
    tiers: Annotated[dict[str, Tier], Field(min_length=1)]
    arms: dict[str, Arm] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _includes(cls, tree: dict[str, Any]) -> dict[str, Any]:
        names, own, arms = tree.get("include"), tree.get("arms", {}), dict[str, Any]()
        if not isinstance(names, list) or not isinstance(own, dict):
            return tree  # whose fields say what is wrong with it
        for name in names:
            if name not in shipped():
                raise ValueError(f"there is no shipped suite {name!r} to include")
            arms |= read_suite(name).arms
        return {**tree, "arms": {**arms, **own}}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.arms:
            raise ValueError("there are no arms")
        for name in self.references:
            if name not in self.arms:
                raise ValueError(f"there is no arm called {name!r} to be a reference")
        if self.subject is not None and self.subject not in self.arms:
            raise ValueError(f"there is no arm called {self.subject!r} to be the subject")
        for name in self.tiers:
            if name not in TIERS:
                raise ValueError(f"there is no tier called {name!r}: {', '.join(TIERS)}")
        for name, arm in self.arms.items():
            if arm.command not in METHODS:
                raise ValueError(f"arm {name!r} has an unknown command {arm.command!r}")
            if arm.knob is not None and not arm.is_tuned:
                raise ValueError(f"the knob of arm {name!r} has no effect: it is not tuned")
            if arm.teacher is not None:
                self._require_teacher(name, arm.teacher)
        return self

    def _require_teacher(self, name: str, teacher: str) -> None:
        if teacher not in self.arms:
            raise ValueError(f"there is no arm called {teacher!r} to teach {name!r}")
        if self.arms[teacher].teacher is not None:
            raise ValueError(f"the teacher of arm {name!r} has a teacher of its own")
        if "teacher" not in METHODS.load(self.arms[name].command).model_fields:
            raise ValueError(f"the command of arm {name!r} takes no teacher")

    def seeds(self, count: int) -> range:
        """The seeds of the runs that are compared; not one of them may be the trials'."""
        seeds = range(self.first_seed, self.first_seed + count)
        if self.tuning_seed in seeds:
            message = f"seed {self.tuning_seed} is for tuning and for comparing"
            raise InputError(message, "set another tuning_seed")
        return seeds


def shipped() -> list[str]:
    """The names of the suites that come with the package."""
    found = files("effcli.settings.suites").iterdir()
    return sorted(one.name.removesuffix(SUFFIX) for one in found if one.name.endswith(SUFFIX))


def read_suite(name: str) -> Suite | SpeedSuite:
    """A suite by its name or its file, or what is wrong with it, and in which line."""
    if name in shipped():
        text = files("effcli.settings.suites").joinpath(name + SUFFIX).read_text("utf8")
        return parse_suite(text, name)
    path = Path(name)
    if not path.is_file():
        raise InputError(f"there is no suite {name!r}", suggestion(name, shipped()))
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{path} is too large for a suite")
        return parse_suite(path.read_text("utf8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the suite {path}: {error}") from None


def parse_suite(text: str, origin: str) -> Suite | SpeedSuite:
    """A suite from its text, which says its kind."""
    try:
        tree = tomllib.loads(text)
        kind = SpeedSuite if tree.get("kind") == "speed" else Suite
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        place = ".".join(str(step) for step in first["loc"])
        if first["type"] == "extra_forbidden":
            message = "there is no such field"
        words = [str(step) for step in first["loc"]] or message.split("'")[1:2]
        raise InputError(f"{origin}{line_of(text, words)}: {place or 'suite'}: {message}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{origin} is not valid TOML: {error}") from None


def line_of(text: str, words: list[str]) -> str:
    """`, line N`: the first line that has the last of the words, below those with the others."""
    number = 0
    for word in words:
        found = (
            at for at, line in enumerate(text.splitlines(), 1) if at > number - 1 and word in line
        )
        number = next(found, number)
    return f", line {number}" if number else ""
