"""Do the gradients of passages point where those of trusted text point?

The gradient of the head is G = Σ_t r_t φ_tᵀ, with the features φ and the residuals
r = ∂loss/∂logits. It is never made: ⟨G, G'⟩ = Σ_ts (r_t·r'_s)(φ_t·φ'_s), a sum over pairs
of positions (the ghost products of Wang et al. 2024), of which a few stand for all.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from effcli.engine.protocols import LanguageModel

POSITIONS = 16  # looked at in each sequence
LARGEST_HOLDOUT = 256  # positions
_FEWEST = 4  # positions of each trusted sequence: what one position needs is no one's gradient
_CHUNK_RESIDUALS = 2**24  # residuals that exist at one time


def residuals(
    model: LanguageModel,
    features: Float[Tensor, "*any width"],
    targets: Int[Tensor, "*any"],
) -> Float[Tensor, "*any vocab"]:
    """The slope of each position's loss by its logits before the soft cap, in float32."""
    logits = model.logits(features)
    slopes = logits.softmax(-1)
    column = targets.unsqueeze(-1)
    slopes.scatter_add_(-1, column, slopes.new_full(column.shape, -1.0))
    if model.soft_cap:  # d cap tanh(z / cap) / dz = 1 - tanh²(z / cap)
        slopes.mul_(1 - (logits / model.soft_cap).square())
    return slopes


@dataclass(frozen=True, slots=True)
class Holdout:
    """Positions of trusted text, as one state of the model sees them."""

    features: Float[Tensor, "positions width"]
    """Times the root of the preconditioner."""
    residuals: Float[Tensor, "positions vocab"]
    norm: Float[Tensor, ""]
    """Of the gradient of all positions together."""
    root: Float[Tensor, " width"] | None
    """Of the preconditioner."""

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: LanguageModel,
        features: Float[Tensor, "batch time width"],
        targets: Int[Tensor, "batch time"],
        preconditioner: Float[Tensor, " width"] | None = None,
    ) -> "Holdout":
        """At most 256 positions of trusted sequences, evenly spread.

        The preconditioner, positive, weighs the features in every product of gradients: as
        one over the root of Adam's second moment, averaged over the head's rows, would.
        """
        rows = spread(len(features), LARGEST_HOLDOUT // _FEWEST)
        columns = spread(features.shape[1], LARGEST_HOLDOUT // len(rows))
        some, aims = features[rows][:, columns].flatten(0, 1), targets[rows][:, columns].flatten()
        root = None if preconditioner is None else preconditioner.float().sqrt()
        slopes, scaled = residuals(model, some, aims), _scaled(some, root)
        return cls(scaled, slopes, _norms(scaled[None], slopes[None])[0], root)

    def flops(self, sequences: int, positions: int = POSITIONS) -> float:
        """What the alignment of that many sequences costs, logits included."""
        (stored, width), vocab = self.features.shape, self.residuals.shape[1]
        pairs = (stored + positions) * (vocab + width)
        return 2.0 * sequences * positions * (vocab * width + pairs)


@torch.no_grad()
def alignment(
    model: LanguageModel,
    features: Float[Tensor, "batch time width"],
    targets: Int[Tensor, "batch time"],
    holdout: Holdout,
    positions: int = POSITIONS,
) -> Float[Tensor, " batch"]:
    """The cosine of each sequence's gradient of the head with that of the holdout, -1..1.

    The gradient is that of a few positions, evenly spread. 0 where a gradient is zero.
    """
    columns = spread(features.shape[1], positions)
    features, targets = features[:, columns], targets[:, columns]
    rows = max(1, _CHUNK_RESIDUALS // (len(columns) * model.vocab_size))
    parts = zip(torch.split(features, rows), torch.split(targets, rows), strict=True)
    return torch.cat([_cosines(model, some, aims, holdout) for some, aims in parts])


def spread(length: int, count: int) -> Int[Tensor, " count"]:
    """At most `count` different places in 0..length-1, each in the middle of its stretch."""
    count = min(length, count)
    return (2 * torch.arange(count) + 1) * length // (2 * count)


def _cosines(model: LanguageModel, features: Tensor, targets: Tensor, holdout: Holdout) -> Tensor:
    slopes, scaled = residuals(model, features, targets), _scaled(features, holdout.root)
    pairs = (slopes @ holdout.residuals.T) * (scaled @ holdout.features.T)
    norms = _norms(scaled, slopes) * holdout.norm
    return (pairs.sum((1, 2)) / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp(-1, 1)


def _scaled(features: Tensor, root: Tensor | None) -> Tensor:
    return features.float() if root is None else features.float() * root


def _norms(features: Tensor, slopes: Tensor) -> Tensor:
    """Of the gradient of each sequence."""
    pairs = (features @ features.mT) * (slopes @ slopes.mT)
    return pairs.sum((1, 2)).clamp_min(0).sqrt()
