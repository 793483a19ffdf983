"""Energies of phases and keys: exact, in 0..1, in time linear in the sequence, without sampling.

Every one is a mean over pairs of positions or of channels, one number per sequence. They are
computed in float32, or in float64 for those who bring it, and see no change of a global phase.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from effcli.engine.phase.coherence import exact, lag_coherence

HINGE = 0.3  # entanglement energy that text may have without being pushed
SCHMIDT_PAIRS = 16


def local_energy(u: Float[Tensor, "*batch time channels"]) -> Float[Tensor, "*batch"]:
    """(1 - c_1) / 2 on the last quarter of the pairs, which turn slowest: smooth is low.

    `u` are phasors of at least 2 positions.
    """
    pairs = u.shape[-1] // 2
    re, im = u.chunk(2, dim=-1)
    slow = torch.cat((re[..., pairs - -(-pairs // 4) :], im[..., pairs - -(-pairs // 4) :]), -1)
    return (1 - lag_coherence(slow, 1)) / 2


def frame_potential(keys: Float[Tensor, "*batch time channels"]) -> Float[Tensor, "*batch"]:
    """Mean squared overlap of all pairs of different keys, divided by their lengths first.

    (‖KᵀK‖² - Σ|k_i|⁴) / (n(n - 1)), in O(n·K²): how much noise a read from a memory with these
    keys takes from the others (Benedetto & Fickus 2003). 1 for keys all alike, and never below
    the Welch bound.
    """
    keys, time = F.normalize(exact(keys), dim=-1), keys.shape[-2]
    with torch.autocast(keys.device.type, enabled=False):
        gram = keys.transpose(-1, -2) @ keys
    own = keys.square().sum(-1).square().sum(-1)
    return (gram.square().sum((-2, -1)) - own) / max(1, time * (time - 1))


def welch_bound(count: int, channels: int) -> float:
    """The least frame potential that `count` unit vectors can have (Welch 1974)."""
    return max(0.0, (count - channels) / (channels * (count - 1))) if count > 1 else 0.0


def entanglement_energy(x: Float[Tensor, "*batch time channels"]) -> Float[Tensor, "*batch"]:
    """1 - the normalized linear entropy between the halves of sequences of at least 2 positions.

    M = Σ_t x_t · conj(x_{t+n/2})ᵀ over 16 pairs, ‖M‖ = 1; the energy is 1 where all of M is one
    product, so that each half says the same, and 0 where m directions share it evenly:
    1 - (1 - tr((M†M)²)) / (1 - 1/m). Of sequences of zeros it is 0.
    """
    x = projected(x)
    half, m = x.shape[-2] // 2, x.shape[-1] // 2
    (a, b), (c, d) = (part.chunk(2, dim=-1) for part in _halves(x, half))
    with torch.autocast(x.device.type, enabled=False):
        re = a.transpose(-1, -2) @ c + b.transpose(-1, -2) @ d
        im = b.transpose(-1, -2) @ c - a.transpose(-1, -2) @ d
        size = (re.square() + im.square()).sum((-2, -1), keepdim=True)
        scale = size.clamp(min=1e-20).rsqrt()  # of silence, whose gradient is then 0
        re, im = re * scale, im * scale
        gram_re = re.transpose(-1, -2) @ re + im.transpose(-1, -2) @ im
        gram_im = re.transpose(-1, -2) @ im - im.transpose(-1, -2) @ re
    purity = (gram_re.square() + gram_im.square()).sum((-2, -1))
    return (1 - (1 - purity) / (1 - 1 / m)).clamp(0, 1) if m > 1 else purity


def hinged(energy: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """What of an entanglement energy is above what healthy text may have."""
    return F.relu(energy - HINGE)


def half_similarity(x: Float[Tensor, "*batch time channels"]) -> Float[Tensor, ""]:
    """Linear CKA between the halves of sequences (Kornblith et al. 2019), in 0..1; to report.

    Samples are all positions of all sequences, features 16 pairs of numbers. Independent halves
    have about as much as there are features for each sample.
    """
    first, second = _halves(projected(x), x.shape[-2] // 2)
    x, y = (part.flatten(0, -2) - part.flatten(0, -2).mean(0) for part in (first, second))
    with torch.autocast(x.device.type, enabled=False):
        between, own_x, own_y = (p.square().sum() for p in (x.T @ y, x.T @ x, y.T @ y))
    return between / (own_x * own_y).clamp(min=torch.finfo(x.dtype).tiny).sqrt()


def projected(x: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch fewer"]:
    """At most 16 orthonormal combinations of the pairs, in which every pair counts the same.

    They are rows of a Fourier matrix behind a chirp: exp(iπ(j² + 2jk)/P) / √P.
    """
    x, pairs = exact(x), x.shape[-1] // 2
    if pairs <= SCHMIDT_PAIRS:
        return x
    j = torch.arange(pairs, device=x.device, dtype=torch.float64)
    k = torch.arange(SCHMIDT_PAIRS, device=x.device, dtype=torch.float64)
    angles = math.pi / pairs * ((j[:, None].square() + 2 * j[:, None] * k) % (2 * pairs))
    cosine, sine = (part.to(x.dtype) / math.sqrt(pairs) for part in (angles.cos(), angles.sin()))
    re, im = x.chunk(2, dim=-1)
    with torch.autocast(x.device.type, enabled=False):
        return torch.cat((re @ cosine - im @ sine, re @ sine + im @ cosine), dim=-1)


def _halves(x: Tensor, half: int) -> tuple[Tensor, Tensor]:
    return x[..., :half, :], x[..., half : 2 * half, :]
