"""What lets positions of a phase model take from those before them: memories and attention.

Features are real; where phases act, pairs of channels are phasors, [re | im] in two halves, so
that no cast can lose their imaginary part. Phases, decays, states and norms are float32.
"""

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from effcli.engine.models.algebra import maps
from effcli.engine.models.fused import interfere
from effcli.engine.models.interference import (
    SMALLEST,
    Told,
    interfere_flops,
    one_more,
    times_i,
)
from effcli.engine.models.layers import Cache, Linear, Shift, attend, rms_norm
from effcli.engine.models.positions import Positions
from effcli.engine.models.turning import Phases, cut
from effcli.engine.phase.coherence import rotate
from effcli.settings.phase import RANK, TAPS, PhaseSettings

SHORTEST, LONGEST = 4.0, 1024.0  # half-lives of memories, in positions


class PhaseMixer(nn.Module, ABC):
    """What memories and attention have in common: phasors in, and a gate before the output."""

    def __init__(self, s: PhaseSettings) -> None:
        super().__init__()
        self.heads, self.channels = s.heads, s.width // s.heads
        (to_heads, from_heads), square = maps(s), (s.width, s.width)
        self.query, self.key, self.value = to_heads(*square), to_heads(*square), to_heads(*square)
        self.gate, self.output = to_heads(*square), from_heads(*square)
        self.phases = Phases(s)
        self.keys = s.width  # channels of the keys of all heads

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        told: Positions,
        cache: Cache | None,
        layer: int,
        extra: Tensor | None,
    ) -> Float[Tensor, "batch time width"]:
        """What every position takes from those before it; `extra` is added to the values."""
        v = self.value(x) if extra is None else self.value(x) + extra.to(x.dtype)
        angles = self.phases(x, cache, f"{layer}.angles")
        asked = self.asked(x, told, cache, layer)
        q, k = (self.phasors(one, angles, told.channels) for one in asked)
        read = self.read(x, told, (q, k, self.by_head(v)), cache, layer)
        y = rms_norm(read).transpose(1, 2).flatten(2).to(x.dtype)
        out: Tensor = self.output(y * (2 * self.gate(x).sigmoid()))
        return out

    def asked(
        self, x: Tensor, told: Positions, cache: Cache | None, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys, before they are phasors."""
        del told, cache, layer  # which matter to whoever looks at earlier positions
        return self.query(x), self.key(x)

    @abstractmethod
    def read(
        self,
        x: Tensor,
        told: Positions,
        phasors: tuple[Tensor, Tensor, Tensor],
        cache: Cache | None,
        layer: int,
    ) -> Float[Tensor, "batch heads time channels"]:
        """What each head reads of queries, keys and values."""

    def by_head(self, x: Tensor) -> Float[Tensor, "batch heads time channels"]:
        """Channels shared out to heads."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def phasors(
        self, x: Tensor, angles: Tensor | None, kept: Tensor | None
    ) -> Float[Tensor, "batch heads time channels"]:
        """Of length 1 by head, turned by the angles; in float32. Channels not `kept` are 0."""
        x = self.by_head(x).float()
        left = x.shape[-1]  # as if what was cut off were zeros
        x = x if kept is None else x * kept
        x = rms_norm(x, 1e-6 * (self.channels / left)) * left**-0.5
        return x if angles is None else rotate(x, angles)

    def keep(self, pairs: int) -> Tensor:
        """Cut keys and queries to the first pairs of each head; returns their channels."""
        for one in (self.query, self.key):
            for name, own in [*one.named_parameters()]:  # complex maps have a row for each pair
                setattr(one, name, cut(own, self._first(len(own), pairs)))
        self.phases.keep(pairs)
        rows = self._first(self.heads * self.channels, pairs)
        self.keys = len(rows)
        return rows

    def _first(self, count: int, pairs: int) -> Tensor:
        """Of so many rows, shared out to heads by pairs, those of the first pairs."""
        rows = torch.arange(count).view(self.heads, -1, self.channels // 2)
        return rows[:, :, :pairs].flatten()

    def flops(self, time: int, *, dense: bool) -> float:
        """Products for one sequence, those of the maps included."""
        return time * self.map_flops() + self.mixing_flops(time, dense=dense)

    def map_flops(self) -> float:
        """Those of a position with weights."""
        width = self.heads * self.channels
        turning = 2 * RANK * (width + self.keys // 2) if self.phases.way == "data" else 0
        return 6.0 * width**2 + 4 * width * self.keys + turning

    @abstractmethod
    def mixing_flops(self, time: int, *, dense: bool) -> float:
        """Those of positions with each other."""

    @abstractmethod
    def step_flops(self) -> float:
        """Those of one more position with what is kept of long texts."""


class Interference(PhaseMixer):
    """A memory for each head, read by the phasors that it was written with.

    What is read is normalized, so that how long a query is makes no difference.
    """

    def __init__(self, s: PhaseSettings, layer: int) -> None:
        super().__init__(s)
        self.chunk, self.states, self.is_complex = s.chunk, s.states, s.score == "complex"
        self.is_delta = s.write == "delta"
        self.short = Shift(2 * s.width, TAPS - 1)
        self.decay = Linear(s.width, s.heads * s.states)
        if self.is_delta:
            self.strength = Linear(s.width, s.heads)
        if s.states > 1:
            self.blend = nn.Parameter(torch.zeros(s.heads * s.states))
        self.half_lives = half_lives(s, layer)
        self.heard: list[Told] | None = None  # where somebody listens; in float32

    def asked(
        self, x: Tensor, told: Positions, cache: Cache | None, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys, before they are phasors. Each mixes its last positions."""
        both = torch.cat((self.query(x), self.key(x)), dim=-1)
        both = self.short(both, cache, f"{layer}.short", told.since)
        q, k = F.silu(both).chunk(2, dim=-1)
        return q, k

    def keep(self, pairs: int) -> Tensor:
        """Cut keys and queries to the first pairs of each head; returns their channels."""
        rows = super().keep(pairs)
        both = torch.cat((rows, self.heads * self.channels + rows))
        self.short.weights = nn.ParameterList(cut(one, both) for one in self.short.weights)
        return rows

    def read(
        self,
        x: Tensor,
        told: Positions,
        phasors: tuple[Tensor, Tensor, Tensor],
        cache: Cache | None,
        layer: int,
    ) -> Float[Tensor, "batch heads time channels"]:
        """What each head reads of queries, keys and values."""
        q, k, v = phasors
        decays = -F.softplus(self.decay(x).float()).clamp(max=-SMALLEST)
        decays = decays.view(*x.shape[:2], self.heads, self.states).permute(0, 2, 3, 1)
        if told.since is not None:
            decays = decays.masked_fill((told.since == 0)[:, None, None], SMALLEST)
        strength = None
        if self.is_delta:
            strength = self.strength(x).float().sigmoid().transpose(1, 2)
            v = v * strength.unsqueeze(-1).to(v.dtype)
        says = Told(q, k, v, decays, strength)
        if self.heard is not None:
            self.heard.append(says)
        says, blend = replace(says, q=q.to(v.dtype), k=k.to(v.dtype)), self.shares
        place, keeps = f"{layer}.state", cache is not None
        before = cache.past.get(place) if cache is not None else None
        if x.shape[1] == 1 and before is not None and cache is not None:
            read, cache.past[place] = one_more(says, before, blend, is_complex=self.is_complex)
            return read
        read, state = interfere(says, self.chunk, blend, before, keeps=keeps)
        if self.is_complex:
            behind = replace(says, q=-times_i(says.q))
            read = read + times_i(interfere(behind, self.chunk, blend, before)[0])
        if cache is not None and state is not None:
            cache.past[place] = state
        return read

    @property
    def shares(self) -> Float[Tensor, "heads states"] | None:
        """How much each state of a head counts, where it has several."""
        return self.blend.view(self.heads, -1).softmax(1) if self.states > 1 else None

    def map_flops(self) -> float:
        """Those of a position with weights, what steers the memory among them."""
        steers = self.states + self.is_delta
        return super().map_flops() + 2 * self.heads**2 * self.channels * steers

    def step_flops(self) -> float:
        """What is written and read; and read by a quarter turn, or before, to be taken back."""
        return 2.0 * self.keys * self.channels * (2 + self.is_complex + self.is_delta)

    def mixing_flops(self, time: int, *, dense: bool) -> float:
        """Those of positions with each other and with states."""
        pairs, solved, with_states = interfere_flops(time, self.chunk, dense=dense)
        width, ways = self.heads * self.channels, 2 if self.is_complex else 1
        keys = self.keys
        by_state = 2 * keys * self.channels * with_states
        each = 2 * (width + keys) * pairs + 2 * self.states * by_state
        if self.is_delta:  # keys with keys, a triangle solved for keys and values, and by state
            each += 2 * keys * pairs + (width + keys) * solved + by_state
        return float(ways * each)


class PhaseAttention(PhaseMixer):
    """Softmax attention to the last positions, by the real part of the same interference."""

    def __init__(self, s: PhaseSettings) -> None:
        super().__init__(s)
        self.window, self.by_products = s.window, False

    def read(
        self,
        x: Tensor,
        told: Positions,
        phasors: tuple[Tensor, Tensor, Tensor],
        cache: Cache | None,
        layer: int,
    ) -> Float[Tensor, "batch heads time channels"]:
        """What each head reads of queries, keys and values."""
        del x  # which has no more to say
        q, k, v = phasors
        # Attention divides by the root of the channels that are left, as it did by that of all.
        scale = self.channels**0.5 * (k.shape[-1] / self.channels) ** 0.25
        q, k = (q * scale).to(v.dtype), (k * scale).to(v.dtype)
        if cache is not None:
            for name, own in (("keys", k), ("values", v)):
                place = f"{layer}.{name}"
                own = torch.cat((cache.past[place], own), dim=2) if place in cache.past else own
                tail = own[:, :, -self.window :]  # of a long prompt, no more
                cache.past[place] = tail.clone() if own.shape[2] > 2 * self.window else tail
                k, v = (own, v) if name == "keys" else (k, own)
        return attend(q, k, v, by_products=self.by_products, window=self.window, since=told.since)

    def mixing_flops(self, time: int, *, dense: bool) -> float:
        """Those of positions with each other."""
        seen = sum(min(t, self.window) for t in range(1, time + 1))
        if dense:
            seen = 2 * self.window * (time + -time % self.window) if time > self.window else time**2
        return 2.0 * (self.heads * self.channels + self.keys) * seen

    def step_flops(self) -> float:
        """Those with all positions of the window."""
        return 2.0 * (self.heads * self.channels + self.keys) * self.window


def half_lives(s: PhaseSettings, layer: int) -> Tensor:
    """How long each state of each head remembers at first, (heads, states); evenly over scales."""
    count = s.heads * s.states
    at = (torch.arange(count, dtype=torch.float64) + (layer + 0.5) / s.layers) / count
    lives = SHORTEST * (LONGEST / SHORTEST) ** at.view(s.heads, s.states)
    if s.tracker:
        lives[0] = 64 * max(LONGEST, s.context)
    return lives
