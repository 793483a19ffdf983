"""The small parts that models share. Weights are float32; products run in the input's type."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from effcli.engine.data.order import mix64
from effcli.engine.data.source import digest

PAD_TO = 64  # rows of embeddings and heads are a multiple of this, for the matrix units


class Linear(nn.Linear):
    """A linear layer that casts its float32 weights to the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` times the transposed weight."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)

    def settle(self, dtype: torch.dtype) -> None:
        """Cast the weights once to the type of products: not to be trained any more."""
        self.to(dtype)


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` with mean 0 and variance 1 over its channels, then gain and bias."""
        return super().forward(x.float()).to(x.dtype)


class RMSNorm(nn.Module):
    """RMSNorm without weights, computed in float32 (Zhang & Sennrich 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` with a mean square of 1 over its channels."""
        return rms_norm(x)


def rms_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """`x` divided by the root of its mean square over the last axis."""
    return F.rms_norm(x, x.shape[-1:], eps=eps)  # which computes in float32


class Rotary(nn.Module):
    """Angles of rotary positions (Su et al. 2021)."""

    def __init__(self, channels: int, context: int, base: float = 10_000.0) -> None:
        super().__init__()
        frequencies = base ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
        angles = torch.outer(torch.arange(context, dtype=torch.float64), frequencies)
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    def forward(self, start: int, time: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What `rotate` takes for positions start..start+time-1, each of shape (time, channels).

        These are cosines, and sines of the angles by which the other channel of a pair turns in.
        """
        part = slice(start, start + time)
        cosine = self.get_buffer("cosine")[part].to(dtype)
        sine = self.get_buffer("sine")[part].to(dtype)
        return torch.cat((cosine, cosine), dim=-1), torch.cat((-sine, sine), dim=-1)


def rotate(
    x: Float[Tensor, "batch heads time channels"], angles: tuple[Tensor, Tensor]
) -> Float[Tensor, "batch heads time channels"]:
    """Turn each pair of channels (c, c + half) by the angle of its position."""
    cosine, sine = angles
    return x * cosine + x.roll(x.shape[-1] // 2, -1) * sine


def attend(
    q: Float[Tensor, "batch heads time channels"],
    k: Float[Tensor, "batch heads past channels"],
    v: Float[Tensor, "batch heads past values"],
    *,
    by_products: bool,
    dropout: float = 0.0,
    window: int | None = None,
    since: Int[Tensor, "batch time"] | None = None,
) -> Float[Tensor, "batch heads time values"]:
    """Causal attention; the queries are the last of the keys' positions.

    With a `window` each sees only so many of the last positions, its own among them; no more
    than so many before its own that are `since` something began.

    `by_products` is two plain batched products: on CPUs with matrix units its backward
    pass is faster than the fused kernel's, as long as the context is short.
    """
    time, past = q.shape[-2], k.shape[-2]
    if window is not None and time == past > window:
        return _attend_near(q, k, v, window, since, dropout)
    if since is not None or (window is not None and past > window):
        at = torch.arange(past, device=q.device)
        ago = at[past - time :, None] - at
        mask = _visible(ago, past if window is None else window, since)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    if time == 1:  # the last position, which sees all
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    if by_products:
        allowed = torch.ones(time, past, dtype=torch.bool, device=q.device).tril(past - time)
        bias = torch.zeros(time, past, dtype=q.dtype, device=q.device)
        bias = bias.masked_fill(~allowed, float("-inf"))
        scores = torch.baddbmm(
            bias.expand(q.shape[0] * q.shape[1], time, past),
            q.flatten(0, 1),
            k.flatten(0, 1).transpose(1, 2),
            alpha=1 / math.sqrt(q.shape[-1]),
        )
        weights = F.dropout(scores.softmax(-1), dropout)
        return torch.bmm(weights, v.flatten(0, 1)).view(*q.shape[:-1], v.shape[-1])
    if time == past:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
    mask = torch.ones(time, past, dtype=torch.bool, device=q.device).tril(past - time)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def _visible(ago: Int[Tensor, "time past"], window: int, since: Tensor | None) -> Tensor:
    """Which positions see which others that were so long ago."""
    mask = (ago >= 0) & (ago < window)
    return mask if since is None else mask & (ago <= since[:, None, :, None])


def _attend_near(
    q: Tensor, k: Tensor, v: Tensor, window: int, since: Tensor | None, dropout: float
) -> Tensor:
    """Each block of a window sees itself and the one before: work grows as the text does."""
    shape, rest = q.shape, -q.shape[-2] % window

    def blocks(x: Tensor, shift: int) -> Tensor:
        x = F.pad(x, (0, 0, shift, rest - shift))
        return x.reshape(-1, x.shape[-2] // window, window, x.shape[-1])

    ask = blocks(q, 0)
    keys, values = (torch.cat((blocks(x, window), blocks(x, 0)), dim=2) for x in (k, v))
    at = torch.arange(window, device=q.device)
    ago = at[:, None] - torch.arange(-window, window, device=q.device)
    near = _visible(ago, window, None).expand(keys.shape[1], -1, -1).clone()
    near[0, :, :window] = False  # nothing is before the first
    if since is not None:  # blocks of a text beside each other, and a mask that all heads share
        own = F.pad(since, (0, rest)).view(len(since), -1, window, 1)
        near = (near & (ago <= own)).flatten(0, 1).unsqueeze(1)
        ask, keys, values = (_swapped(x, shape[1]) for x in (ask, keys, values))
    y = F.scaled_dot_product_attention(ask, keys, values, attn_mask=near, dropout_p=dropout)
    if since is not None:
        y = _swapped(y, y.shape[0] // len(since))
    return y.reshape(*shape[:-2], -1, v.shape[-1])[..., : shape[-2], :]


def _swapped(x: Tensor, count: int) -> Tensor:
    """The second axis instead of the `count` that are within the first."""
    return x.reshape(-1, count, *x.shape[1:]).transpose(1, 2).flatten(0, 1)


class Shift(nn.Module):
    """Adds to each position those just before it, by learned weights per channel (RWKV)."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(width) for _ in range(count))

    def forward(
        self, x: Tensor, cache: "Cache | None", place: str, since: Tensor | None = None
    ) -> Tensor:
        """`x`, mixed; a cache remembers the end of it, by the name of the place.

        What is not `since` the beginning of the same document is not seen.
        """
        count, out = len(self.weights), x
        if count == 1 and x.shape[1] == 1 and cache is not None and place in cache.past:
            earlier, cache.past[place] = cache.past[place], x
            earlier = earlier if since is None else earlier * (since >= 1).unsqueeze(-1)
            return torch.addcmul(x, earlier, self.weights[0].to(x.dtype))
        longer = before(x, count, cache, place) if count else x
        for back, weight in enumerate(self.weights, 1):
            earlier = longer[:, count - back : longer.shape[1] - back]
            earlier = earlier if since is None else earlier * (since >= back).unsqueeze(-1)
            out = torch.addcmul(out, earlier, weight.to(x.dtype))
        return out


def dropped(drop: nn.Dropout, x: Tensor) -> Tensor:
    """What dropout leaves of `x`; where it is not trained, it is spared the call of a module."""
    out: Tensor = drop(x) if drop.training else x
    return out


def before(x: Tensor, count: int, cache: "Cache | None", place: str) -> Tensor:
    """`x` after the `count` positions that precede it; zeros where there are none."""
    past = None if cache is None else cache.past.get(place)
    if past is None:
        past = x.new_zeros(x.shape[0], count, *x.shape[2:])
    longer = torch.cat((past, x), dim=1)
    if cache is not None:
        cache.past[place] = longer[:, -count:]
    return longer


class Cache:
    """What is remembered of a text."""

    def __init__(self) -> None:
        self.past: dict[str, Tensor] = {}  # by place: last inputs, states, angles
        self.length = 0

    @property
    def floats(self) -> int:
        """How many numbers are kept."""
        return sum(kept.numel() for kept in self.past.values())


class KeyValueCache(Cache):
    """Keys and values of the positions seen so far, for every layer."""

    def __init__(self, layers: int, shape: tuple[int, int, int, int], like: Tensor) -> None:
        super().__init__()
        self._keys = [like.new_empty(shape) for _ in range(layers)]
        self._values = [like.new_empty(shape) for _ in range(layers)]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add positions to a layer, and return all that it has."""
        stop = self.length + k.shape[-2]
        self._keys[layer][:, :, self.length : stop] = k
        self._values[layer][:, :, self.length : stop] = v
        return self._keys[layer][:, :, :stop], self._values[layer][:, :, :stop]


def padded(rows: int) -> int:
    """Rows of a table for `rows` ids, rounded up for the matrix units."""
    return -(-rows // PAD_TO) * PAD_TO


def generators(model: nn.Module, seed: int) -> Iterator[tuple[str, Tensor, torch.Generator]]:
    """Every parameter with a random generator of its own.

    A tensor's start depends on the seed and its name alone, so two models share the
    values of every tensor that they have in common.
    """
    for name, parameter in model.named_parameters():
        own = mix64(seed ^ digest(name.encode()))
        yield name, parameter, torch.Generator().manual_seed(own % 2**63)
