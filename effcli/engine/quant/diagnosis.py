"""What the codes of a model's layers do while it trains."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from effcli.engine.protocols import LanguageModel
from effcli.engine.quant.bitlinear import BitLinear, bit_layers
from effcli.engine.quant.codes import TINY, grouped, thresholds, unit
from effcli.errors import InputError

NEAR = 0.05  # of a unit, on either side of a threshold
MANY_ZEROS = 0.8
FROZEN = 1e-5  # share of codes that change in a step
RESTLESS = 0.05  # share of codes that change between two looks
LATE = 0.9  # from this share of the budget on, codes should come to rest


@dataclass(frozen=True)
class State:
    """The codes of a layer, or of all of them; shares are of its weights."""

    weights: int
    zeros: float
    """Share that is read back as zero."""
    dead_zone: float
    """Share so near to a threshold that noise decides the code; a tenth where all is even."""
    empty_rows: int
    """Outputs that do not depend on the input."""
    flips: float | None
    """Share whose code differs from that of the last look; None at the first."""
    steps: int
    """Since the last look."""

    @classmethod
    def of(cls, states: Iterable["State"]) -> "State":
        """All layers as one."""
        every = list(states)
        weights = sum(state.weights for state in every)
        shares = [(s.zeros, s.dead_zone, s.flips or 0.0) for s in every]
        zeros, dead_zone, flips = (
            sum(share * s.weights for share, s in zip(column, every, strict=True)) / weights
            for column in zip(*shares, strict=True)
        )
        rows, first = sum(state.empty_rows for state in every), every[0]
        told = None if first.flips is None else flips
        return cls(weights, zeros, dead_zone, rows, told, first.steps)


class Diagnosis:
    """Looks at the layers now and then, and remembers the codes of the last look."""

    def __init__(self, model: LanguageModel) -> None:
        self._layers = bit_layers(model)
        if not self._layers:
            raise InputError("the model has no layers of few bits")
        self._codes: dict[str, Tensor] = {}
        self.step: int | None = None
        """Of the last look; none before the first."""

    @torch.no_grad()
    def look(self, step: int) -> dict[str, State]:
        """How each layer stands after a number of steps."""
        steps = step - (self.step or 0)
        states = {name: self._state(name, layer, steps) for name, layer in self._layers.items()}
        self.step = step
        return states

    def _state(self, name: str, layer: BitLinear, steps: int) -> State:
        found, x = layer.encode(), grouped(layer.weight, layer.group)
        first, last = thresholds(layer.bits)
        place = x / unit(x, layer.bits).clamp(min=TINY)
        nearest = (place - first).round().clamp(0, last - first) + first
        is_zero = found.weight() == 0
        before = self._codes.get(name)
        flips = None if before is None else _share(found.codes != before)
        self._codes[name] = found.codes
        return State(
            weights=x.numel(),
            zeros=_share(is_zero),
            dead_zone=_share((place - nearest).abs() < NEAR),
            empty_rows=int(is_zero.all(1).sum()),
            flips=flips,
            steps=steps,
        )

    def state_dict(self) -> dict[str, Any]:
        """The codes of the last look, int8, and when it was."""
        return {"step": self.step, "codes": dict(self._codes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.step = state["step"]
        self._codes = {
            name: codes.to(self._layers[name].weight.device)
            for name, codes in state["codes"].items()
        }


def warnings(states: dict[str, State], progress: float, *, is_flat: bool) -> dict[str, str]:
    """What is wrong with a model's layers: a line each, by the name of a layer or of the fault.

    `is_flat` says that the loss stands still. The limits are rules of thumb.
    """
    shares = {name: state.zeros for name, state in states.items() if state.zeros > MANY_ZEROS}
    lines = {name: f"{share:.0%} of {name} are zeros" for name, share in shares.items()}
    whole = State.of(states.values())
    if whole.flips is not None and is_flat and whole.flips < FROZEN * whole.steps:
        lines["frozen"] = "the codes are frozen, and the loss stands still: raise the learning rate"
    if whole.flips is not None and progress >= LATE and whole.flips > RESTLESS:
        told = "the codes do not come to rest: lower the learning rate, decay no weights"
        lines["restless"] = told
    return lines


def _share(which: Tensor) -> float:
    return float(which.double().mean())
