"""How well phases agree: over time, over all pairs, within concepts, and how steadily.

Numbers in pairs lie in contiguous halves of the last axis: [re_1..re_P | im_1..im_P]. No angle
and no complex number is ever formed, so nothing jumps at ±π and no cast can drop a half. All is
computed in float32, or in float64 for those who bring it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

SCALES = (1, 2, 4, 8, 16, 32, 64)
"""Lags, in tokens."""


def exact(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is so already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rotate(
    x: Float[Tensor, "*batch channels"], angles: Float[Tensor, "*angles pairs"]
) -> Float[Tensor, "*batch channels"]:
    """Turn every pair by its angle, in radians; angles are broadcast. Lengths stay."""
    re, im = exact(x).chunk(2, dim=-1)
    cosine, sine = exact(angles).cos(), exact(angles).sin()
    return torch.cat((re * cosine - im * sine, re * sine + im * cosine), dim=-1).to(x.dtype)


def phasors(x: Float[Tensor, "*batch channels"], eps: float = 1e-6) -> Tensor:
    """Every pair divided by its length: u = z / sqrt(|z|² + eps), differentiable at 0 too."""
    x = exact(x)
    scale = (_squares(x) + eps).rsqrt()
    return x * torch.cat((scale, scale), dim=-1)


def lag_coherence(u: Float[Tensor, "*batch time channels"], lag: int) -> Float[Tensor, "*batch"]:
    """Mean of Re(u_t · conj(u_{t-lag})) over pairs and times, in -1..1; 0 < lag < time."""
    products = u[..., lag:, :] * u[..., :-lag, :]
    return 2 * products.mean((-2, -1))


def scale_coherences(u: Float[Tensor, "*batch time channels"]) -> Float[Tensor, "*batch scales"]:
    """Coherence at each of the SCALES that is shorter than the sequence."""
    lags = [lag for lag in SCALES if lag < u.shape[-2]]
    parts = [lag_coherence(u, lag) for lag in lags]
    return torch.stack(parts, dim=-1) if parts else u.new_zeros(*u.shape[:-2], 0)


def mean_coherence(u: Float[Tensor, "*batch time channels"]) -> Float[Tensor, "*batch"]:
    """Mean of cos(θ_i - θ_j) over all i < j and all pairs, in -1..1; 0 for a single token.

    By the sum of phasors, in O(n): (|Σu|² - Σ|u|²) / (n(n - 1)).
    """
    time = u.shape[-2]
    together, own = _squares(u.sum(-2)), _squares(u).sum(-2)
    return (together - own).mean(-1) / max(1, time * (time - 1))


def semantic_coherence(
    u: Float[Tensor, "*batch time channels"], concepts: Float[Tensor, "*batch time concepts"]
) -> Float[Tensor, "*batch"]:
    """Mean of cos(θ_i - θ_j) over i < j, weighted by ⟨c_i, c_j⟩, in -1..1 for weights ≥ 0.

    In O(n·K): Σ_{i<j} ⟨c_i, c_j⟩ u_i · conj(u_j) = ½ (Σ_k |Σ_i c_ik u_i|² - Σ_i |c_i|² |u_i|²).
    It is 0 where no two tokens share a concept.
    """
    concepts = concepts.to(u.dtype)
    with torch.autocast(u.device.type, enabled=False):
        together = _squares(concepts.transpose(-1, -2) @ u).sum(-2)
    lengths = concepts.square().sum(-1)
    own = (lengths.unsqueeze(-1) * _squares(u)).sum(-2)
    weight = concepts.sum(-2).square().sum(-1) - lengths.sum(-1)
    shares = weight > 1e-6 * lengths.sum(-1)
    mean = (together - own).mean(-1) / torch.where(shares, weight, 1.0)
    return torch.where(shares, mean, 0.0)


def resultant(
    u: Float[Tensor, "*batch time channels"], window: int
) -> Float[Tensor, "*batch time pairs"]:
    """Length of the mean of the last `window` phasors, or of as many as there are; in 0..1.

    By differences of prefix sums, which are in float64, since long ones cancel.
    """
    sums = u.double().cumsum(-2)
    early = torch.zeros_like(sums[..., :window, :])
    before = torch.cat((early, sums[..., :-window, :]), dim=-2)
    counts = torch.arange(1, u.shape[-2] + 1, device=u.device).clamp(max=window)
    return _length((sums - before) / counts.unsqueeze(-1)).to(u.dtype)


def moving_phasor(
    u: Float[Tensor, "*batch time channels"], decay: float
) -> Float[Tensor, "*batch time channels"]:
    """Mean of all phasors so far, weighted by decay^age.

    It is m_t = λ m_{t-1} + (1 - λ) u_t divided by 1 - λ^{t+1}, the weights so far. Sums of twice
    as many positions are made of two, until what is farther away counts nothing.
    """
    mean, span, time = u * (1 - decay), 1, u.shape[-2]
    while span < time and decay**span > torch.finfo(u.dtype).eps:
        earlier = torch.zeros_like(mean)
        earlier[..., span:, :] = mean[..., :-span, :]
        mean, span = mean + decay**span * earlier, 2 * span
    ages = torch.arange(1, time + 1, device=u.device, dtype=torch.float64)
    return mean / (1 - decay**ages).to(u.dtype).unsqueeze(-1)


def stability(
    u: Float[Tensor, "*batch time channels"], decay: float
) -> Float[Tensor, "*batch time"]:
    """How steady phases are: the mean length of their moving phasors, in 0..1; 0 < decay < 1."""
    return _length(moving_phasor(u, decay)).mean(-1)


def _squares(x: Tensor) -> Tensor:
    re, im = x.chunk(2, dim=-1)
    return re.square() + im.square()


def _length(x: Tensor) -> Tensor:
    return _squares(x).clamp(min=1e-24).sqrt()
