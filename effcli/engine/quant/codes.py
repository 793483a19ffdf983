"""Weights as integer codes with float16 scales, and back.

A row of inputs is one group, or is cut into groups of `group` weights; each has a scale.
A weight is read back as (code + offset) times its group's scale, in float32. The scales are
rounded to float16 before they are used, so what is stored is what was trained with.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float16, Int8
from torch import Tensor

from effcli.errors import InputError

Bits = int | float
"""The width of a weight, one of `BITS`."""
BITS = (1, 1.58, 2, 4, 8, 16)
"""Signs, trits, integers; 16 leaves a float."""
LARGEST_SCALE = 65504.0  # of float16
SMALLEST_NORMAL, SUBNORMALS = 2.0**-14, 2.0**24  # below the first, float16 counts in 2^-24
TINY = 1e-30  # what a group is divided by that is all zeros


class Format(NamedTuple):
    """The codes of a width."""

    codec: str
    """How they are packed, by the name it has in a file."""
    lowest: int
    highest: int
    offset: float


FORMATS: dict[Bits, Format] = {
    1: Format("b1", -1, 1, 0.0),
    1.58: Format("b3p5", -1, 1, 0.0),
    2: Format("b2", -2, 1, 0.5),
    4: Format("b4", -8, 7, 0.0),
    8: Format("i8", -127, 127, 0.0),
}


class Codes(NamedTuple):
    """A matrix in codes."""

    codes: Int8[Tensor, "out in"]
    scales: Float16[Tensor, "out groups"]
    offset: float
    group: int
    """Weights for each scale; 0 is a whole row."""

    def weight(self) -> Float[Tensor, "out in"]:
        """The matrix that they stand for, in float32."""
        levels = grouped(self.codes.float(), self.group) + self.offset
        return (levels * self.scales.float().unsqueeze(-1)).view(self.codes.shape)


def require_bits(bits: Bits) -> None:
    """Refuse a width that there is no format for."""
    if bits not in BITS:
        raise InputError(f"there are no weights of {bits:g} bits", "1, 1.58, 2, 4, 8 or 16")


def encode(w: Float[Tensor, "out in"], bits: Bits, group: int = 0) -> Codes:
    """The codes of a matrix; `bits` is not 16, and `group` divides the inputs."""
    levels, scales = _levels(grouped(w.detach().float(), group), bits)
    offset = FORMATS[bits].offset
    codes = (levels - offset).to(torch.int8).view(w.shape)
    return Codes(codes, scales.squeeze(-1).half(), offset, group)


def rounded(w: Float[Tensor, "out in"], bits: Bits, group: int = 0) -> Float[Tensor, "out in"]:
    """The matrix that the codes of `w` stand for: `encode(w, bits, group).weight()`, bit for bit.

    16 bits are float16.
    """
    if bits == 16:
        return w.half().float()
    levels, scales = _levels(grouped(w.float(), group), bits)
    return (levels * scales).view(w.shape)


def absmean_trits(w: Float[Tensor, "out in"], group: int = 0) -> Codes:
    """Trits of the same thresholds whose scale is the mean |w| (Ma et al. 2024, eq. 3).

    It is there to be compared with: least squares gives the same codes a better scale.
    """
    scales = float16_values(grouped(w.detach().float(), group).abs().mean(-1))
    return encode(w, 1.58, group)._replace(scales=scales.half())


def weight_error(w: Float[Tensor, "out in"], bits: Bits, group: int = 0) -> float:
    """Mean squared error of the codes, as a share of the mean square of `w`; 0 for zeros."""
    return relative_error(w, rounded(w.detach(), bits, group))


def relative_error(w: Float[Tensor, "out in"], other: Float[Tensor, "out in"]) -> float:
    """Mean squared difference as a share of the mean square of `w`; 0 if both are zeros."""
    exact = w.detach().double()
    wrong, whole = (exact - other).square().sum(), exact.square().sum()
    return float(wrong / whole) if wrong else 0.0


def unit(x: Float[Tensor, "out groups size"], bits: Bits) -> Float[Tensor, "out groups 1"]:
    """What a group is measured in when its codes are chosen.

    For 2, 4 and 8 bits it is the distance of two levels. 2 bits: nearly optimal for Gaussian
    weights, and within 2 % for Laplace's and Student's (Max 1960). 4 bits: the 8-norm follows
    the tails, so that the error is within a tenth of that of the best scale, on average over
    uniform to Student-3 groups of 64 to 2048; a multiple of the root of the mean square
    is up to three times as bad. 8 bits: nothing is cut off.
    """
    if bits in (1, 1.58):
        return x.abs().mean(-1, keepdim=True)
    if bits == 2:
        return float16_values(0.996 * x.square().mean(-1, keepdim=True).sqrt())
    peak = x.abs().amax(-1, keepdim=True)
    if bits == 8:
        return float16_values(peak / 127)
    tail = (x / peak.clamp(min=TINY)).square().square().square().mean(-1, keepdim=True)
    return float16_values(0.185 * peak * tail.sqrt().sqrt().sqrt())


def _levels(x: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """The level (code + offset) of each weight, and the scale of each group."""
    one = unit(x, bits)
    if bits == 1:  # zero counts as positive; many times as fast as comparing and choosing
        return (x.sign() + 0.5).sign(), float16_values(one)
    lowest, highest, offset = FORMATS[bits][1:]
    place = x / one.clamp(min=TINY)
    levels = (place.floor() if offset else place.round()).clamp(lowest, highest) + offset
    if bits == 1.58:  # least squares: <w, t> / <t, t>
        total, count = (x * levels).sum(-1, keepdim=True), levels.abs().sum(-1, keepdim=True)
        one = float16_values(total / count.clamp(min=1))
    return levels, one


def token_scales(x: Float[Tensor, "*any channels"]) -> Float[Tensor, "*any 1"]:
    """What each token's activations are counted in: 127 of it are the largest."""
    return x.abs().amax(-1, keepdim=True).clamp(min=TINY) / 127


def rounded_tokens(x: Float[Tensor, "*any channels"]) -> Float[Tensor, "*any channels"]:
    """Activations as int8 codes of each token stand for them, in float32."""
    scales = token_scales(x)
    return (x / scales).round_().mul_(scales)


def thresholds(bits: Bits) -> tuple[float, float]:
    """The lowest and the highest place, in units, where a weight's code changes.

    Between them there is one in every unit.
    """
    lowest, highest, offset = FORMATS[bits][1:]
    return (0.0, 0.0) if bits == 1 else (lowest + 0.5 + offset, highest - 0.5 + offset)


def float16_values(x: Tensor) -> Tensor:
    """`x.half().float()` for what is not negative, and no infinities; written in float32.

    Compilers take a cast to float16 and back for nothing, and leave it out.
    """
    x = x.clamp(max=LARGEST_SCALE)
    # A float32 has 13 bits more than a float16: round half to even, as the cast does.
    bits = x.view(torch.int32)
    normal = ((bits + 0xFFF + ((bits >> 13) & 1)) & -0x2000).view(torch.float32)
    return torch.where(x < SMALLEST_NORMAL, (x * SUBNORMALS).round() / SUBNORMALS, normal)


def grouped(w: Float[Tensor, "out in"], group: int) -> Float[Tensor, "out groups size"]:
    """A matrix with the weights of each scale apart."""
    rows, inputs = w.shape
    size = group or inputs
    if size < 1 or inputs % size:
        raise InputError(f"a group of {group} does not divide {inputs} inputs")
    return w.reshape(rows, inputs // size, size)
