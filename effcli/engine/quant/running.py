"""A packed model, made to write: its layers multiply the codes themselves."""

from torch import nn

from effcli.engine.protocols import LanguageModel
from effcli.engine.quant.bitlinear import bit_layers
from effcli.engine.quant.codes import Codes
from effcli.engine.quant.packed import Packed
from effcli.engine.quant.products import LowBit


def runnable(packed: Packed) -> LanguageModel:
    """The model of a file on the CPU, in float32 but for its products of few bits.

    The head has 8 bits, and so have the features that it is given: beside the layers it would
    else take most of the time of a small model.
    """
    model = packed.model()
    for name, layer in bit_layers(model).items():
        parent, _, leaf = name.rpartition(".")
        kept = {"bias": layer.bias, "gain": layer.gain, "act_bits": layer.act_bits}
        setattr(model.get_submodule(parent), leaf, _product(packed.layers[name], **kept))
    names = [name for name, tensor in model.named_parameters() if tensor is model.head]
    head = _product(packed.tables[names[0]])
    model.settled_head = lambda features: head.float32(features)[..., : model.vocab_size]
    return model.eval()


def _product(codes: Codes, **kept: nn.Parameter | int | None) -> LowBit:
    return LowBit(codes.codes, codes.scales.float(), codes.offset, **kept)  # type: ignore[arg-type]
