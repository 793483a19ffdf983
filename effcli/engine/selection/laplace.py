"""Uncertainty of the head by a Laplace approximation, in closed form and in one pass.

The generalized Gauss-Newton matrix of a linear head under cross-entropy needs no labels:
H = Σₙ Λₙ ⊗ φₙφₙᵀ with Λ = diag(p) - ppᵀ (MacKay 1992; Daxberger et al. 2021). Here it is
kept as the product of the whole second moment A of the features and the diagonal
g = mean p(1-p), so the logit of class v has the variance s_v = φᵀA⁻¹φ / (N g_v), and to
second order the mutual information of next token and head is ½ Σ_v p_v(1-p_v) s_v.

The features are taken as given, also where the head is tied to the embedding. p is the
softmax of the capped logits; the slope of the cap is left out of H.
"""

# ruff: noqa: ARG002 - what every measure is told is more than this one needs

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from effcli.engine.protocols import Batch, LanguageModel
from effcli.engine.selection.uncertainty import (
    POSITIONS,
    head_flops,
    looked_at,
    places,
    probabilities,
)

# A prior of the same relative strength on both factors: without it, a direction or a class
# that was never seen would count as infinitely uncertain.
RIDGE = 1e-3
CLIP = 3.0
BUCKETS = 20  # powers of two of the position


@dataclass(frozen=True)
class Statistics:
    """What was taken in so far. Its tensors are never written to."""

    second_moment: Float[Tensor, "width width"]
    curvature: Float[Tensor, " vocab"]
    """Mean p(1-p) of each class."""
    factor: Float[Tensor, "width width"]
    """Lower triangular: times its transpose it is the damped second moment of a while ago."""
    moments: Float[Tensor, "buckets 3"]
    """Count, sum and sum of squares of what `_weigh` says, by the logarithm of the position."""
    tokens: Tensor
    """Trained on so far: one integer."""

    def to(self, device: torch.device) -> "Statistics":
        """The same on another device."""
        if self.factor.device == device:
            return self
        return Statistics(**{name: value.to(device) for name, value in vars(self).items()})


