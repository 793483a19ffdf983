"""Bits for every layer of a student that begins as its teacher, by the damage that they do."""

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from effcli.engine.device import Device
from effcli.engine.measure.evaluate import HeldOut, held_out_loss
from effcli.engine.protocols import LanguageModel
from effcli.engine.quant.bitlinear import linear_layers, quantize
from effcli.engine.quant.codes import encode
from effcli.engine.quant.packing import pack
from effcli.engine.quant.precision import Precision, assign
from effcli.engine.records import Stop

Told = Callable[[int], None]
"""Hears how often the text was looked at."""


def mixed(
    model: LanguageModel,
    bits: float,
    group: int,
    clusters: int,
    windows: HeldOut,
    device: Device,
    told: Told,
    stop: Stop,
) -> Precision:
    """The bits of every layer of a float model that do least damage in as many bytes as `bits`.

    The model is one to spare: its layers are rounded, some at a time. Bytes are those of
    packed codes and scales.
    """
    layers = linear_layers(model)
    weights = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    looks = 0

    def losses(widths: Mapping[str, float]) -> NDArray[np.float64]:
        nonlocal looks
        looks += 1
        told(looks)
        quantize(model, {name: widths.get(name, 16.0) for name in weights}, group, subnorm=False)
        kept = torch.zeros(len(windows.tokens), model.context)
        held_out_loss(model, windows, device, len(windows.tokens), stop, keep=kept)
        device.processes.add_up([kept])  # each looked at a part, and has zeros elsewhere
        return kept.double().mean(1).numpy()

    whole = losses({})

    @cache
    def size(name: str, width: float) -> int:
        codes = encode(weights[name].cpu(), width, group)
        packed = pack(codes.codes.numpy(), width)
        return int(packed.nbytes + codes.scales.numpy().nbytes)

    budget = sum(size(name, bits) for name in weights)
    names = list(weights)
    return assign(names, lambda some: losses(some) - whole, size, budget, clusters=clusters)
