"""Which candidates are chosen: keys, the best of each cluster, and the bounds of clusters."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effcli.engine.selection.best import Best
from effcli.engine.selection.keys import keys, places_of
from effcli.engine.selection.passages import Ids
from effcli.engine.selection.quotas import allocate

Floats = NDArray[np.float64]
CHUNK = 2**16  # candidates offered at one time


@dataclass(frozen=True)
class Quotas:
    """The least and the largest share of each cluster."""

    floors: Floats
    caps: Floats

    def left(self, used: Floats, tokens: int, smallest: float) -> "Quotas":
        """What they come to for the next so many tokens, given those that each cluster has had.

        A floor that lacks less than a passage waits: else a small choice would be nothing but
        the best passage of every cluster.
        """
        whole = used.sum() + tokens
        lacking = np.maximum(0.0, self.floors * whole - used)
        lacking[lacking < smallest] = 0.0
        room = np.maximum(lacking, self.caps * whole - used)
        return Quotas(lacking / tokens, room / tokens)


@dataclass(frozen=True)
class Choice:
    """What was chosen, in descending order of keys."""

    ids: Ids
    threshold: float
    """The lowest key that was chosen; without any, infinity."""
    quarantined: int
    """Candidates whose score is not a number."""


def choose(
    scores: Floats,
    ids: Ids,
    lengths: Ids,
    clusters: NDArray[np.int16],
    quotas: Quotas | None,
    tokens: int,
    noise: tuple[int, int] | None,
) -> Choice:
    """Choose passages of so many tokens.

    `noise` is seed and epoch; without it the highest scores win. Memory is for what is
    chosen, twice, and one chunk: whatever `allocate` takes is among the best of its cluster
    up to the cap, or among the best of all.
    """
    everything = Best(tokens)
    caps = None if quotas is None else np.ceil(np.minimum(1, quotas.caps) * tokens).astype(int)
    by_cluster = [] if caps is None else [Best(int(cap) + 1) for cap in caps]
    for start in range(0, len(ids), CHUNK):
        part = slice(start, start + CHUNK)
        own = scores[part].astype(np.float64)
        if noise is not None:
            own = keys(own, ids[part], *noise)
        everything.offer(ids[part], own, lengths[part])
        for number, best in enumerate(by_cluster):
            mine = clusters[part] == number
            best.offer(ids[part][mine], own[mine], lengths[part][mine])
    if quotas is None:
        lowest = float(everything.keys.min(initial=np.inf))
        return Choice(everything.ids, lowest, everything.quarantined)
    kept = [everything, *by_cluster]
    kept_ids = np.concatenate([one.ids for one in kept])
    unique, first = np.unique(kept_ids, return_index=True)
    at = places_of(unique, ids)
    kept_keys = np.concatenate([one.keys for one in kept])[first]
    found = allocate(
        unique, kept_keys, lengths[at], clusters[at], quotas.floors, quotas.caps, tokens
    )
    lowest = float(kept_keys[np.isin(unique, found)].min(initial=np.inf))
    return Choice(found, lowest, everything.quarantined)
