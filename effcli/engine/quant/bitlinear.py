"""Linear layers that train weights of few bits, and compute with them.

The latent weights are float32, and move; every forward pass rounds them to their codes, and the
activations of each token to int8. Gradients pass as if nothing were rounded (the identity
straight-through estimator, Bengio et al. 2013). Rounding is no product: a model's
`forward_flops` are those of the float layers, whatever the bits.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from effcli.engine.models.layers import Linear, rms_norm
from effcli.engine.protocols import LanguageModel
from effcli.engine.quant.codes import Bits, Codes, encode, require_bits, rounded, rounded_tokens
from effcli.errors import InputError
from effcli.registry import suggestion

NORMED = ("output", "down")
"""Layers whose input no norm of the block's has seen: a sub-norm goes before their product."""


class BitLinear(Linear):
    """A linear layer with codes for weights, and int8 activations.

    `bits` is 1, 1.58, 2, 4 or 8, for groups of `group` inputs; 0 is a whole row. `act_bits` is
    8, or 16 for activations that are left alone. A sub-norm divides the input by its
    root mean square and multiplies it by a learned gain (Wang et al. 2022).

    All is rounded in float32. The product runs in the input's type: in float32 it is the one
    that a packed file's weights give; in bfloat16 the rounded weights and activations are rounded
    once more, by up to 2^-9 of each, which is less than their own steps.
    """

    blend: Tensor
    """0 is the float layer exactly, sub-norm left out; 1 the quantized one; between, a mean."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bits: Bits,
        group: int = 0,
        act_bits: int = 8,
        *,
        subnorm: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.bits, self.group, self.act_bits = bits, group, act_bits
        self.gain = nn.Parameter(torch.ones(inputs)) if subnorm else None
        self.is_settled = False
        # A tensor, so that a compiled layer takes another value without compiling again; in every
        # checkpoint, so that whoever opens one computes what was trained.
        self.register_buffer("blend", torch.ones(()))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        state.setdefault(f"{prefix}blend", self.blend)  # older checkpoints have none
        super()._load_from_state_dict(state, prefix, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """`x` times the transposed weight, both rounded."""
        weight = self.weight if self.is_settled else self._rounded_weight()
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(self.rounded_input(x), weight.to(x.dtype), bias)

    def rounded_input(self, x: Float[Tensor, "*any in"]) -> Float[Tensor, "*any in"]:
        """What is multiplied by the weights: `x`, normed and rounded."""
        if self.gain is not None:
            x = self._blended(x, rms_norm(x) * self.gain.to(x.dtype))
        if self.act_bits == 8:
            whole = x.detach().float()
            value = self._blended(whole, rounded_tokens(whole))
            x = _straight_through(x, value.to(x.dtype))
        return x

    def _rounded_weight(self) -> Tensor:
        whole = self.weight.detach()
        value = self._blended(whole, rounded(whole, self.bits, self.group))
        return _straight_through(self.weight, value)

    def _blended(self, whole: Tensor, other: Tensor) -> Tensor:
        return other if self.is_settled else torch.lerp(whole, other, self.blend.to(whole.dtype))

    def encode(self) -> Codes:
        """The weights in codes."""
        assert not self.is_settled, "the weights that the codes are of are gone"
        return encode(self.weight, self.bits, self.group)

    @torch.no_grad()
    def settle(self, dtype: torch.dtype) -> None:
        """Round the weights once, and keep them in the type of products: not to be trained on.

        A layer that is still blended stays as it is, and rounds each time.
        """
        if self.blend != 1:
            return
        if not self.is_settled:
            self.weight.copy_(rounded(self.weight, self.bits, self.group))
        self.is_settled = True
        self.weight.data = self.weight.to(dtype)
        if self.bias is not None:
            self.bias.data = self.bias.to(dtype)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, __: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Any:
        return gradient, None


def _straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value` exactly, with the gradient of `x`."""
    return _StraightThrough.apply(x, value)  # type: ignore[no-any-return,no-untyped-call]


def linear_layers(model: LanguageModel) -> dict[str, Linear]:
    """Every linear layer of the blocks, by name: what may have few bits.

    The head, embeddings, tables, norms and shifts are not among them.
    """
    named = model.trunk.named_modules(prefix="trunk")
    return {name: layer for name, layer in named if isinstance(layer, Linear)}


def bit_layers(model: LanguageModel) -> dict[str, BitLinear]:
    """Those of them that have few bits."""
    layers = linear_layers(model).items()
    return {name: layer for name, layer in layers if isinstance(layer, BitLinear)}


