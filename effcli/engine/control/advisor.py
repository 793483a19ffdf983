"""A small network that says how fast to go, from how training goes.

6 features, 16 hidden units, 2 outputs: 146 weights. The last layer begins with zeros, so an
untrained one says 1 and 1. It learns from comparisons that were paid for, never from how much
the loss fell in a step: who is rewarded for that goes too slowly to arrive (Wu et al. 2018,
"Understanding short-horizon bias in stochastic meta-optimization").
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from effcli.engine.records import Step

FEATURES = ("loss", "slope", "gradient", "progress", "noise", "momentum")
HIDDEN = 16
RADII = 2.0  # the factor of the radius is between 1/2 and 2
_FAST, _SLOW = 0.9, 0.98
_CLIP = 3.0  # standard deviations
_SHARP = 4.0  # log odds that an arm wins which is nearer to the best by one squared octave
_ROUNDS, _RATE, _DECAY = 100, 0.03, 1e-3


class Features:
    """How training goes, each fact by its own mean and deviation so far."""

    def __init__(self) -> None:
        self._ema: dict[str, float] = {}
        self._now = dict.fromkeys(FEATURES, 0.0)
        self._seen = {name: [0.0, 0.0, 0.0] for name in FEATURES}  # count, mean, squares

    def observe(self, step: Step) -> None:
        """Hear of a step."""
        if not self._ema:
            first = {"fast": step.loss, "slow": step.loss, "square": 0.0}
            self._ema = first | {"norm": step.grad_norm}
        ema = self._ema
        off = step.loss - ema["slow"]
        facts = {
            "loss": math.log(max(ema["slow"], 1e-9)),
            "slope": (ema["fast"] - ema["slow"]) / (math.sqrt(ema["square"]) + 1e-9),
            "gradient": math.log((step.grad_norm + 1e-9) / (ema["norm"] + 1e-9)),
            "progress": step.progress,
        }
        for name, value in (("fast", step.loss), ("slow", step.loss), ("square", off * off)):
            kept = _FAST if name == "fast" else _SLOW
            ema[name] = kept * ema[name] + (1 - kept) * value
        ema["norm"] = _SLOW * ema["norm"] + (1 - _SLOW) * step.grad_norm
        self.note(**facts)

    def note(self, **facts: float) -> None:
        """Keep the newest value of some facts, and what is usual (Welford 1962)."""
        for name, value in facts.items():
            self._now[name] = value
            seen = self._seen[name]
            seen[0] += 1
            off = value - seen[1]
            seen[1] += off / seen[0]
            seen[2] += off * (value - seen[1])

    def standard(self) -> list[float]:
        """Each fact in standard deviations from its mean; 0 where nothing is usual yet."""
        values = []
        for name in FEATURES:
            count, mean, squares = self._seen[name]
            deviation = math.sqrt(squares / (count - 1)) if count > 1 else 0.0
            off = (self._now[name] - mean) / deviation if deviation > 1e-9 else 0.0
            values.append(max(-_CLIP, min(_CLIP, off)))
        return values

    def state_dict(self) -> dict[str, Any]:
        """All means, as plain numbers."""
        seen = {name: list(values) for name, values in self._seen.items()}
        return {"ema": dict(self._ema), "now": dict(self._now), "seen": seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._ema, self._now = dict(state["ema"]), dict(state["now"])
        self._seen = {name: list(values) for name, values in state["seen"].items()}


@dataclass(frozen=True)
class Arm:
    """A way to go on."""

    multiplier: float = 1.0
    """Of the schedule's learning rate."""
    radius: float = 1.0
    """Of the trust region's radius."""

    @property
    def octaves(self) -> tuple[float, float]:
        """Logarithms to the base of 2."""
        return math.log2(self.multiplier), math.log2(self.radius)

    def is_near(self, other: "Arm") -> bool:
        """Whether the difference is not worth a look."""
        pairs = zip(self.octaves, other.octaves, strict=True)
        return all(abs(one - two) < 0.03 for one, two in pairs)


@dataclass(frozen=True)
class Outcome:
    """One arm was compared with the one that was in force."""

    features: tuple[float, ...]
    own: Arm
    other: Arm
    z: float
    """Mean gain of the other arm over its standard error."""

    @property
    def row(self) -> list[float]:
        """As numbers."""
        arms = (self.own.multiplier, self.own.radius, self.other.multiplier, self.other.radius)
        return [*self.features, *arms, self.z]

    @classmethod
    def of(cls, row: list[float]) -> "Outcome":
        """From a row of numbers."""
        *features, m, r, other_m, other_r, z = row
        return cls(tuple(features), Arm(m, r), Arm(other_m, other_r), z)


class Advisor:
    """Proposes an arm. `span` is the largest multiplier, its inverse the smallest."""

    def __init__(self, span: float = 2.0, seed: int = 0) -> None:
        self._span = span
        generator = torch.Generator().manual_seed(seed % 2**63)
        empty: Any = nn.utils.skip_init  # which draws no random numbers of the run's
        hidden, last = empty(nn.Linear, len(FEATURES), HIDDEN), empty(nn.Linear, HIDDEN, 2)
        with torch.no_grad():
            hidden.weight.normal_(0, len(FEATURES) ** -0.5, generator=generator)
            hidden.bias.zero_()
            last.weight.zero_()
            last.bias.zero_()
        self.network = nn.Sequential(hidden, nn.Tanh(), last).double()

    def _octaves(self, features: Tensor) -> Tensor:
        reach = torch.tensor([math.log2(self._span), math.log2(RADII)], dtype=torch.float64)
        octaves: Tensor = torch.tanh(self.network(features)) * reach
        return octaves

    def propose(self, features: Sequence[float]) -> Arm:
        """The arm for a state of training; 1 and 1 until something was learned."""
        with torch.no_grad():
            first, second = self._octaves(torch.tensor(features, dtype=torch.float64)).tolist()
        return Arm(2**first, 2**second)

    def learn(self, outcomes: Sequence[Outcome]) -> None:
        """Fit all comparisons so far: of two arms the nearer one to the proposal should win.

        The probability is logistic in the difference of squared distances, in octaves, and its
        target is the one-sided probability of the comparison's z (Bradley & Terry 1952).
        """
        if not outcomes:
            return
        features = torch.tensor([one.features for one in outcomes], dtype=torch.float64)
        own, other = (
            torch.tensor([arm.octaves for arm in arms], dtype=torch.float64)
            for arms in ([one.own for one in outcomes], [one.other for one in outcomes])
        )
        z = torch.tensor([one.z for one in outcomes], dtype=torch.float64)
        won = torch.special.ndtr(z)
        adam = torch.optim.Adam(self.network.parameters(), lr=_RATE, weight_decay=_DECAY)
        for _ in range(_ROUNDS):
            best = self._octaves(features)
            nearer = (best - own).square().sum(1) - (best - other).square().sum(1)
            loss = nn.functional.binary_cross_entropy_with_logits(_SHARP * nearer, won)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()

    def state_dict(self) -> dict[str, Any]:
        """The 146 weights."""
        return {name: weight.detach().clone() for name, weight in self.network.state_dict().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with weights, of this run or of an earlier one."""
        self.network.load_state_dict(state)
