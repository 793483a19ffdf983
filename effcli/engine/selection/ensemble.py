"""Uncertainty by disagreement: small heads that learn to say what the model says.

They share the trunk's features and tell hashed buckets of tokens, so they cost little;
where there was nothing to learn from, each keeps its own beginning (Lakshminarayanan et
al. 2017; Osband et al. 2018).
"""

# ruff: noqa: ARG002 - what every measure is told is more than this one needs

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

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

HIDDEN, BUCKETS = 64, 256
BETAS, EPSILON = (0.9, 0.99), 1e-8


class Ensemble:
    """Mean Jensen-Shannon divergence of the heads' expectations, in nats.

    Each head is trained on its own half of the positions, by Adam (Kingma & Ba 2015) on
    KL(model ‖ head). It is 0 until one step was taken in.
    """

    def __init__(
        self, *, heads: int = 3, positions: int = POSITIONS, lr: float = 3e-3, seed: int = 0
    ) -> None:
        self._heads, self._positions, self._lr, self._seed = heads, positions, lr, seed
        self._commits = 0
        self._moved: dict[str, Tensor] = {}
        self._pending: list[Tensor] | None = None
        self._start: Tensor | None = None  # the weights that the pending gradient is of

    def observe(
        self, model: LanguageModel, batch: Batch, features: Float[Tensor, "batch time width"]
    ) -> None:
        """The gradient of every head, to be taken in by `commit`."""
        few = looked_at(features, self._positions)
        with torch.no_grad():
            teacher = bucketed(probabilities(model, few))
        weights = self._weights(few).requires_grad_()
        mask = self._halves(few.shape[1]).to(few.device)
        with torch.enable_grad():
            guesses = _logits(weights, few).log_softmax(-1)
            losses = F.kl_div(guesses, teacher.expand_as(guesses), reduction="none").sum(-1)
            (gradient,) = torch.autograd.grad((losses * mask[:, None]).sum(), weights)
        self._start = weights.detach()
        heard = [gradient, mask.sum(1) * len(few)]
        if self._pending is not None:
            heard = [old + new for old, new in zip(self._pending, heard, strict=True)]
        self._pending = heard

    @torch.no_grad()
    def commit(self, add_up: Callable[[list[Tensor]], None]) -> None:
        """One step of Adam for all heads."""
        if self._pending is None or self._start is None:
            return
        add_up(self._pending)
        gradient = self._pending[0] / self._pending[1][:, None]
        self._pending, self._commits = None, self._commits + 1
        nothing, (slow, slower) = torch.zeros_like(gradient), BETAS
        old = {name: value.to(gradient.device) for name, value in self._moved.items()}
        mean = old.get("mean", nothing).lerp(gradient, 1 - slow)
        square = old.get("square", nothing).lerp(gradient.square(), 1 - slower)
        spread = (square / (1 - slower**self._commits)).sqrt() + EPSILON
        step = self._lr / (1 - slow**self._commits) * mean / spread
        self._moved = {"weights": self._start - step, "mean": mean, "square": square}

    @torch.no_grad()
    def score(
        self, model: LanguageModel, batch: Batch, features: Float[Tensor, "batch time width"]
    ) -> Float[Tensor, " batch"]:
        """Mean over the positions; from 0 to the logarithm of the number of heads."""
        if not self._moved:
            return features.new_zeros(len(features), dtype=torch.float32)
        few = looked_at(features, self._positions)
        return disagreement(_logits(self._weights(few), few).softmax(-1)).mean(1)

    def flops(self, model: LanguageModel, sequences: int, time: int) -> float:
        """The model's head to learn from; small heads forward, backward, and forward to score.

        Nothing flows back into the features, so the first layer has a product less.
        """
        positions = sequences * len(places(time, self._positions))
        small = 2 * self._heads * HIDDEN * (3 * model.head.shape[1] + 4 * BUCKETS)
        return head_flops(model, positions) + small * positions

    def state_dict(self) -> dict[str, Any]:
        """Weights and moments of all heads, one row for each, and the number of commits."""
        return {"commits": self._commits, **self._moved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._moved = {name: value for name, value in state.items() if name != "commits"}
        self._commits, self._pending = state["commits"], None

    def _weights(self, features: Tensor) -> Float[Tensor, "heads size"]:
        """A view of their own: asking for its gradient leaves the state alone."""
        weights = self._moved.get("weights")
        if weights is None:
            weights = self._beginning(features.shape[-1])
        return weights.to(features.device).detach()

    def _beginning(self, width: int) -> Float[Tensor, "heads size"]:
        """Random matrices, each head's from its own seed, and biases of zero."""
        into, bias, out, last = _sizes(width)
        rows = []
        for head in range(self._heads):
            own = mix64(mix64(self._seed) ^ head) % 2**63
            normal = torch.randn(into + out, generator=torch.Generator().manual_seed(own))
            first, second = normal[:into] / width**0.5, normal[into:] / HIDDEN**0.5
            rows.append(torch.cat((first, torch.zeros(bias), second, torch.zeros(last))))
        return torch.stack(rows)

    def _halves(self, positions: int) -> Float[Tensor, "heads positions"]:
        """1 where a head learns: always the same places, so that steps may come in any parts."""
        generator = torch.Generator().manual_seed(mix64(self._seed) % 2**63)
        order = torch.rand(self._heads, positions, generator=generator).argsort(-1)
        return (order < (positions + 1) // 2).float()


def _sizes(width: int) -> list[int]:
    return [width * HIDDEN, HIDDEN, HIDDEN * BUCKETS, BUCKETS]


def _logits(
    weights: Float[Tensor, "heads size"], features: Float[Tensor, "batch positions width"]
) -> Float[Tensor, "heads batch positions buckets"]:
    heads, width = len(weights), features.shape[-1]
    into, bias, out, last = torch.split(weights, _sizes(width), dim=1)
    flat = features.flatten(0, 1).float().expand(heads, -1, -1)
    hidden = F.gelu(torch.baddbmm(bias[:, None], flat, into.view(heads, width, HIDDEN)))
    logits = torch.baddbmm(last[:, None], hidden, out.view(heads, HIDDEN, BUCKETS))
    return logits.view(heads, *features.shape[:-1], BUCKETS)


def bucketed(chances: Float[Tensor, "*any vocab"]) -> Float[Tensor, "*any buckets"]:
    """Chances of buckets of tokens, equally many in each, dealt by a fixed hash of their ids."""
    vocab = chances.shape[-1]
    size = -(-vocab // BUCKETS)
    dealt = F.pad(chances, (0, 1))[..., _deal(vocab, size).to(chances.device)]
    return dealt.view(*chances.shape[:-1], BUCKETS, size).sum(-1)


def _deal(vocab: int, size: int) -> Int[Tensor, " places"]:
    """Token ids in the order of their hash (Knuth's multiplicative); `vocab` fills the rest."""
    order = (torch.arange(vocab) * 2_654_435_761 % 2**32).argsort(stable=True)
    # Round by round, so that no bucket has more than one token more than another.
    grid = torch.full((size * BUCKETS,), vocab)
    grid[:vocab] = order
    return grid.view(size, BUCKETS).T.reshape(-1)
