"""What a plain run reads: every window of the corpus once per epoch, in a random order."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from effcli.engine.data.corpus import Split
from effcli.engine.protocols import Batch, Loss
from effcli.engine.records import Record
from effcli.errors import InputError

AHEAD = 64  # steps whose order is computed at one time


class Shuffled:
    """Windows in an order that is a function of (seed, epoch, index). Its state is one integer."""

    def __init__(self, split: Split, context: int, sequences: int, seed: int) -> None:
        self._split, self._context, self._sequences, self._seed = split, context, sequences, seed
        self._windows = split.windows(context)
        self._drawn = 0
        self._ahead, self._ahead_from = np.empty(0, dtype=np.int64), 0
        if split.in_row <= context:
            there = f"{split.in_row} tokens in a row"
            raise InputError(
                f"the training text has {there}, less than one context of {context}",
                "prepare more text, or set a smaller model.context",
            )

    def draw(self, progress: float) -> Batch:
        """The next windows of the order."""
        windows = self._order(self._drawn)
        self._drawn += self._sequences
        starts = self._split.begins(windows, self._context)
        tokens = torch.from_numpy(self._split.read(starts, self._context + 1))
        return Batch(tokens[:, :-1], tokens[:, 1:], torch.from_numpy(windows))

    def _order(self, start: int) -> NDArray[np.int64]:
        """The windows of a step, from a stretch of the order that is computed at one time."""
        at = start - self._ahead_from
        if not 0 <= at <= len(self._ahead) - self._sequences:
            count = AHEAD * self._sequences
            self._ahead = self._split.order(start, count, self._context, self._seed)
            self._ahead_from, at = start, 0
        return self._ahead[at : at + self._sequences]

    def feedback(self, batch: Batch, loss: Loss) -> None:
        """A plain order does not listen."""

    def hear(self, loss: float) -> list[Record]:
        """Nor does it care how well it goes."""
        return []

    @property
    def unique_tokens(self) -> int:
        """Every window is new until the first epoch ends."""
        return min(self._drawn, self._windows) * self._context

    def state_dict(self) -> dict[str, Any]:
        """How many windows were drawn."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from that window."""
        self._drawn = state["drawn"]
