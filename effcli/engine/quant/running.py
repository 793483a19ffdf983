"""A packed model, made to write: its layers multiply the codes themselves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from effcli.engine.models.gpt import Attention
from effcli.engine.protocols import LanguageModel
from effcli.engine.quant.bitlinear import BitLinear, bit_layers
from effcli.engine.quant.codes import Codes
from effcli.engine.quant.packed import Packed
from effcli.engine.quant.products import LowBit


def runnable(packed: Packed) -> LanguageModel:
    """The model of a file on the CPU, in float32 but for its products of few bits.

    The head has 8 bits, and so have the features that it is given: beside the layers it would
    else take most of the time of a small model.
    """
    model = packed.model()
    layers = bit_layers(model)
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            _join(module, [f"{name}.{part}" for part in ("query", "key", "value")], layers, packed)
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        kept = {"bias": layer.bias, "gain": layer.gain, "act_bits": layer.act_bits}
        setattr(model.get_submodule(parent), leaf, _product(packed.layers[name], **kept))
    names = [name for name, tensor in model.named_parameters() if tensor is model.head]
    head = _product(packed.tables[names[0]])
    model.settled_head = lambda features: head.float32(features)[..., : model.vocab_size]
    return model.eval()


def _join(
    attention: Attention, names: Sequence[str], layers: dict[str, BitLinear], packed: Packed
) -> None:
    """Let one product make queries, keys and values, if their codes are of the same kind."""
    if len({layers[name].bits if name in layers else name for name in names}) > 1:
        return
    parts, codes = [layers.pop(name) for name in names], [packed.layers[name] for name in names]
    biases: list[Tensor] = [part.bias for part in parts if part.bias is not None]
    whole = codes[0]._replace(
        codes=torch.cat([part.codes for part in codes]),
        scales=torch.cat([part.scales for part in codes]),
    )
    bias = torch.cat(biases) if biases else None
    attention.joined = _product(whole, bias=bias, act_bits=parts[0].act_bits)
    del attention.query, attention.key, attention.value


def _product(codes: Codes, **kept: Tensor | int | None) -> LowBit:
    return LowBit(codes.codes, codes.scales.float(), codes.offset, **kept)  # type: ignore[arg-type]
