"""Layers whose weights are small integers: fast products, for models that are not trained."""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor, nn

from effcli.engine.device import capabilities
from effcli.engine.quant.kernels import Packed, kernels
from effcli.engine.quant.weights import Weights, normed
from effcli.errors import InputError

LEAST_BY_MATRIX_UNITS = 32
"""Tokens at once from which torch is the faster one, where it has matrix units for 8 bits."""
_SAFE = 64  # codes up to which pairs of products fit 16 bits: 255 · 64 · 2 < 2¹⁵


class LowBit(nn.Module):
    """A linear layer of integer codes, w = (code + offset) · scale, for inference on a CPU.

    Each token is rounded to 8 bits by its largest activation, x ≈ levels · peak / 127; sums of
    levels and codes are exact integers, and scaled in float32. A token with an activation that
    is not finite becomes NaN. With `act_bits` of 16, activations stay as they are, and the
    product is one of float32. A gain normalizes the input first. Codes and scales are no
    parameters: what changes the type or the device of a model does not reach them.
    """

    def __init__(
        self,
        codes: Int8[Tensor, "rows columns"],
        scales: Float[Tensor, "rows groups"],
        offset: float = 0.0,
        *,
        bias: Float[Tensor, " rows"] | None = None,
        gain: Float[Tensor, " columns"] | None = None,
        act_bits: int = 8,
    ) -> None:
        super().__init__()
        bias, gain = (None if p is None else p.detach().float() for p in (bias, gain))
        weights = Weights(codes.contiguous(), scales.detach().float(), offset, bias, gain)
        self.rows, self.columns = codes.shape
        self._product: Callable[[Tensor], Tensor]
        self._of_many: Callable[[Tensor], Tensor] | None = None
        if act_bits == 16:
            self._product = _Floating(weights)
        elif act_bits != 8:
            raise InputError(f"activations have 8 or 16 bits, not {act_bits}")
        elif (found := kernels()) is None:
            self._product = _Unpacked(weights)
        else:
            self._product = Packed(found, weights)
            if capabilities().get("amx_int8"):
                self._of_many = _Unpacked(weights)

    def forward(self, x: Float[Tensor, "*any columns"]) -> Float[Tensor, "*any rows"]:
        """The layer's output, in the type of its input."""
        y = self.float32(x)
        return y if x.dtype == torch.float32 else y.to(x.dtype)

    def float32(self, x: Float[Tensor, "*any columns"]) -> Float[Tensor, "*any rows"]:
        """The layer's output in float32, as logits are wanted."""
        if not x.is_cpu:
            raise InputError(f"low-bit layers run on the CPU, not on {x.device}")
        if self._of_many is not None and x.numel() >= LEAST_BY_MATRIX_UNITS * self.columns:
            return self._of_many(x)
        return self._product(x)


class _Unpacked:
    """A product by torch, whose codes take 8 bits each."""

    def __init__(self, weights: Weights) -> None:
        codes, scales = weights.codes, weights.scales
        if weights.offset:  # a half; the scales make up for the factor
            codes, scales = 2 * codes + 1, scales / 2
        rows, groups = scales.shape
        # A matrix of one column does not tell whether it is transposed.
        self._padding = int(codes.shape[1] == groups)
        parts = F.pad(codes.view(rows, groups, -1).transpose(0, 1), (0, self._padding))
        fits = _is_exact() or weights.offset or weights.are_within(-_SAFE, _SAFE)
        low, high = (parts, None) if fits else (parts & 15, parts >> 4)
        self._low = [part.contiguous().t() for part in low]
        self._high = None if high is None else [part.contiguous().t() for part in high]
        self._scales, self._bias = list(scales.T.contiguous()), weights.bias
        self._gain = weights.gain

    def __call__(self, x: Float[Tensor, "*any columns"]) -> Float[Tensor, "*any rows"]:
        shape, x = x.shape[:-1], x.detach().float().reshape(-1, x.shape[-1])
        x = x if self._gain is None else normed(x, self._gain)
        peak = x.abs().amax(-1, keepdim=True).clamp_(min=1e-5)
        levels = (x * (127 / peak)).round_().to(torch.int8)
        total: Tensor | None = None
        for group, part in enumerate(levels.chunk(len(self._scales), dim=1)):
            part = F.pad(part, (0, 1)) if self._padding else part
            sums = torch._int_mm(part, self._low[group])
            if self._high is not None:
                sums += 16 * torch._int_mm(part, self._high[group])
            term = sums.float().mul_(self._scales[group])
            total = term if total is None else total.add_(term)
        assert total is not None  # there is a group
        total *= peak / 127 + (peak - peak)  # NaN where a token is not finite
        total = total if self._bias is None else total.add_(self._bias)
        return total.view(*shape, total.shape[1])


class _Floating:
    """A product of float32, whose activations are not rounded."""

    def __init__(self, weights: Weights) -> None:
        grouped = weights.codes.view(*weights.scales.shape, -1).float() + weights.offset
        self._weight = (grouped * weights.scales.unsqueeze(-1)).view(weights.codes.shape)
        self._bias, self._gain = weights.bias, weights.gain

    def __call__(self, x: Float[Tensor, "*any columns"]) -> Float[Tensor, "*any rows"]:
        x = x.detach().float()
        x = x if self._gain is None else normed(x, self._gain)
        return F.linear(x, self._weight, self._bias)


@cache
def _is_exact() -> bool:
    """Whether torch adds large products exactly: without VNNI, pairs of them overflow 16 bits."""
    codes = torch.full((64, 64), 127, dtype=torch.int8)
    return all((torch._int_mm(codes[:m], codes.t()) == 64 * 127**2).all() for m in (1, 2, 64))
