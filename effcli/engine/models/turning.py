"""What turns keys and queries."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from effcli.engine.models.layers import Cache, Linear
from effcli.settings.phase import RANK, PhaseSettings

GOLDEN = (1 + math.sqrt(5)) / 2
CIRCLE = 2 * math.pi
CALM = 1 / 16  # radians of a unit step: an optimizer moves all weights by about as much


class Phases(nn.Module):
    """How far each position turns the phases of each head: by its features, by itself, or not."""

    def __init__(self, s: PhaseSettings) -> None:
        super().__init__()
        pairs = s.width // s.heads // 2
        self.heads, self.way = s.heads, s.phase
        steps = torch.arange(pairs, dtype=torch.float64) / max(1, pairs - 1)
        rates = 10_000.0**-steps if s.phase == "rope" else GOLDEN ** (-16 * steps)
        every = rates.repeat(s.heads, 1) * (CALM if s.phase == "data" else 1.0)
        if s.tracker:
            every[0] = 1.0
        self.register_buffer("rates", every.float(), persistent=False)
        if s.phase == "data":
            self.narrow = Linear(s.width, RANK, bias=False)
            self.widen = Linear(RANK, s.heads * pairs, bias=False)

    def forward(
        self, x: Float[Tensor, "batch time width"], cache: Cache | None, place: str
    ) -> Float[Tensor, "batch heads time pairs"] | None:
        """The angles so far, within one circle; none where nothing turns."""
        if self.way == "none":
            return None
        rates = self.get_buffer("rates")
        if self.way == "data":
            steps = self.widen(self.narrow(x)).float().view(*x.shape[:2], *rates.shape)
            steps = (steps * rates).transpose(1, 2)
        else:
            steps = rates.unsqueeze(1).expand(x.shape[0], -1, x.shape[1], -1)
        angles: Tensor = steps.cumsum(2)
        if cache is not None:
            if place in cache.past:
                angles = angles + cache.past[place]
            angles = angles.remainder(CIRCLE)
            cache.past[place] = angles[:, :, -1:].clone()
        return angles

    def keep(self, pairs: int) -> None:
        """Turn only the first pairs of each head."""
        rates = self.get_buffer("rates")
        if self.way == "data":
            rows = torch.arange(rates.numel()).view(rates.shape)[:, :pairs].flatten()
            self.widen.weight = cut(self.widen.weight, rows)
        self.register_buffer("rates", rates[:, :pairs].contiguous(), persistent=False)


def cut(weight: Tensor, rows: Tensor) -> nn.Parameter:
    """Some of the rows, not to be trained any more."""
    return nn.Parameter(weight.detach()[rows.to(weight.device)], requires_grad=False)
