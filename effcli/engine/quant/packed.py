"""A model of few bits in one file, `*.eff`: all that it computes with, and how it was made.

The file is safetensors. A matrix of few bits is `<name>.codes`, packed, and `<name>.scales` in
float16; so are embeddings, head and tables, with 8 bits and a scale for each row. Matrices of
16 bits are float16; norms, gains and biases float32. The tokenizer is whole, as JSON. One JSON
document in the metadata types every tensor. All is hashed, and reading trusts nothing of it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from effcli import __version__
from effcli.catalog import MODELS
from effcli.engine.data.tokenizers import Tokenizer
from effcli.engine.protocols import LanguageModel
from effcli.engine.quant.bitlinear import bit_layers, quantize
from effcli.engine.quant.codes import FORMATS, Codes, encode, rounded
from effcli.engine.quant.document import (
    TOKENIZER,
    Array,
    Document,
    LayerEntry,
    Sizes,
    TensorEntry,
    digest,
    opened,
    sealed,
    sizes_of,
)
from effcli.engine.quant.packing import pack, unpack
from effcli.engine.runs.files import write_bytes
from effcli.engine.runs.trained import build_model
from effcli.errors import InputError
from effcli.settings.base import PartSettings
from effcli.settings.layers import storable

TABLE_BITS = 8
FLOATS: dict[str, Any] = {"f16": np.float16, "f32": np.float32}
BUFFERS = 2**27  # bytes that a model may have beside its weights: the angles of long contexts


@dataclass(frozen=True)
class Packed:
    """What a file holds."""

    settings: PartSettings
    tokenizer: Tokenizer
    layers: dict[str, Codes]
    """Linear layers of few bits by their name, `trunk.blocks.0.mlp.up`."""
    tables: dict[str, Codes]
    """Embeddings, head and tables by the name of their tensor, without rows that pad them."""
    floats: dict[str, Tensor]
    """All other tensors, float32."""
    document: Document
    sizes: Sizes

    def model(self) -> LanguageModel:
        """A model with exactly these weights, in float32; its layers are settled."""
        model = _built(self.settings, self.tokenizer.vocab_size, self.document)
        codes = {f"{name}.weight": codes for name, codes in self.layers.items()} | self.tables
        values = self.floats | {name: matrix.weight() for name, matrix in codes.items()}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter[: len(values[name])] = values[name]
                parameter[len(values[name]) :] = 0
        for layer in bit_layers(model).values():
            layer.is_settled = True
        return model.eval()


def write(path: Path, model: LanguageModel, tokenizer: Tokenizer, facts: dict[str, Any]) -> Sizes:
    """Write a model, whole or not at all; `facts` are JSON.

    What would be refused when it is read is refused here, and nothing is written.
    """
    arrays, tensors = {}, {}
    for name, tensor, entry in entries(model):
        if not tensor.isfinite().all():
            raise InputError(f"{name} holds what is not finite")
        parts = dict(zip(entry.parts(name), _arrays(tensor.detach().cpu(), entry), strict=True))
        arrays.update(parts)
        tensors[name] = entry.model_copy(update={"sha256": digest(*parts.values())})
    text = json.dumps(tokenizer.content(), separators=(",", ":"))
    arrays[TOKENIZER] = np.frombuffer(text.encode(), np.uint8)
    document = Document(
        schema_number=1,
        eff=__version__,
        model=storable(cast(PartSettings, model.settings)),
        layers=_common(model),
        tensors=tensors,
        tokenizer=digest(arrays[TOKENIZER]),
        facts=facts,
    )
    data = sealed(document, arrays)
    found = _read(data).sizes
    write_bytes(path, data)
    return found


def read(path: Path) -> Packed:
    """What a file holds. One that `write` did not make is refused, whatever is wrong with it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    try:
        return _read(data)
    except InputError as error:
        raise InputError(f"{path} is damaged, or no packed model: {error.message}") from None


def sizes(path: Path) -> Sizes:
    """What the bytes of a file are for."""
    return read(path).sizes


def entries(model: LanguageModel) -> Iterator[tuple[str, Tensor, TensorEntry]]:
    """Every parameter, as far as it is kept, and how."""
    layers = bit_layers(model)
    for name, parameter in model.named_parameters():
        role, layer = model.role(name, parameter), layers.get(name.removesuffix(".weight"))
        if role == "matrix" and layer is not None:
            bits, group = layer.bits, layer.group
        else:
            bits, group = {"matrix": 16.0, "scalar": 32.0}.get(role, TABLE_BITS), 0
        codec = FORMATS[bits].codec if bits in FORMATS else f"f{bits:.0f}"
        # What is called an embedding has a row for each id, and others that pad it.
        tensor = parameter[: model.vocab_size] if "embedding" in name else parameter
        how = {"codec": codec, "bits": bits, "group": group, "role": role}
        yield name, tensor, TensorEntry(shape=tuple(tensor.shape), **how)


