"""The keys of passages: the highest of them are a draw without replacement.

A score plus Gumbel noise is a key; passages by descending key come in the order of draws
with chances proportional to e^score of what is left (Yellott 1977, Vieira 2014). The noise
is a hash of passage, seed and epoch, so neither order of arrival nor a restart changes it.
"""

import numpy as np
from numpy.typing import NDArray

from effcli.engine.data.order import mix64, mix64_array

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

_NOISE = 1  # the salt of Gumbel noise


def uniform(ids: Ids, seed: int, epoch: int, salt: int) -> Floats:
    """A number in the open interval (0, 1) for each id; other salts give unrelated numbers.

    Different ids have different hashes, of which 52 bits are used.
    """
    key = np.uint64(mix64(mix64(mix64(seed) + epoch) + salt))
    hashes = mix64_array(mix64_array(ids.astype(np.uint64)) ^ key)
    # One bit more, and the largest would be rounded to 1.
    return ((hashes >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def gumbel(ids: Ids, seed: int, epoch: int) -> Floats:
    """Standard Gumbel noise for each id."""
    return -np.log(-np.log(uniform(ids, seed, epoch, _NOISE)))


def places_of(wanted: Ids, ids: Ids) -> Ids:
    """Where ids stand among others, which have all of them, in any order."""
    order = np.argsort(ids, kind="stable")
    places: Ids = order[np.searchsorted(ids, wanted, sorter=order)]
    return places


def finite(scores: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which scores are numbers; a passage with any other is never selected."""
    is_finite: NDArray[np.bool_] = np.isfinite(scores)
    return is_finite


def keys(
    scores: NDArray[np.floating], ids: Ids, seed: int, epoch: int, *, sampled: bool = True
) -> Floats:
    """Scores with noise, or without it: then the highest scores win.

    Scores that are not finite make keys that are not.
    """
    exact = scores.astype(np.float64)
    return exact + gumbel(ids, seed, epoch) if sampled else exact
