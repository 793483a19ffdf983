"""The best of a stream of passages, in memory for no more than are kept and one chunk."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from effcli.engine.selection.keys import Floats, Ids, finite

_LARGEST_SHIFT = 2.0**20  # beyond it, keys are counted anew: they keep 32 bits below the point


def ranked(ids: Ids, keys: Floats) -> Ids:
    """Places by descending key, ties by ascending id."""
    return np.lexsort((ids, -keys))


class Best:
    """The passages of highest key whose tokens reach a budget, or all if they do not.

    Kept is the shortest such row, in descending order of keys, ties by ascending id. So the
    order of arrival does not matter, and the best of the best of parts are the best of the
    whole. An id that is offered twice is kept twice.

    With `decay`, a key loses that much per unit of time since its arrival. All keys lose the
    same, so only a later arrival needs a number: it is ahead by decay × time (Cormode et al.
    2009, forward decay).
    """

    def __init__(self, budget: int, decay: float = 0.0) -> None:
        self.budget, self.decay = budget, decay
        self.ids: Ids = np.empty(0, dtype=np.int64)
        self.keys: Floats = np.empty(0)
        """In descending order, as they were at time `since`."""
        self.tokens: Ids = np.empty(0, dtype=np.int64)
        self.since = 0.0
        self.quarantined = 0
        """How many were offered with a key that is not finite; none of them is kept."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_full(self) -> bool:
        """Whether the kept tokens reach the budget."""
        return int(self.tokens.sum()) >= self.budget

    @property
    def threshold(self) -> float:
        """What a key at time `since` must reach to be kept; it never falls while that stays."""
        if not self.is_full:
            return -np.inf
        return float(self.keys[-1]) if len(self) else np.inf

    def keys_at(self, time: float) -> Floats:
        """The kept keys, decayed until a time."""
        return self.keys - self.decay * (time - self.since)

    def offer(
        self, ids: Ids, keys: NDArray[np.floating], tokens: NDArray[np.integer], at: float = 0.0
    ) -> None:
        """Keep what is among the best of a chunk that arrives at a time; tokens are positive."""
        sound = finite(keys)
        self.quarantined += len(sound) - int(sound.sum())
        if self.decay * (at - self.since) > _LARGEST_SHIFT:
            self._count_from(at)
        exact = keys[sound].astype(np.float64) + self.decay * (at - self.since)
        self._take(ids[sound], exact, tokens[sound])

    def merge(self, other: "Best") -> None:
        """Keep what is among the best of another part of the stream; it stays as it is."""
        self._count_from(max(self.since, other.since))
        self.quarantined += other.quarantined
        self._take(other.ids, other.keys_at(self.since), other.tokens)

    def _count_from(self, time: float) -> None:
        self.keys, self.since = self.keys_at(time), time

    def _take(self, ids: Ids, keys: Floats, tokens: NDArray[np.integer]) -> None:
        hopeful = keys >= self.threshold
        if not hopeful.any():
            return
        ids = np.concatenate([self.ids, ids[hopeful]]).astype(np.int64)
        keys = np.concatenate([self.keys, keys[hopeful]])
        tokens = np.concatenate([self.tokens, tokens[hopeful]]).astype(np.int64)
        order = ranked(ids, keys)
        before = np.cumsum(tokens[order]) - tokens[order]
        kept = order[before < self.budget]
        self.ids, self.keys, self.tokens = ids[kept], keys[kept], tokens[kept]

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly: numbers and tensors."""
        return {
            "ids": torch.tensor(self.ids),
            "keys": torch.tensor(self.keys),
            "tokens": torch.tensor(self.tokens),
            "since": self.since,
            "quarantined": self.quarantined,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; budget and decay are those of this object."""
        self.ids = state["ids"].numpy().copy()
        self.keys = state["keys"].numpy().copy()
        self.tokens = state["tokens"].numpy().copy()
        self.since, self.quarantined = float(state["since"]), int(state["quarantined"])
