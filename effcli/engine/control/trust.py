"""A bound on how far each tensor may move in one step.

It is put on the update itself, behind momentum and orthogonalization, and leaves decoupled
weight decay alone. What is not cut keeps the bits that it would have had without a bound.

The bound is a share of a tensor's own size, and at least of FLOOR (Shazeer & Stern 2018,
section 8). A tensor that begins at nothing, or near it, has no size of its own, and by that
floor it would stay there for long: it counts at least as large as one of its shape usually
begins, which is 1/√columns for a matrix and 1 for gains, biases and rows of tables.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from effcli.engine.control.probes import Probe
from effcli.engine.optim.optimizer import Move

LEAST, MOST = 1e-4, 0.1
START = MOST  # which cuts next to nothing that is usual: docs/experiments.md, 2026-11-21
FLOOR = 1e-3
EVERY = 25
POOR, GOOD, OFTEN = 0.25, 0.75, 0.1
_KEPT = 0.7  # of the mean of earlier ratios
_NOTHING = 0.05  # of the usual size, or less
_ROUNDING = 1e-6  # so much of an update is not worth cutting off

Kind = Literal["stable", "fixed", "adaptive"]


class TrustRegion:
    """Shortens the update of a tensor that would leave the region in which steps are trusted.

    `stable` divides the update of Adam by max(1, RMS(g/√v)), with v as Adam corrects it, and
    leaves other rules alone (StableAdamW, Wortsman et al. 2023, arXiv 2304.13013, section 3.3).
    `fixed` keeps RMS(update) ≤ radius · max(RMS(weights), floor) for every tensor, of a table
    for the rows that are read, which is stricter. `adaptive` does, too, and changes the radius:
    on one probe batch it compares what steps gained with what the gradient promised (Conn et
    al. 2000, section 6.1).
    """

    def __init__(
        self,
        kind: Kind = "stable",
        *,
        radius: float = START,
        probe: Probe | None = None,
        every: int = EVERY,
    ) -> None:
        """`radius` is in LEAST..MOST; `adaptive` needs a `probe`, and looks each `every` steps."""
        assert LEAST <= radius <= MOST
        assert (kind == "adaptive") == (probe is not None)
        self._kind, self._probe, self._every = kind, probe, every
        self._radius, self.factor = radius, 1.0
        self._floors: list[float] = []  # of each tensor, found at the first step
        self._means: list[float] = []  # of promises and of gains
        self._steps = self._moved = 0
        self._cut: Tensor | int = 0  # a tensor, so that a GPU is not waited for
        self._counted = (0, 0)  # cut and moved when the radius was looked at last

    @property
    def radius(self) -> float:
        """The bound that is in force; whoever steers may set `factor`, which multiplies it."""
        return min(MOST, max(LEAST, self._radius * self.factor))

    @property
    def has_radius(self) -> bool:
        """Whether there is a radius at all."""
        return self._kind != "stable"

    @property
    def activation_rate(self) -> float:
        """Share of all moves of tensors that were cut."""
        return int(self._cut) / max(1, self._moved)

    def warning(self) -> str | None:
        """What to say about a bound that did nothing, or nothing else than its work."""
        if not self._moved or 0 < self.activation_rate < 1:
            return None
        if self.activation_rate == 0:
            return "the trust region never cut a step: it changed nothing"
        return (
            "the trust region cut every step of every tensor: it set the pace, not the learning "
            "rate; a larger radius or a smaller learning rate is meant"
        )

    @torch.no_grad()
    def step(self, moves: Sequence[Move]) -> None:
        """Make all moves; now and then, look whether they went as far as could be trusted."""
        self._steps += 1
        if not self._floors:
            self._floors = [_floor(move) for move in moves]
        if self._probe is None or self._steps % self._every:
            for move, floor in zip(moves, self._floors, strict=True):
                self._make(move, floor)
            return
        before, slopes = self._probe.gradients([move.parameter for move in moves])
        told = zip(moves, self._floors, slopes, strict=True)
        promise = -math.fsum([float(self._make(*one)) for one in told])
        self._adapt(promise, before - self._probe.loss())

    def _make(self, move: Move, floor: float, slope: Tensor | None = None) -> Tensor | float:
        """Move a tensor; returns the product of a gradient, if one is given, and the way it went.

        Only one tensor, or what is read of it, is held twice at a time.
        """
        parameter, gradient = move.parameter, move.parameter.grad
        if gradient is None:
            return 0.0
        rows = gradient.coalesce().indices()[0] if gradient.is_sparse else None
        old = parameter.clone() if rows is None else parameter.index_select(0, rows)
        move()
        new = parameter if rows is None else parameter.index_select(0, rows)
        size, decay = _rms(old).clamp(min=floor), move.rule["lr"] * move.rule["weight_decay"]
        if slope is not None and rows is not None:
            slope = slope.index_select(0, rows).to_dense()
        faded = _dot(slope, old) * decay if slope is not None and decay else 0.0
        update = new - old.mul_(1 - decay)
        scale = self._scale(move, update, size)
        if scale is None:
            return 0.0
        went = 0.0 if slope is None else _dot(slope, update) * scale - faded
        is_cut = scale < 1 - _ROUNDING
        result = torch.where(is_cut, update.mul_(scale).add_(old), new)
        if rows is None:
            parameter.copy_(result)
        else:
            parameter.index_copy_(0, rows, result)
        self._cut = self._cut + is_cut.long()
        self._moved += 1
        return went

    def _scale(
        self, move: Move, update: Float[Tensor, "*shape"], size: Float[Tensor, ""]
    ) -> Float[Tensor, ""] | None:
        """What to multiply an update by, at most 1; none where there is no bound."""
        if self.has_radius:
            return (self.radius * size / _rms(update)).clamp(max=1.0)  # 1, if nothing moved
        squares = move.moments.get("exp_avg_sq")
        if squares is None:
            return None
        gradient, rule = move.parameter.grad, move.rule
        assert gradient is not None
        corrected = squares / (1 - rule["betas"][1] ** move.moments["step"])
        surprise = (gradient.square() / corrected.clamp(min=rule["eps"] ** 2)).mean().sqrt()
        scale: Tensor = 1 / surprise.clamp(min=1.0)
        return scale

    def _adapt(self, promise: float, gain: float) -> None:
        """Halve the radius where steps disappoint; double it where they do not, but are cut."""
        cut, moved = int(self._cut), self._moved
        rate = (cut - self._counted[0]) / max(1, moved - self._counted[1])
        self._counted = cut, moved
        if not (math.isfinite(promise) and math.isfinite(gain)):
            self._resize(0.5)
            return
        # The ratio of means, for a promise may be as small as its noise; their mean is not.
        now = [promise, gain]
        before = self._means or now
        self._means = [_KEPT * b + (1 - _KEPT) * n for b, n in zip(before, now, strict=True)]
        ratio = self._means[1] / self._means[0] if self._means[0] > 0 else 0.0
        if ratio < POOR:
            self._resize(0.5)
        elif ratio > GOOD and rate > OFTEN:
            self._resize(2.0)

    def _resize(self, by: float) -> None:
        self._radius = min(MOST, max(LEAST, self._radius * by))
        self._means = []  # how steps did in another region says little about this one

    def state_dict(self) -> dict[str, Any]:
        """The radius, and all that decides how it goes on."""
        return {
            "radius": self._radius,
            "factor": self.factor,
            "floors": list(self._floors),
            "means": list(self._means),
            "steps": self._steps,
            "cut": int(self._cut),
            "moved": self._moved,
            "counted": list(self._counted),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._radius, self.factor = state["radius"], state["factor"]
        self._floors, self._means = list(state["floors"]), list(state["means"])
        self._steps, self._cut, self._moved = state["steps"], state["cut"], state["moved"]
        self._counted = state["counted"][0], state["counted"][1]


def _floor(move: Move) -> float:
    """What a tensor counts at least as large as, seen before its first step."""
    is_matrix = move.parameter.ndim > 1 and move.group.rule != "rows"
    usual = 1 / math.sqrt(move.parameter.shape[-1]) if is_matrix else 1.0
    return usual if _rms(move.parameter) <= _NOTHING * usual else FLOOR


def _rms(values: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    return values.square().mean().sqrt()


def _dot(one: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    return (one * other).sum()