def quantize(
    model: LanguageModel,
    bits: Bits | Mapping[str, Bits],
    group: int = 0,
    act_bits: int = 8,
    *,
    subnorm: bool = True,
) -> None:
    """Give every linear layer of the blocks this many bits, or those of its name.

    The layers are replaced, their parameters are not: a float model's weights are where the
    low-bit one starts. What has few bits already is given others; 16 bits are a float layer.
    With `subnorm`, the layers in `NORMED` have one; its gain is 1 until it is calibrated.
    """
    layers = linear_layers(model)
    widths = dict(bits) if isinstance(bits, Mapping) else dict.fromkeys(layers, bits)
    for name in widths.keys() ^ layers.keys():
        if name in layers:
            raise InputError(f"no bits are given for {name}")
        raise InputError(f"there is no linear layer {name!r}", suggestion(name, list(layers)))
    if act_bits not in (8, 16):
        raise InputError(f"there are no activations of {act_bits} bits", "8 or 16")
    for name, layer in layers.items():
        require_bits(widths[name])
        if group < 0 or layer.in_features % (group or layer.in_features):
            message = f"a group of {group} does not divide the {layer.in_features} inputs of {name}"
            raise InputError(message, "0 is a whole row")
        parent, _, leaf = name.rpartition(".")
        how = (group, act_bits, subnorm and leaf in NORMED)
        setattr(model.get_submodule(parent), leaf, _replaced(layer, widths[name], *how))


def _replaced(layer: Linear, bits: Bits, group: int, act_bits: int, is_normed: bool) -> Linear:
    """A layer of other bits with the same parameters."""
    inputs, outputs, bias = layer.in_features, layer.out_features, layer.bias is not None
    device = layer.weight.device
    with torch.device("meta"):  # no weights that are thrown away
        new: Linear
        if bits == 16:
            new = Linear(inputs, outputs, bias=bias)
        else:
            how = (bits, group, act_bits)
            new = BitLinear(inputs, outputs, *how, subnorm=is_normed, bias=bias)
    if isinstance(new, BitLinear):
        new.blend = torch.ones((), device=device)
        if is_normed:
            old = getattr(layer, "gain", None)
            new.gain = nn.Parameter(torch.ones(inputs, device=device)) if old is None else old
    new.weight, new.bias = layer.weight, layer.bias
    return new.train(layer.training)


def set_blend(model: LanguageModel, blend: float) -> None:
    """From the float model, 0, to the quantized one, 1: what a warm start ramps.

    It is a function of progress: training sets it anew in every step.
    """
    for layer in bit_layers(model).values():
        layer.blend.fill_(blend)


@contextmanager
def float_function(model: LanguageModel) -> Iterator[None]:
    """The model as it is without rounding and sub-norms, and without dropout."""
    layers, was_training = bit_layers(model).values(), model.training
    blends = [layer.blend.clone() for layer in layers]
    model.eval()
    set_blend(model, 0.0)
    try:
        yield
    finally:
        model.train(was_training)
        for layer, blend in zip(layers, blends, strict=True):
            layer.blend.copy_(blend)


@torch.no_grad()
def calibrate(model: LanguageModel, batches: Iterable[Int[Tensor, "_ time"]]) -> None:
    """Set the gains so that the sub-norms change the float model's function least.

    A gain becomes the mean root mean square of what the layer is given: that is the
    least-squares fit of gain · norm(x) to x, and exact where all tokens have the same one.
    """
    sums: dict[str, Tensor] = {}
    layers = {name: layer for name, layer in bit_layers(model).items() if layer.gain is not None}

    def listen(name: str, x: Tensor) -> None:
        # With the norm's own epsilon, so that tokens of one size keep theirs.
        means = x.float().square().mean(-1).add(1e-6).sqrt().double()
        sums[name] = sums.get(name, 0.0) + torch.stack([means.sum(), torch.ones_like(means).sum()])

    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: listen(name, given[0]))
        for name, layer in layers.items()
    ]
    try:
        with float_function(model):
            for tokens in batches:
                model.trunk.forward(tokens)  # never compiled: the layers' hooks are to be heard
    finally:
        for hook in hooks:
            hook.remove()
    if layers and not sums:
        raise InputError("there is no text to calibrate the sub-norms with")
    for name, layer in layers.items():
        assert layer.gain is not None
        total, count = sums[name]
        layer.gain.fill_(total / count)