class Laplace:
    """Mean information that a sequence's tokens carry about the head, as a z-score.

    The score of a position is compared with those of training at like positions and held
    within ±3. It is 0 until two steps were taken in: one for the factors, one to compare.
    """

    def __init__(
        self,
        *,
        positions: int = POSITIONS,
        sequences: int | None = None,
        rho: float = 0.05,
        refresh: int = 16,
        seed: int = 0,
    ) -> None:
        """`sequences` limits how many of each part are observed; all of them are scored."""
        del seed  # as every measure; nothing here is random
        self._positions, self._sequences = positions, sequences
        self._rho, self._refresh = rho, refresh
        self._commits = 0
        self._known: Statistics | None = None
        self._pending: list[Tensor] | None = None

    @torch.no_grad()
    def observe(
        self, model: LanguageModel, batch: Batch, features: Float[Tensor, "batch time width"]
    ) -> None:
        """Sums over a few positions, to be taken in by `commit`."""
        few = looked_at(features[: self._sequences], self._positions)
        chances, flat = probabilities(model, few), few.flatten(0, 1).float()
        moments = flat.new_zeros(BUCKETS, 3)
        if self._known is not None:
            weights = self._weigh(few, chances)
            rows = torch.stack((torch.ones_like(weights), weights, weights.square()), -1).sum(0)
            # Not `index_add_`, which on GPUs adds in any order.
            chosen = F.one_hot(self._buckets(features), BUCKETS)
            moments = (chosen[:, :, None] * rows[:, None]).sum(0)
        heard = [
            flat.T @ flat,
            (chances - chances.square()).sum((0, 1)),
            moments,
            torch.tensor([len(flat), batch.inputs.numel()], device=flat.device),
        ]
        if self._pending is not None:
            heard = [old + new for old, new in zip(self._pending, heard, strict=True)]
        self._pending = heard

    def commit(self, add_up: Callable[[list[Tensor]], None]) -> None:
        """Move the averages, and every `refresh` steps the factor; in the first ones always."""
        if self._pending is None:
            return
        add_up(self._pending)
        second_moment, curvature, moments, counts = self._pending
        second_moment, curvature = second_moment / counts[0], curvature / counts[0]
        self._pending, self._commits = None, self._commits + 1
        if self._known is None:
            factor = factorized(second_moment)
            self._known = Statistics(second_moment, curvature, factor, moments, counts[1].clone())
            return
        known = self._known.to(curvature.device)
        # The same as an average that starts from zero and is divided by its total weight.
        rate = self._rho / (1 - (1 - self._rho) ** self._commits)
        second_moment = known.second_moment.lerp(second_moment, rate)
        is_due = self._commits <= self._refresh or self._commits % self._refresh == 0
        self._known = Statistics(
            second_moment,
            known.curvature.lerp(curvature, rate),
            factorized(second_moment) if is_due else known.factor,
            known.moments.lerp(moments, rate),
            known.tokens + counts[1],
        )

    @torch.no_grad()
    def score(
        self, model: LanguageModel, batch: Batch, features: Float[Tensor, "batch time width"]
    ) -> Float[Tensor, " batch"]:
        """Mean z-score over the positions, in ±3."""
        if self._known is None:
            return features.new_zeros(len(features), dtype=torch.float32)
        few = looked_at(features, self._positions)
        weights = self._weigh(few, probabilities(model, few))
        # The tokens seen so far divide all alike, and so do not matter to a z-score.
        count, total, squares = self._known.moments[self._buckets(features)].unbind(-1)
        mean = total / count
        spread = (squares / count - mean.square()).clamp_min(1e-12).sqrt()
        z = ((weights - mean) / spread).clamp(-CLIP, CLIP)
        return z.where(count > 0, 0.0).mean(1)

    @torch.no_grad()
    def information(
        self, features: Float[Tensor, "*any width"], chances: Float[Tensor, "*any vocab"]
    ) -> Float[Tensor, "*any"]:
        """What the next token would tell about the head, in nats; 0 where it is certain.

        Needs one commit.
        """
        assert self._known is not None, "nothing was taken in yet"
        return self._weigh(features, chances) / (2 * self._known.tokens.to(features.device))

    def _weigh(self, features: Tensor, chances: Tensor) -> Tensor:
        """`information`, but for the tokens seen so far."""
        assert self._known is not None
        self._known = self._known.to(features.device)
        return leverage(features, self._known.factor) * unusualness(chances, self._known.curvature)

    def _buckets(self, features: Tensor) -> Tensor:
        position = places(features.shape[1], self._positions).clamp_min(1)
        return position.log2().long().clamp_max(BUCKETS - 1).to(features.device)

    def flops(self, model: LanguageModel, sequences: int, time: int) -> float:
        """Head and leverage for both, the second moment, and a share of the factor."""
        positions, width = len(places(time, self._positions)), model.head.shape[1]
        observed = positions * (sequences if self._sequences is None else self._sequences)
        both = observed + positions * sequences
        per_step = width**3 / 3 / self._refresh
        return head_flops(model, both) + width**2 * (both + 2 * observed) + per_step

    def state_dict(self) -> dict[str, Any]:
        """The statistics, by name, and the number of commits."""
        return {"commits": self._commits, **(vars(self._known) if self._known else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        tensors = {name: value for name, value in state.items() if name != "commits"}
        self._commits, self._pending = state["commits"], None
        self._known = Statistics(**tensors) if tensors else None


def factorized(second_moment: Float[Tensor, "width width"]) -> Float[Tensor, "width width"]:
    """Cholesky factor of the second moment with its ridge."""
    # In float64, which not every GPU has. A matrix that is not finite raises nothing here:
    # the loss will say so.
    place = second_moment.device
    exact = (second_moment.cpu() if place.type == "mps" else second_moment).double()
    ridge = (RIDGE * exact.diagonal().mean()).clamp_min(1e-12)
    damped = exact + ridge * torch.eye(len(exact), dtype=exact.dtype, device=exact.device)
    factor: Tensor = torch.linalg.cholesky_ex(damped).L
    # In rows: a state that was saved has them so, and products differ by the layout.
    return factor.to(second_moment.dtype).to(place).contiguous()


def leverage(
    features: Float[Tensor, "*any width"], factor: Float[Tensor, "width width"]
) -> Float[Tensor, "*any"]:
    """How new a context is: φᵀA⁻¹φ with A = LLᵀ, given L."""
    flat = features.flatten(0, -2).to(factor.dtype)
    solved: Tensor = torch.linalg.solve_triangular(factor, flat.T, upper=False)
    return solved.square().sum(0).view(features.shape[:-1])


def unusualness(
    chances: Float[Tensor, "*any vocab"], curvature: Float[Tensor, " vocab"]
) -> Float[Tensor, "*any"]:
    """How unlike those seen an expectation is: Σ_v p_v(1-p_v) / g_v, with the ridge on g."""
    damped = (curvature + RIDGE * curvature.mean()).clamp_min(1e-12)
    return (chances - chances.square()) @ damped.reciprocal()
