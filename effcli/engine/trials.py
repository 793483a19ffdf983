"""What is tried before a run: settings around the given ones, for a part of the budget."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from effcli.settings.train import BUDGETS, TrainSettings

S = TypeVar("S", bound=TrainSettings)

HORIZON = 0.25  # of the run's budget; enough to rank rates, cheap enough to try several
WIDEST = 3.0  # rates are tried between a third and three times the given one
MOST_DECAY = 0.2
SEED_OFFSET = 2**32  # trials read other data than the run that is judged


@dataclass(frozen=True)
class Range:
    """Where the values of a setting are tried."""

    name: str
    low: float
    high: float
    is_log: bool

    def at(self, share: float) -> float:
        """The value at a share, 0..1, of the way from `low` to `high`."""
        if self.is_log:
            value = self.low * math.exp(share * math.log(self.high / self.low))
        else:
            value = self.low + share * (self.high - self.low)
        return round(value) if isinstance(self.low, int) and isinstance(self.high, int) else value


def usual_ranges(settings: TrainSettings) -> list[Range]:
    """Rate and weight decay."""
    lr = settings.optim.lr
    return [
        Range("optim.lr", lr / WIDEST, lr * WIDEST, is_log=True),
        Range("optim.weight_decay", 0.0, MOST_DECAY, is_log=False),
    ]


def candidates(ranges: list[Range], trials: int, seed: int) -> list[dict[str, float]]:
    """Values for every trial: none for the first, the others cover the ranges (Sobol 1967)."""
    from scipy.stats import qmc

    points = qmc.Sobol(len(ranges), seed=seed % 2**32).random(2 ** trials.bit_length())
    spread = [
        {one.name: one.at(float(share)) for one, share in zip(ranges, point, strict=True)}
        for point in points[: trials - 1]
    ]
    return [{}, *spread]


def with_share(settings: S, share: float, **changes: Any) -> S:
    """The same settings at a share of their budget, which may be more than 1."""
    limits = {name: value for name in BUDGETS if (value := getattr(settings, name)) is not None}
    return settings.model_copy(update={**budget_of(limits, share), **changes})


def budget_of(limits: Mapping[str, float], share: float) -> dict[str, float]:
    """A share of every limit; steps and tokens stay whole numbers."""
    return {
        name: value * share if name in ("flops", "minutes") else math.ceil(value * share - 1e-6)
        for name, value in limits.items()
    }
