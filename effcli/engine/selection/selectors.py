"""How candidates are scored. The ones that lose are kept, to be compared with."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effcli.engine.selection.pool import Candidates

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Known:
    """What a selector may go by."""

    candidates: Candidates
    uncertainty: Floats
    """Of every candidate, standardized over the pool."""
    exponent: float
    """Of the ratio of densities."""
    tilt: float
    """Of uncertainty."""


@dataclass(frozen=True)
class Selector:
    """One way to score candidates."""

    score: Callable[[Known], Floats]
    is_drawn: bool = True
    """Whether passages are drawn with chances by their scores; else the highest win."""
    has_quotas: bool = True
    """Whether no cluster may be left out or take over."""
    keeps_copies: bool = False
    needs_ratio: bool = False
    """Whether it goes by trusted text."""


def _nothing(known: Known) -> Floats:
    return np.zeros(len(known.candidates))


def _ratio(known: Known) -> Floats:
    with np.errstate(divide="ignore"):
        logs = np.log(known.candidates["ratio"].astype(np.float64))
    return known.exponent * logs


def _tilted(known: Known) -> Floats:
    return _ratio(known) + known.tilt * known.uncertainty


def _column(name: str) -> Callable[[Known], Floats]:
    return lambda known: known.candidates[name].astype(np.float64)


RANDOM = Selector(_nothing, has_quotas=False, keeps_copies=True)
DEDUP = Selector(_nothing, has_quotas=False)
RATIO = Selector(_ratio, needs_ratio=True)
EXCESS = Selector(_column("excess"), is_drawn=False, has_quotas=False, needs_ratio=True)
UNCERTAINTY = Selector(lambda known: known.uncertainty, is_drawn=False, has_quotas=False)
LOSS = Selector(_column("loss"), is_drawn=False, has_quotas=False)
AUTO = Selector(_tilted)
CAUTIOUS = Selector(_nothing)
"""What `auto` does where nothing says that the pool is good."""
