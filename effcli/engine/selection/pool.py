"""The pool of a run: which windows are left, and which of them are looked at next."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from effcli.engine.selection.competence import difficulty
from effcli.engine.selection.keys import uniform
from effcli.engine.selection.passages import Ids, Text
from effcli.engine.selection.sidecar import Scores
from effcli.engine.selection.synth import hard_from, shifts
from effcli.errors import InputError

Floats = NDArray[np.floating]
_ORDER = 3  # salt of the order in which windows come


@dataclass(frozen=True)
class Candidates:
    """Windows that are looked at, of which some are chosen; all of them are used up by it."""

    ids: Ids
    columns: Mapping[str, NDArray[Any]]
    """Scores, `cluster` and `length`, as in a sidecar; `good`, where labels say so."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]


class Pool(Protocol):
    """Where candidates come from."""

    @property
    def repeats(self) -> bool:
        """Whether what was chosen can be read again."""
        ...

    @property
    def spent(self) -> float:
        """FLOPs of scores that were made while reading."""
        ...

    def begin(self, epoch: int, chosen: Ids) -> None:
        """Start from the beginning: with all passages, or again with those that were chosen."""
        ...

    def to_look_at(self, wanted: int, left: int) -> int:
        """Tokens of candidates for so many that are chosen, of those left in this epoch."""
        ...

    def candidates(self, tokens: int, admitted: float, harder: Mapping[str, Floats]) -> Candidates:
        """Passages of so many tokens, of the share of the pool that is admitted by difficulty.

        `harder` are columns, by cluster, that count as difficulty beside the pool's own.
        """
        ...

    def fetch(self, ids: Ids) -> Ids:
        """The tokens of candidates, and the one behind each, of shape (windows, context + 1)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Which passages were looked at."""
        ...

    def load_state_dict(self, state: dict[str, Any], chosen: Ids) -> None:
        """Go on from a state, with what was chosen in the first epoch."""
        ...


class Shards:
    """The windows of a prepared corpus, each looked at once in an epoch, in a random order.

    A window has the scores of the passage that its middle is in. They are the windows of a
    plain run: other stretches, put together from several passages, were worse to learn from.
    """

    repeats: ClassVar[bool] = True
    spent: ClassVar[float] = 0.0

    def __init__(
        self,
        text: Text,
        scores: Scores,
        eligible: NDArray[np.bool_],
        context: int,
        seed: int,
        is_good: NDArray[np.bool_] | None = None,
        is_moving: bool = False,
    ) -> None:
        """`eligible` and `is_good` are of passages: may it be read, is it worth reading.

        With `is_moving`, hard windows begin elsewhere in every pass after the first.
        """
        self._text, self._scores, self._context = text, scores, context
        self._seed, self._is_good, self._is_moving = seed, is_good, is_moving
        middles = np.arange((text.tokens - 1) // context) * context + context // 2
        owners = scores.passages.at(middles)
        is_inside = middles < (scores["start"] + scores["length"])[owners]
        self._owners = owners
        self._all = np.flatnonzero(is_inside & (owners >= 0) & eligible[owners])
        self.begin(0, np.empty(0, dtype=np.int64))

    def limit(self, tokens: int) -> None:
        """Leave out all but a random part of the pool, of so many tokens."""
        order = self._all[np.argsort(uniform(self._all, self._seed, 0, _ORDER))]
        self._all = np.sort(order[: -(-tokens // self._context)])
        self.begin(0, np.empty(0, dtype=np.int64))

    @property
    def tokens(self) -> int:
        """Of all that may be looked at."""
        return len(self._all) * self._context

    def columns(self) -> dict[str, NDArray[Any]]:
        """Scores of all that may be looked at."""
        return self._columns(self._all)

    def _columns(self, ids: Ids) -> dict[str, NDArray[Any]]:
        owners = self._owners[ids]
        found = {name: column[owners] for name, column in self._scores.columns.items()}
        if self._is_good is not None:
            found["good"] = self._is_good[owners]
        return {**found, "length": np.full(len(ids), self._context)}

    def begin(self, epoch: int, chosen: Ids) -> None:
        """Start from the beginning: with all windows, or again with those that were chosen."""
        ids = chosen if epoch else self._all
        self._epoch = epoch
        self._hard_from = hard_from(self._scores["loss"][self._owners[chosen]])
        self._order = ids[np.argsort(uniform(ids, self._seed, epoch, _ORDER))]
        self._is_left = np.ones(len(self._order), dtype=bool)

    def tokens_left(self) -> int:
        """In windows that were not looked at in this epoch."""
        return int(self._is_left.sum()) * self._context

    def to_look_at(self, wanted: int, left: int) -> int:
        """The same share of what was not looked at."""
        return math.ceil(wanted / left * self.tokens_left())

    def candidates(self, tokens: int, admitted: float, harder: Mapping[str, Floats]) -> Candidates:
        """The next windows of the order; where those that are easy enough end, harder ones."""
        turn = np.flatnonzero(self._is_left)
        if admitted < 1:
            rank = self._difficulty(harder)[turn]
            turn = turn[np.argsort(np.where(rank <= admitted, 0.0, rank), kind="stable")]
        taken = turn[: -(-tokens // self._context)]
        self._is_left = self._is_left.copy()
        self._is_left[taken] = False
        ids = self._order[np.sort(taken)]
        return Candidates(ids, self._columns(ids))

    def _difficulty(self, harder: Mapping[str, Floats]) -> Floats:
        """Percentiles over all windows of this epoch, in its order."""
        owners = self._owners[self._order]
        own = [self._scores[name][owners] for name in ("loss", "rarity", "compression")]
        clusters = self._scores["cluster"][owners]
        return difficulty([*own, *(column[clusters] for column in harder.values())])

    def fetch(self, ids: Ids) -> Ids:
        """The tokens of windows, and the one behind each, of shape (windows, context + 1)."""
        starts = ids * self._context
        if self._is_moving and self._epoch:
            starts = starts + self._moved(ids)
        return self._text.read(starts, self._context + 1)

    def _moved(self, ids: Ids) -> Ids:
        """How far each window is from its place; its middle stays in its passage."""
        owners, starts, context = self._owners[ids], ids * self._context, self._context
        behind = starts + context // 2 - self._scores["start"][owners]
        ahead = self._scores["length"][owners] - 1 - behind
        room = (
            np.minimum(behind, starts),
            np.minimum(ahead, self._text.tokens - context - 1 - starts),
        )
        documents = self._scores["document"][owners]
        moved = shifts(documents, room, context, self._seed, self._epoch)
        return np.where(self._scores["loss"][owners] >= self._hard_from, moved, 0)

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and which of its windows are left."""
        return {"epoch": self._epoch, "left": torch.from_numpy(self._is_left)}

    def load_state_dict(self, state: dict[str, Any], chosen: Ids) -> None:
        """Go on from a state, with what was chosen in the first epoch."""
        self.begin(int(state["epoch"]), chosen)
        left = state["left"].numpy().astype(bool)
        if len(left) != len(self._order):
            raise InputError("the pool is not the one that the run began with")
        self._is_left = left
