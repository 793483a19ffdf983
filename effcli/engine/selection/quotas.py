"""How a budget is divided over clusters: the best of all, within bounds for each cluster."""

import numpy as np
from numpy.typing import NDArray

from effcli.engine.selection.best import ranked
from effcli.engine.selection.keys import Floats, Ids, finite


def bounds(
    pool_share: Floats, mean_weight: Floats, low: float = 0.5, high: float = 2.0
) -> tuple[Floats, Floats]:
    """The least and the largest share of the budget of each cluster.

    They are `low` and `high` times the cluster's share of the pool, weighted by the mean
    density ratio of its passages. The sum of the least is at most 1, of the largest at
    least 1. If no weight is positive, the shares of the pool count.
    """
    if not 0 <= low <= 1 <= high:
        raise ValueError(f"low and high must lie on both sides of 1, not {low} and {high}")
    # An empty cluster has no mean.
    weighted = np.where(pool_share > 0, pool_share * mean_weight, 0.0)
    expected = weighted if weighted.any() else pool_share
    expected = expected / expected.sum()
    return low * expected, np.minimum(high * expected, 1.0)


def allocate(
    ids: Ids,
    keys: Floats,
    tokens: NDArray[np.integer],
    clusters: NDArray[np.integer],
    floors: Floats,
    caps: Floats,
    budget: int,
) -> Ids:
    """The ids, in descending order of keys, of items whose tokens reach the budget, or of all.

    Floors and caps are shares of the budget by cluster, 0 <= floor <= cap. Items come in four
    turns, each in descending order of keys: those that lead their cluster to its floor within
    its cap, those that lead it there beyond its cap, those within their caps, and the rest.
    Only the last to come passes the budget. Keys that are not finite are left out. The order
    of the items does not matter.
    """
    order = ranked(ids, keys)
    order = order[finite(keys)[order]]
    tokens, clusters = tokens[order], clusters[order]
    through = _running(tokens, clusters)
    is_past_floor = through - tokens >= (floors * budget)[clusters]
    is_beyond_cap = through > (caps * budget)[clusters]
    turn = np.argsort(2 * is_past_floor + is_beyond_cap, kind="stable")
    before = np.cumsum(tokens[turn]) - tokens[turn]
    chosen = np.sort(turn[before < budget])
    best: Ids = ids[order[chosen]]
    return best


def _running(tokens: NDArray[np.integer], clusters: NDArray[np.integer]) -> Ids:
    """For each item, the tokens of its cluster so far and its own."""
    order = np.argsort(clusters, kind="stable")
    sums = np.cumsum(tokens[order], dtype=np.int64)
    first = np.searchsorted(clusters[order], clusters[order])
    running = np.empty(len(tokens), dtype=np.int64)
    running[order] = sums - np.concatenate([[0], sums])[first]
    return running
