"""Complex-linear maps and a nonlinearity that phases pass through, in real arithmetic.

A complex number is two real channels in contiguous halves, so a map W = W_r + i W_i is the real
map [[W_r, -W_i], [W_i, W_r]] of [re | im]. It has half the weights of a real one of its shape and
the same product, so 4 FLOPs for each weight in place of 2.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from effcli.engine.models.layers import Linear
from effcli.settings.phase import PhaseSettings

FAINT = 1e-12  # added to a squared modulus: it has a gradient at 0, too
START = -2.0  # of the offset of a modulus: where both parts are N(0, 1), a seventh of units counts


class ComplexLinear(nn.Module):
    """A complex-linear map of [re | im]; weights are [W_r | W_i], (outputs / 2, inputs).

    One matrix, because its steps then have the size of a real map's of this shape: Muon gives
    entries of both 1/√inputs, and a normal start of that spread keeps a mean square.
    """

    whole: Tensor | None
    """The map as a real one, once it is settled."""

    # The residual stream is [re | im] in two halves of the width, each head [re | im] in two
    # halves of its channels. Heads are cut from complex channels, so a turn of the stream turns
    # every head: cutting the stream itself would put real parts into some heads alone.
    def __init__(
        self, inputs: int, outputs: int, *, from_heads: int = 1, to_heads: int = 1
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs // 2, inputs))
        self.from_heads, self.to_heads = from_heads, to_heads
        self.register_buffer("whole", None, persistent=False)

    def forward(self, x: Float[Tensor, "*any inputs"]) -> Float[Tensor, "*any outputs"]:
        """`x`, mapped."""
        return F.linear(x, self.block(x.dtype) if self.whole is None else self.whole)

    def block(self, dtype: torch.dtype) -> Float[Tensor, "outputs inputs"]:
        """The map as a real one."""
        re, im = self.weight.to(dtype).chunk(2, dim=1)
        rows = self._beside(re, -im), self._beside(im, re)
        parts = [part.view(self.to_heads, -1, part.shape[1]) for part in rows]
        return torch.stack(parts, dim=1).flatten(0, 2)

    def _beside(self, first: Tensor, second: Tensor) -> Tensor:
        parts = [part.reshape(len(part), self.from_heads, -1) for part in (first, second)]
        return torch.stack(parts, dim=2).flatten(1)

    def settle(self, dtype: torch.dtype) -> None:
        """Make the real map once, in the type of products: not to be trained any more."""
        self.to(dtype)
        self.whole = self.block(dtype)


Maps = Callable[[int, int], nn.Module]


def maps(s: PhaseSettings) -> tuple[Maps, Maps]:
    """What makes the maps from the stream to heads, and those back."""
    if s.algebra == "pair":
        return (lambda n, m: Linear(n, m, bias=s.bias),) * 2
    return (
        lambda n, m: ComplexLinear(n, m, to_heads=s.heads),
        lambda n, m: ComplexLinear(n, m, from_heads=s.heads),
    )


class ComplexMLP(nn.Module):
    """What every position makes of itself, whatever its global phase is.

    Each unit is multiplied by a gate of a modulus: h · f(a |h| + b), with a and b of its own. f is
    what the real activation multiplies by: a ReLU where it is ReLU², the normal distribution
    where it is GELU, and SiLU of another map's modulus where it is SwiGLU.
    """

    def __init__(self, s: PhaseSettings) -> None:
        super().__init__()
        self.activation = s.activation
        self.up = ComplexLinear(s.width, s.hidden)
        if s.activation == "swiglu":
            self.gate = ComplexLinear(s.width, s.hidden)
        self.gains = nn.Parameter(torch.empty(s.hidden // 2))
        self.offsets = nn.Parameter(torch.empty(s.hidden // 2))
        self.down = ComplexLinear(s.hidden, s.width)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Let few units be large enough to count."""
        self.gains.fill_(1.0)
        self.offsets.fill_(START)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """Up, gate, down."""
        h = self.up(x).unflatten(-1, (2, -1))
        judged = self.gate(x).unflatten(-1, (2, -1)) if self.activation == "swiglu" else h
        modulus = (judged.square().sum(-2, keepdim=True) + FAINT).sqrt()
        z = modulus * self.gains.to(h.dtype) + self.offsets.to(h.dtype)
        out: Tensor = self.down((h * self._gate(z)).flatten(-2))
        return out

    def _gate(self, z: Tensor) -> Tensor:
        if self.activation == "relu2":
            return F.relu(z)
        return F.silu(z) if self.activation == "swiglu" else (1 + (z * math.sqrt(0.5)).erf()) / 2
