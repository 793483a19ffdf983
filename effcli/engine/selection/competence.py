"""The share of the passages, by difficulty, that a model may read: it grows with progress."""

from collections.abc import Callable, Sequence

import numpy as np

from effcli.engine.selection.keys import Floats

Curriculum = Callable[[float, float, float], float]
"""Competence by the share of the way, its start, and the power of the root."""


def off(_x: float, _start: float, _power: float) -> float:
    """All of it, always."""
    return 1.0


def linear(x: float, start: float, _power: float) -> float:
    """A straight line."""
    return start + (1 - start) * x


def root(x: float, start: float, power: float) -> float:
    """Fast at first, then slower (Platanios et al. 2019, section 3.2)."""
    lowest: float = start**power
    return float(((1 - lowest) * x + lowest) ** (1 / power))


def exponential(x: float, start: float, _power: float) -> float:
    """Slow at first, then faster."""
    return float(start ** (1 - x))


def competence(
    curve: Curriculum, progress: float, *, start: float, length: float, power: float = 2.0
) -> float:
    """The admitted share, from `start` at progress 0 to 1 at progress `length` and after it.

    `start` is in (0, 1], `power` is positive.
    """
    if progress >= length:
        return 1.0
    return min(1.0, max(start, curve(max(progress, 0.0) / length, start, power)))  # powers round


def difficulty(columns: Sequence[Floats]) -> Floats:
    """How difficult each passage is among all: its percentile by its mean rank in the columns.

    The numbers are 1/n, 2/n, .., 1, so `difficulty <= c` admits the share c. Equals share
    their mean rank in a column, and NaN counts as larger than any number. Passages of equal
    mean rank come in their own order.
    """
    from scipy.stats import rankdata  # a hundred megabytes, only where something is paced

    ranks = sum(rankdata(np.where(np.isnan(column), np.inf, column)) for column in columns)
    places: Floats = rankdata(ranks, method="ordinal").astype(np.float64)
    return places / max(1, len(places))
