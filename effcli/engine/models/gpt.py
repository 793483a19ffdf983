"""A decoder-only transformer: GPT-2 at one end of its settings, the modern recipe at the other."""

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from effcli.engine.models.layers import (
    Cache,
    KeyValueCache,
    LayerNorm,
    Linear,
    RMSNorm,
    Rotary,
    Shift,
    attend,
    dropped,
    generators,
    padded,
    rms_norm,
    rotate,
)
from effcli.engine.models.tables import Tables
from effcli.engine.protocols import LanguageModel
from effcli.settings.model import GPTSettings


class Attention(nn.Module):
    """Causal self-attention over several heads."""

    def __init__(self, s: GPTSettings) -> None:
        super().__init__()
        self.heads, self.dropout, self.qk_norm = s.heads, s.dropout, s.qk_norm
        self.channels, self.by_products = s.width // s.heads, False
        self.joined: nn.Module | None = None  # queries, keys and values at once, if never trained
        self.query = Linear(s.width, s.width, bias=s.bias)
        self.key = Linear(s.width, s.width, bias=s.bias)
        self.value = Linear(s.width, s.width, bias=s.bias)
        self.output = Linear(s.width, s.width, bias=s.bias)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        angles: tuple[Tensor, Tensor] | None,
        cache: KeyValueCache | None,
        layer: int,
        extra: Tensor | None,
    ) -> Float[Tensor, "batch time width"]:
        """What every position takes from those before it; `extra` is added to the values."""
        if self.joined is None:
            values = self.value(x) if extra is None else self.value(x) + extra.to(x.dtype)
            q, k, v = (self._by_head(part) for part in (self.query(x), self.key(x), values))
            q, k = self._turned(q, angles), self._turned(k, angles)
        else:
            parts = self.joined(x)
            if extra is not None:
                parts[..., -extra.shape[-1] :] += extra
            both, v = torch.split(self._by_head(parts), [2 * self.heads, self.heads], dim=1)
            q, k = self._turned(both, angles).chunk(2, dim=1)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        dropout = self.dropout if self.training else 0.0
        y = attend(q, k, v, by_products=self.by_products, dropout=dropout)
        out: Tensor = self.output(y.transpose(1, 2).flatten(2))
        return out

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.channels).transpose(1, 2)

    def _turned(self, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        x = rms_norm(x) if self.qk_norm else x
        return x if angles is None else rotate(x, angles)


class MLP(nn.Module):
    """What every position makes of itself."""

    def __init__(self, s: GPTSettings) -> None:
        super().__init__()
        self.activation = s.activation
        self.up = Linear(s.width, s.hidden, bias=s.bias)
        if s.activation == "swiglu":
            self.gate = Linear(s.width, s.hidden, bias=s.bias)
        self.down = Linear(s.hidden, s.width, bias=s.bias)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """Up, nonlinearity, down."""
        h = self.up(x)
        if self.activation == "relu2":
            h = F.relu(h).square()
        elif self.activation == "gelu":
            h = F.gelu(h)
        else:
            h = F.silu(self.gate(x)) * h
        out: Tensor = self.down(h)
        return out


class Block(nn.Module):
    """Attention or what stands for it, then the MLP, each added to the residual stream."""

    def __init__(self, s: GPTSettings, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention = _norm(s), attention
        self.norm2, self.mlp = _norm(s), mlp
        self.shift1, self.shift2 = Shift(s.width, s.shift), Shift(s.width, s.shift)
        self.drop = nn.Dropout(s.dropout)

    def forward(
        self,
        x: Tensor,
        told: Any,
        cache: Cache | None,
        layer: int,
        extra: Tensor | None,
    ) -> Tensor:
        """The residual stream after this block; `extra` is added to the values."""
        since = since_of(told)
        h = self.shift1(self.norm1(x), cache, f"{layer}.attention", since)
        x = x + dropped(self.drop, self.attention(h, told, cache, layer, extra))
        h = self.shift2(self.norm2(x), cache, f"{layer}.mlp", since)
        out: Tensor = x + dropped(self.drop, self.mlp(h))
        return out


def since_of(told: Any) -> Int[Tensor, "batch time"] | None:
    """How many positions of its own document are before each; none where all are seen."""
    return getattr(told, "since", None)


def _norm(s: GPTSettings) -> nn.Module:
    return LayerNorm(s.width) if s.norm == "layer" else RMSNorm()


class Trunk(nn.Module):
    """From token ids to the last features."""

    def __init__(self, s: GPTSettings, vocab_size: int) -> None:
        super().__init__()
        self.dtype, self.recompute, self.vocab_size = torch.float32, False, vocab_size
        self.embedding_norm = s.embedding_norm
        self.embedding = nn.Embedding(padded(vocab_size), s.width)
        if s.positions == "learned":
            self.positions = nn.Embedding(s.context, s.width)
        elif s.positions == "rope":
            self.rotary = Rotary(s.width // s.heads, s.context)
        if s.pair_rows or s.value_tables:
            self.tables = Tables(s, vocab_size)
        self.drop = nn.Dropout(s.dropout)
        self.blocks = nn.ModuleList(self.block(s, i) for i in range(s.layers))
        self.norm = _norm(s)

    def block(self, s: GPTSettings, layer: int) -> Block:
        """One of the blocks."""
        del layer  # all are alike
        return Block(s, Attention(s), MLP(s))

    def told(self, tokens: Int[Tensor, "batch time"], start: int, cache: Cache | None) -> Any:
        """What every mixer is told about the positions of these tokens."""
        del cache  # which matters where the text has a say
        has_angles = hasattr(self, "rotary")
        return self.rotary(start, tokens.shape[1], self.dtype) if has_angles else None

    def embedded(
        self, tokens: Int[Tensor, "batch time"], start: int, told: Any
    ) -> Float[Tensor, "batch time width"]:
        """What each token is, and where it is told apart by its place."""
        del told  # which matters where a token is not the same everywhere
        x: Tensor = self.embedding(tokens)
        if hasattr(self, "positions"):
            x = x + self.positions(torch.arange(start, start + len(tokens[0]), device=x.device))
        return rms_norm(x) if self.embedding_norm else x

    def begun(
        self, tokens: Int[Tensor, "batch time"], start: int, told: Any, cache: Cache | None
    ) -> tuple[Float[Tensor, "batch time width"], Sequence[Tensor]]:
        """What the first block gets, and what is added to the values of some blocks."""
        x, extras = self.embedded(tokens, start, told), []
        if hasattr(self, "tables"):
            x, extras = self.tables(x, tokens, cache, since_of(told))
        return dropped(self.drop, x.to(self.dtype)), extras

    def forward(
        self, tokens: Int[Tensor, "batch time"], cache: Cache | None = None
    ) -> Float[Tensor, "batch time width"]:
        """The last hidden state; with a cache, `tokens` come after what is in it."""
        start, time = (cache.length if cache else 0), tokens.shape[1]
        told = self.told(tokens, start, cache)
        x, extras = self.begun(tokens, start, told, cache)
        for layer, (block, extra) in enumerate(zip_longest(self.blocks, extras)):
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, told, None, layer, extra, use_reentrant=False)
            else:
                x = block(x, told, cache, layer, extra)
        if cache is not None:
            cache.length += time
        out: Tensor = self.norm(x)
        return out


class GPT(LanguageModel):
    """A GPT of any recipe. Vocabulary tables are padded for speed, never in the loss."""

    trunk_type: type[Trunk] = Trunk

    def __init__(self, settings: GPTSettings, vocab_size: int, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.vocab_size, self.context = vocab_size, settings.context
        self.soft_cap = settings.soft_cap
        self.trunk: Trunk = self.trunk_type(settings, vocab_size)
        if not settings.tied:
            self.unembedding = Linear(settings.width, padded(vocab_size), bias=False)
        self._initialize(seed)

    @property
    def head(self) -> Tensor:
        """The table of outputs; the embedding itself, if they are tied."""
        return self.trunk.embedding.weight if self.settings.tied else self.unembedding.weight

    def parameter_count(self) -> int:
        """Weights, without the rows that only pad a table."""
        tables = 1 if self.settings.tied else 2
        padding = (padded(self.vocab_size) - self.vocab_size) * self.settings.width * tables
        return sum(p.numel() for p in self.parameters()) - padding

    def new_cache(self, batch: int) -> Cache:
        """Room for the keys and values of a whole context."""
        s = self.settings
        shape = (batch, s.heads, s.context, s.width // s.heads)
        return KeyValueCache(s.layers, shape, self.head.new_empty(0, dtype=self.trunk.dtype))

    def forward_flops(self, batch: int, time: int, *, dense: bool = False) -> float:
        """Products only: 2·m·n·k each. Position t attends to t keys, unless `dense`."""
        s = self.settings
        per_token = s.layers * (8 * s.width**2 + self._mlp_flops()) + 2 * s.width * len(self.head)
        pairs = time * time if dense else time * (time + 1) // 2
        return float(batch * (time * per_token + s.layers * 4 * s.width * pairs))

    def backward_flops(self, batch: int, time: int) -> float:
        """Twice the forward: one product for the inputs, one for the weights."""
        again = self.forward_flops(batch, time) - 2 * batch * time * self.settings.width * len(
            self.head
        )
        recomputed = again if self.trunk.recompute else 0.0
        return 2 * self.forward_flops(batch, time) + recomputed

    def _mlp_flops(self) -> int:
        products = 3 if self.settings.activation == "swiglu" else 2
        return products * 2 * self.settings.width * self.settings.hidden

    @torch.no_grad()
    def _initialize(self, seed: int) -> None:
        s = self.settings
        for name, parameter, generator in generators(self, seed):
            if parameter.ndim < 2:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
                continue
            if "table" in name:  # what they add is nothing at first
                parameter.zero_()
                continue
            std = s.init_std or 1 / math.sqrt(parameter.shape[1])
            if name.endswith(("output.weight", "down.weight")):
                std = 0.0 if s.zero_init else std / math.sqrt(2 * s.layers)
            elif name == "unembedding.weight":
                std = 0.001
            elif "embedding" in name or "positions" in name:
                std = 1.0 if s.embedding_norm and not s.tied else 0.02
            parameter.normal_(0.0, std, generator=generator)
