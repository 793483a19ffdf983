"""A suite of throughputs: which shapes of models take turns with a plain script, and how long."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from effcli.settings.base import TIERS, Count, Settings
from effcli.settings.presets import PRESETS

REFERENCE, PREPARE = "reference", "prepare"
"""What is beside every arm: the plain script; and the part that is about text, not training."""

Rounds = Annotated[int, Field(ge=1, le=1000)]


class Variant(Settings):
    """One way to train whose speed is measured."""

    about: str = ""
    """What it is, in a sentence."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Of `eff baseline`, on top of the suite's, the tier's and the shape's."""


class Shape(Settings):
    """A model and what it reads in one step."""

    preset: str | None = None
    """By default the one of the shape's name."""
    vocabulary: Annotated[Count, Field(ge=2, le=2**32)]
    sequences: Count
    """Of one step."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """On top of the suite's and the tier's."""
    arms: tuple[str, ...] | None = None
    """Those that there is room for at one time; by default all."""


class Text(Settings):
    """How `eff prepare` is measured."""

    bytes: Annotated[Count, Field(ge=10_000)]
    """Of the standard library's text, as often as it takes."""
    rounds: Rounds


class SpeedTier(Settings):
    """A size of a suite."""

    shapes: Annotated[tuple[str, ...], Field(min_length=1)]
    rounds: Rounds = 5
    """Turns of every arm."""
    seconds: Annotated[float, Field(ge=0, le=600)] = 1.0
    """Of a turn, or one step where that takes longer."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """On top of the suite's."""
    prepare: Text | None = None


class SpeedSuite(Settings):
    """Arms that take turns with a plain script of the same shape."""

    kind: Literal["speed"]
    title: str
    about: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Of every arm."""
    tiers: Annotated[dict[str, SpeedTier], Field(min_length=1)]
    shapes: Annotated[dict[str, Shape], Field(min_length=1)]
    arms: Annotated[dict[str, Variant], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in self.arms:
            if name in (REFERENCE, PREPARE) or "," in name:
                raise ValueError(f"no arm can be called {name!r}")
        for name, shape in self.shapes.items():
            if (shape.preset or name) not in PRESETS:
                raise ValueError(f"shape {name!r} has no preset: {', '.join(PRESETS)}")
            for arm in shape.arms or ():
                if arm not in self.arms:
                    raise ValueError(f"there is no arm called {arm!r} for shape {name!r}")
        for name, tier in self.tiers.items():
            if name not in TIERS:
                raise ValueError(f"there is no tier called {name!r}: {', '.join(TIERS)}")
            for listed in tier.shapes:
                if listed not in self.shapes:
                    raise ValueError(f"there is no shape called {listed!r} for tier {name!r}")
        return self
