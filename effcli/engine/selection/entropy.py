"""Plain predictive entropy, which cannot tell noise from what is still to be learned."""

# ruff: noqa: ARG002 - what every measure is told is more than this one needs

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from effcli.engine.protocols import Batch, LanguageModel
from effcli.engine.selection.uncertainty import (
    POSITIONS,
    entropies,
    head_flops,
    looked_at,
    places,
    probabilities,
)


class Entropy:
    """Mean entropy of the next token, in nats. It has no state."""

    def __init__(self, *, positions: int = POSITIONS, seed: int = 0) -> None:
        del seed  # as every measure; nothing here is random
        self._positions = positions

    def observe(
        self, model: LanguageModel, batch: Batch, features: Float[Tensor, "batch time width"]
    ) -> None:
        """Nothing is learned."""

    def commit(self, add_up: Callable[[list[Tensor]], None]) -> None:
        """Nothing changes."""

    @torch.no_grad()
    def score(
        self, model: LanguageModel, batch: Batch, features: Float[Tensor, "batch time width"]
    ) -> Float[Tensor, " batch"]:
        """Mean over the positions."""
        return entropies(probabilities(model, looked_at(features, self._positions))).mean(1)

    def flops(self, model: LanguageModel, sequences: int, time: int) -> float:
        """The head at a few positions."""
        return head_flops(model, sequences * len(places(time, self._positions)))

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to go on from."""
