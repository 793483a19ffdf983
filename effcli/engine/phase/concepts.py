"""A layer that names what a position is about: a few of many codes."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from effcli.engine.measure.k_means import k_means
from effcli.engine.models.layers import Linear, generators, rms_norm
from effcli.engine.phase.coherence import exact

SHARPNESS = 10.0  # of the softmax over cosines, at first
PRIOR = 2.0  # logits that a token adds to its own concept, at first
LIGHT = 1e-7  # of a gradient of which Adam takes the sign: too small to have others clipped


class Concepts(nn.Module):
    """Adds to each position what the codes nearest to it say; nothing at first.

    x + W_o Σ_k a_k c_k with a = the `top` largest of softmax(cos(W_c x, C) / τ), which are
    scaled to a sum of 1. Pointwise, so causal. `vocab_size` gives each token a bias for
    concepts, for text whose tokens mean something alone; bytes do not.

    Queries W_c x have their mean taken from them, the `center`, without which all soon point in one
    direction (Caron et al. 2021, arXiv 2104.14294); and cosines have the `balance` of their code
    added, which training moves against how much that is used (as that of experts without a loss,
    Wang et al. 2024, arXiv 2408.15664).
    """

    def __init__(
        self,
        width: int,
        codes: int = 512,
        *,
        channels: int | None = None,
        top: int = 4,
        vocab_size: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        channels = channels or width
        self.top = min(top, codes)
        self.query = Linear(width, channels, bias=False)
        self.codes_embedding = nn.Parameter(torch.empty(codes, channels))
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(SHARPNESS)))
        self.output = Linear(channels, width, bias=False)
        self.has_prior = vocab_size > 0
        if vocab_size:
            self.prior_table = nn.Embedding(vocab_size, codes, sparse=True)
        self.balance = nn.Parameter(torch.zeros(codes))
        self.center = nn.Parameter(torch.zeros(channels))
        self.initialize(seed)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Set all weights, from the seed and their names alone."""
        for name, parameter, generator in generators(self, seed):
            if name == "log_sharpness":
                parameter.fill_(math.log(SHARPNESS))
            elif name in ("query.weight", "codes_embedding"):
                parameter.normal_(0.0, 1 / math.sqrt(parameter.shape[1]), generator=generator)
            else:
                parameter.zero_()

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        tokens: Int[Tensor, "batch time"] | None = None,
        *,
        steers: bool = True,
    ) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch time codes"]]:
        """`x` with its concepts added, and how probable each code was, in float32.

        `tokens` are needed where there is a prior. What is read moves center and balance if it
        `steers`.
        """
        query = self._centered(x)
        probable = self._compared(query, tokens)
        weights = strongest(probable, self.top)
        if steers:
            used = weights.detach().sum((0, 1))
            weights = steering(weights, self.balance, used - used.mean())
            weights = steering(weights, self.center, -query.detach().sum((0, 1)))
        added = self.output(weights.to(x.dtype) @ self.codes_embedding.to(x.dtype))
        return x + added, probable

    def assign(
        self,
        x: Float[Tensor, "batch time width"],
        tokens: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time codes"]:
        """How probable each code is, with a sum of 1 over codes, in float32."""
        return self._compared(self._centered(x), tokens)

    def queries(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time channels"]:
        """What codes are compared with: directions of length 1, in float32."""
        return F.normalize(self._centered(x), dim=-1)

    def _centered(self, x: Tensor) -> Float[Tensor, "batch time channels"]:
        return F.normalize(exact(self.query(rms_norm(x))), dim=-1) - self.center.detach()

    def _compared(self, query: Tensor, tokens: Tensor | None) -> Float[Tensor, "batch time codes"]:
        assert (tokens is not None) == self.has_prior, "a prior needs tokens"
        query = F.normalize(query, dim=-1)
        with torch.autocast(query.device.type, enabled=False):
            near = query @ F.normalize(exact(self.codes_embedding), dim=-1).T
        logits = self.log_sharpness.exp() * (near + self.balance.detach())
        if tokens is not None:
            logits = logits + self.prior_table(tokens)
        return logits.softmax(-1)

    @torch.no_grad()
    def set_prior(self, coordinates: NDArray[Any], seed: int = 0) -> None:
        """Bias each token to the concept of its cluster among these coordinates (vocab, axes).

        Rows of zeros, tokens that are not known, get no bias.
        """
        table, codes = self.prior_table.weight.zero_(), len(self.balance)
        known = np.flatnonzero((coordinates != 0).any(1))
        if not len(known):
            return
        clusters = k_means(coordinates[known], codes, seed, n_init=1, max_iter=20)
        table[torch.from_numpy(known), torch.from_numpy(clusters)] = PRIOR

    def forward_flops(self, batch: int, time: int) -> float:
        """Products of one forward pass: 2·m·n·k each, zeros among the weights included."""
        codes, channels = self.codes_embedding.shape
        width = self.query.in_features
        return float(batch * time * 4 * channels * (width + codes))


def steering(x: Tensor, parameter: Tensor, gradient: Tensor) -> Tensor:
    """`x` as it is; where it has a gradient, the parameter gets this one, whatever the loss is.

    A sum over positions is the same for any parts of a batch and any number of processes.
    """
    out: Tensor = _Steering.apply(x, parameter, LIGHT * gradient)  # type: ignore[no-untyped-call]
    return out


class _Steering(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parameter: Tensor, gradient: Tensor) -> Tensor:
        del parameter  # which is only moved
        ctx.save_for_backward(gradient)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, ctx.saved_tensors[0], None


def strongest(probable: Float[Tensor, "*any codes"], top: int) -> Float[Tensor, "*any codes"]:
    """The `top` largest, scaled to a sum of 1; the others are 0."""
    values, places = probable.topk(top, dim=-1)
    values = values / values.sum(-1, keepdim=True)
    return torch.zeros_like(probable).scatter(-1, places, values)


def information(probable: Float[Tensor, "*any codes"]) -> Float[Tensor, ""]:
    """(H(mean a) - mean H(a)) / log K: what a position tells about its code, in 0..1.

    1 where every position is sure of one code and all codes are used alike (Krause et al. 2010);
    0 where all positions say the same.
    """
    rows = exact(probable).flatten(0, -2)
    return (_entropy(rows.mean(0)) - _entropy(rows).mean()) / math.log(rows.shape[-1])


def usage_perplexity(usage: Float[Tensor, " codes"]) -> Float[Tensor, ""]:
    """exp(H) / K of the codes' shares: the share of codes in use, in 1/K..1."""
    return _entropy(exact(usage) / usage.sum()).exp() / len(usage)


def _entropy(shares: Tensor) -> Tensor:
    return -(shares * shares.clamp(min=torch.finfo(shares.dtype).tiny).log()).sum(-1)
