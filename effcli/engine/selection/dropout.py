"""Uncertainty by dropout: passes with different activations dropped (Gal & Ghahramani 2016)."""

# ruff: noqa: ARG002 - what every measure is told is more than this one needs

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from effcli.engine.data.order import mix64
from effcli.engine.protocols import Batch, LanguageModel
from effcli.engine.selection.uncertainty import (
    POSITIONS,
    disagreement,
    head_flops,
    looked_at,
    places,
    probabilities,
)
from effcli.errors import InputError


class Dropout:
    """Mean mutual information of the next token and the dropped activations, in nats.

    Each score costs whole passes through the trunk: the most expensive of the measures.
    A model without dropout is an `InputError`.
    """

    def __init__(self, *, passes: int = 4, positions: int = POSITIONS, seed: int = 0) -> None:
        self._passes, self._positions, self._seed = passes, positions, seed
        self._commits, self._has_heard = 0, False

    def observe(
        self, model: LanguageModel, batch: Batch, features: Float[Tensor, "batch time width"]
    ) -> None:
        """Only that there was a step."""
        _check(model)
        self._has_heard = True

    def commit(self, add_up: Callable[[list[Tensor]], None]) -> None:
        """After each step, other activations are dropped."""
        self._commits += self._has_heard
        self._has_heard = False

    @torch.no_grad()
    def score(
        self, model: LanguageModel, batch: Batch, features: Float[Tensor, "batch time width"]
    ) -> Float[Tensor, " batch"]:
        """Mean over the positions; between two commits, the same batch has the same score."""
        _check(model)
        seed = mix64(mix64(self._seed) ^ self._commits) % 2**63
        with _apart(features.device, seed), _training(model):
            chances = [self._pass(model, batch) for _ in range(self._passes)]
        return disagreement(torch.stack(chances)).mean(1)

    def _pass(self, model: LanguageModel, batch: Batch) -> Tensor:
        return probabilities(model, looked_at(model.features(batch.inputs), self._positions))

    def flops(self, model: LanguageModel, sequences: int, time: int) -> float:
        """Whole passes, but for the head at positions that are not looked at."""
        skipped = time - len(places(time, self._positions))
        one = model.forward_flops(sequences, time) - head_flops(model, sequences * skipped)
        return self._passes * one

    def state_dict(self) -> dict[str, Any]:
        """How many steps there were."""
        return {"commits": self._commits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._commits, self._has_heard = state["commits"], False


def _check(model: LanguageModel) -> None:
    shares = [
        module.p if isinstance(module, nn.Dropout) else getattr(module, "dropout", 0.0)
        for module in model.modules()
    ]
    if not any(isinstance(share, float) and share > 0 for share in shares):
        message = "uncertainty by dropout needs a model that has dropout"
        raise InputError(message, "set model.dropout=0.1")


@contextmanager
def _apart(device: torch.device, seed: int) -> Iterator[None]:
    """Random numbers of our own: those of training go on as if nothing had been drawn."""
    metal = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
    finally:
        if metal is not None:  # which the fork leaves out
            torch.mps.set_rng_state(metal)


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    was = model.training
    model.train()
    try:
        yield
    finally:
        model.train(was)
