"""Scores of different kinds, brought to one scale."""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_LARGEST = 3.0  # in standard deviations; a rare value would else outweigh all the others


def standardized(values: Floats, weights: Floats | None = None) -> Floats:
    """Z-scores within ±3 of what is known; the unknown is average, 0."""
    is_known = np.isfinite(values)
    shares = np.ones(int(is_known.sum())) if weights is None else weights[is_known]
    total = shares.sum()
    if not total:
        return np.zeros(len(values))
    known = values[is_known].astype(np.float64)
    known = known / max(np.abs(known).max(), 1e-300)  # squares neither overflow nor vanish
    known = known - shares @ known / total
    deviation = math.sqrt(shares @ known**2 / total)
    scored = np.zeros(len(values))
    if deviation > 1e-12:  # else they differ by rounding alone
        scored[is_known] = known / deviation
    return scored.clip(-_LARGEST, _LARGEST)
