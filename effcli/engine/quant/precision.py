"""Bits for every tensor: more of them where fewer do damage, at the same bytes.

Damage is measured, one tensor at a time, and never guessed from sizes of gradients: which
way an error points matters more than how large it is. Tensors whose damage falls alike share
their bits, so that every assignment can be tried; what looks best on paper is measured again
with all tensors low at once, where errors meet.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effcli.engine.measure.k_means import k_means
from effcli.errors import InputError

OPTIONS = (1.0, 1.58, 2.0, 4.0, 8.0)
CLUSTERS = 4
MEASURED_AGAIN = 10
SURE = 2.0  # standard errors that mixed bits must gain
_LEAST, _MOST = 1e-8, 1e8  # damage beyond which curves are alike; what is not finite is worst

Bits = Mapping[str, float]
Floats = NDArray[np.float64]
Damage = Callable[[Bits], Floats]
"""What the loss of each of some windows rises by, in nats per token, when these tensors have
these bits and all others are as they were."""
Size = Callable[[str, float], int]
"""Bytes of a tensor's file at these bits, scales and all."""


@dataclass(frozen=True)
class Precision:
    """What bits every tensor has, and what that was found to do."""

    bits: dict[str, float]
    bytes: int
    damage: float
    """Mean over the windows, measured with all tensors at once."""
    uniform: float
    """The most bits that all tensors can have in as many bytes."""
    uniform_damage: float
    gain: float
    """Of the best mixed bits over the uniform ones; their mean damage is so much smaller."""
    gain_error: float
    """Standard error of the gain, window by window."""

    @property
    def is_mixed(self) -> bool:
        """Whether mixed bits were worth it."""
        return len(set(self.bits.values())) > 1


def measured(names: Sequence[str], damage: Damage, options: Sequence[float] = OPTIONS) -> Floats:
    """Mean damage of each tensor alone at each option, of shape (tensors, options)."""
    found = np.array([[damage({name: bits}).mean() for bits in options] for name in names])
    return np.where(np.isfinite(found), np.minimum(found, _MOST), _MOST)


def alike(table: Floats, clusters: int = CLUSTERS) -> NDArray[np.int64]:
    """The cluster of each tensor, by the logarithms of its damage: at most so many.

    Damage can be below 0 by chance; it counts as none.
    """
    if len(table) <= clusters:
        return np.arange(len(table), dtype=np.int64)
    return k_means(np.log(np.maximum(table, _LEAST)), clusters, 0, n_init=10)


def candidates(
    table: Floats, clusters: NDArray[np.int64], sizes: NDArray[np.int64], budget: int
) -> list[tuple[int, ...]]:
    """For each tensor the number of its option, in every way that fits, least damage first.

    Tensors of a cluster have the same option; damages add up. `sizes` has the shape of the
    table, in bytes. Of equal damage, fewer bytes come first.
    """
    count, options = int(clusters.max()) + 1, range(table.shape[1])
    is_in = clusters == np.arange(count)[:, None]
    damages, bytes_ = is_in @ np.maximum(table, 0), is_in @ sizes
    rows = np.arange(count)
    ways = np.array(list(itertools.product(options, repeat=count)))
    totals = bytes_[rows, ways].sum(1)
    ways, totals = ways[totals <= budget], totals[totals <= budget]
    order = np.lexsort((totals, damages[rows, ways].sum(1)))
    return [tuple(way[clusters].tolist()) for way in ways[order]]


def assign(
    names: Sequence[str],
    damage: Damage,
    size: Size,
    budget: int,
    *,
    options: Sequence[float] = OPTIONS,
    clusters: int = CLUSTERS,
) -> Precision:
    """The bits that do least damage in `budget` bytes.

    Mixed bits must be better than uniform ones by more than SURE standard errors, measured
    window by window, else they are uniform. A budget that no uniform bits fit is an error.
    """
    sizes = np.array([[size(name, bits) for bits in options] for name in names], dtype=np.int64)
    totals = sizes.sum(0)
    fitting = [number for number in range(len(options)) if totals[number] <= budget]
    if not fitting:
        least = f"{int(totals.min()):,} at {options[int(totals.argmin())]:g} bits"
        raise InputError(f"{budget:,} bytes are fewer than the tensors take: {least}")
    most = max(fitting, key=lambda number: options[number])
    table = measured(names, damage, options)
    ways = candidates(table, alike(table, clusters), sizes, budget)[:MEASURED_AGAIN]

    def joint(way: Sequence[int]) -> Floats:
        return damage(_bits(names, way, options))

    plain = (most,) * len(names)
    uniform = joint(plain)
    found = [(way, joint(way)) for way in ways if way != plain]
    best, losses = min(found, key=lambda pair: _mean(pair[1]), default=(plain, uniform))
    gains = uniform - losses
    gain, error = float(gains.mean()), float(gains.std(ddof=1)) / math.sqrt(len(gains))
    is_sure = math.isfinite(gain) and gain > SURE * error and gain > 0
    chosen, losses = (best, losses) if is_sure else (plain, uniform)
    return Precision(
        _bits(names, chosen, options),
        int(sizes[np.arange(len(names)), list(chosen)].sum()),
        float(losses.mean()),
        options[most],
        float(uniform.mean()),
        gain,
        error,
    )


def _bits(names: Sequence[str], way: Sequence[int], options: Sequence[float]) -> dict[str, float]:
    return {name: options[number] for name, number in zip(names, way, strict=True)}


def _mean(losses: Floats) -> float:
    mean = float(losses.mean())
    return mean if math.isfinite(mean) else math.inf
