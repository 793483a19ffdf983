"""What a low-bit layer is made of, and what its product is."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from effcli.errors import InputError


@dataclass(frozen=True, slots=True)
class Weights:
    """Integer codes in groups of columns, w = (code + offset) · scale."""

    codes: Int8[Tensor, "rows columns"]
    scales: Float[Tensor, "rows groups"]
    offset: float = 0.0
    """0, or 0.5 for codes of up to 7 bits without a zero."""
    bias: Float[Tensor, " rows"] | None = None
    gain: Float[Tensor, " columns"] | None = None
    """Of a norm of the input, by the root of its mean square (SubLN, Wang et al. 2022)."""

    def __post_init__(self) -> None:
        codes, scales = self.codes, self.scales
        if codes.dtype != torch.int8 or codes.ndim != 2 or not codes.numel():
            shape = tuple(codes.shape)
            raise InputError(f"codes are a matrix of int8, not {codes.dtype} of {shape}")
        shown = f"{codes.shape[0]} × {codes.shape[1]} codes"
        fits = scales.ndim == 2 and len(scales) == len(codes) and scales.shape[1]
        if not fits or codes.shape[1] % scales.shape[1]:
            raise InputError(f"scales of {tuple(scales.shape)} do not fit {shown}")
        for part, length in zip((self.bias, self.gain), codes.shape, strict=True):
            if part is not None and part.shape != (length,):
                raise InputError(f"{tuple(part.shape)} values do not fit {shown}")
        if self.offset not in (0.0, 0.5):
            raise InputError(f"an offset is 0 or 0.5, not {self.offset}")
        if self.offset and not self.are_within(-64, 63):
            raise InputError("codes of 8 bits have no offset")

    def are_within(self, low: int, high: int) -> bool:
        """Whether no code is smaller or larger."""
        return low <= int(self.codes.min()) and int(self.codes.max()) <= high


def product(x: Float[Tensor, "tokens columns"], weights: Weights) -> Float[Tensor, "tokens rows"]:
    """The definition: exact sums over each group in 64 bits, then scales in float32.

    Each token is rounded to 8 bits by its largest activation: x ≈ levels · peak / 127.
    """
    if weights.gain is not None:
        x = normed(x, weights.gain)
    rows, groups = weights.scales.shape
    peak = x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    levels = (x * (127 / peak)).round().long().view(len(x), groups, 1, -1)
    doubled = 2 * weights.codes.long() + round(2 * weights.offset)
    sums = (levels * doubled.view(rows, groups, -1).transpose(0, 1)).sum(-1)
    total = torch.zeros(len(x), rows)
    for term in (sums.float() * (weights.scales.T / 2)).unbind(1):
        total += term
    total *= peak / 127
    return total if weights.bias is None else total + weights.bias


def normed(x: Float[Tensor, "*any columns"], gain: Tensor) -> Float[Tensor, "*any columns"]:
    """RMSNorm with a gain; squares are added in float64, so that their order does not matter."""
    inverse = x.double().square().mean(-1, keepdim=True).add_(1e-6).rsqrt_().float()
    return x * inverse * gain