@torch.no_grad()
def round_the_rest(model: LanguageModel) -> None:
    """Round in place what a file rounds beside the layers of few bits.

    That is embeddings, head and tables to 8 bits, and matrices of 16 bits to float16.
    """
    layers = bit_layers(model)
    for name, tensor, entry in entries(model):
        if entry.role != "scalar" and name.removesuffix(".weight") not in layers:
            tensor.copy_(rounded(tensor, entry.bits))


def require_same(document: Document, model: LanguageModel) -> None:
    """Refuse a document whose tensors are not kept as those of a model would be."""
    expected = {name: entry for name, _, entry in entries(model)}
    given = {name: e.model_copy(update={"sha256": ""}) for name, e in document.tensors.items()}
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            raise InputError(f"{name} is not what its model has")


def _common(model: LanguageModel) -> LayerEntry:
    """What the layers of few bits have in common; without any, it has no effect."""
    layers = list(bit_layers(model).values())
    if not layers:
        return LayerEntry(group=0, act_bits=16, subnorm=False)
    act_bits = cast(Literal[8, 16], layers[0].act_bits)
    is_normed = any(layer.gain is not None for layer in layers)
    return LayerEntry(group=layers[0].group, act_bits=act_bits, subnorm=is_normed)


def _arrays(tensor: Tensor, entry: TensorEntry) -> tuple[Array, ...]:
    """A tensor as it is kept."""
    if entry.codec in FLOATS:
        return (tensor.to(torch.float16 if entry.codec == "f16" else torch.float32).numpy(),)
    codes = encode(tensor, entry.bits, entry.group)
    return pack(codes.codes.numpy(), entry.bits), codes.scales.numpy()


def _read(data: bytes) -> Packed:
    document, arrays = opened(data)
    found = sizes_of(document, arrays, len(data))
    try:
        tokenizer = Tokenizer.of(json.loads(arrays.pop(TOKENIZER).tobytes()), "the tokenizer")
        shape = document.model
        settings: PartSettings = MODELS.load(shape["name"]).model_validate(shape)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"its model cannot be built: {error}".splitlines()[0]) from None
    _require_fit(settings, tokenizer, document, len(data))
    layers, tables, floats = {}, {}, {}
    for name, entry in document.tensors.items():
        parts = [arrays.pop(part) for part in entry.parts(name)]
        if entry.codec in FLOATS:
            floats[name] = _float(name, entry, parts[0])
        elif entry.role == "matrix":
            layers[name.removesuffix(".weight")] = _codes(name, entry, *parts)
        else:
            tables[name] = _codes(name, entry, *parts)
    if arrays:
        raise InputError(f"nothing asks for {min(arrays)}")
    return Packed(settings, tokenizer, layers, tables, floats, document, found)


def _require_fit(s: PartSettings, tokenizer: Tokenizer, document: Document, size: int) -> None:
    """Refuse tensors that are not those of the model, before anything is allocated for it."""
    if tokenizer.vocab_size > size:  # each id has a row
        raise InputError("it has more ids than bytes")
    with torch.device("meta"):
        model = _built(s, tokenizer.vocab_size, document)
    require_same(document, model)
    memory = [*model.parameters(), *model.buffers()]
    if sum(tensor.nbytes for tensor in memory) > 40 * size + BUFFERS:  # signs take 32 times more
        raise InputError("its model needs more memory than its tensors explain")


def _built(s: PartSettings, vocab_size: int, document: Document) -> LanguageModel:
    """A model of the right shape, with any weights."""
    model = build_model(s, vocab_size, 0)
    matrices = {n: e.bits for n, e in document.tensors.items() if e.role == "matrix"}
    widths = {name.removesuffix(".weight"): bits for name, bits in matrices.items()}
    common = document.layers
    quantize(model, widths, common.group, common.act_bits, subnorm=common.subnorm)
    return model


def _float(name: str, entry: TensorEntry, values: Array) -> Tensor:
    if values.dtype != FLOATS[entry.codec] or values.shape != entry.shape:
        raise InputError(f"{name} is of another type or shape")
    if not np.isfinite(values).all():
        raise InputError(f"{name} holds what is not finite")
    return torch.from_numpy(values.astype(np.float32))


def _codes(name: str, entry: TensorEntry, packed: Array, scales: Array) -> Codes:
    rows, inputs = entry.shape
    shape = (rows, inputs // (entry.group or inputs))
    if packed.dtype != np.uint8 or scales.dtype != np.float16 or scales.shape != shape:
        raise InputError(f"{name} is of another type or shape")
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise InputError(f"{name} has a scale that is none")
    codes = unpack(packed, entry.bits, rows * inputs).reshape(rows, inputs)
    offset = FORMATS[entry.bits].offset
    return Codes(torch.from_numpy(codes), torch.from_numpy(scales), offset, entry.group)
