"""What a plain run reads: every window of the corpus once per epoch, in a random order."""

from typing import Any

import torch

from effcli.engine.data.corpus import Split
from effcli.engine.data.order import training_order
from effcli.engine.protocols import Batch, Loss
from effcli.errors import InputError


class Shuffled:
    """Windows in an order that is a function of (seed, epoch, index). Its state is one integer."""

    def __init__(self, split: Split, context: int, sequences: int, seed: int) -> None:
        self._split, self._context, self._sequences, self._seed = split, context, sequences, seed
        self._windows = split.windows(context)
        self._drawn = 0
        if self._windows == 0:
            raise InputError(
                f"the training text has {split.tokens} tokens, less than one context of {context}",
                "prepare more text, or set a smaller model.context",
            )

    def draw(self, progress: float) -> Batch:
        """The next windows of the order."""
        windows = training_order(self._drawn, self._sequences, self._windows, self._seed)
        self._drawn += self._sequences
        tokens = torch.from_numpy(self._split.read(windows * self._context, self._context + 1))
        return Batch(tokens[:, :-1], tokens[:, 1:], torch.from_numpy(windows))

    def feedback(self, batch: Batch, loss: Loss) -> None:
        """A plain order does not listen."""

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
