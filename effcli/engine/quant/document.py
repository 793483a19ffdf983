"""The metadata of a packed file, typed, and what its bytes are for."""

import hashlib
import json
import math
from typing import Annotated, Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from effcli.errors import InputError
from effcli.settings.base import Settings

DOCUMENT, SEAL, TOKENIZER = "eff", "eff.sha256", "tokenizer"
TYPES = {"U8": np.uint8, "F16": np.float16, "F32": np.float32}

Array = NDArray[Any]
Arrays = dict[str, Array]


class TensorEntry(Settings):
    """How a tensor is kept."""

    codec: Literal["b1", "b3p5", "b2", "b4", "i8", "f16", "f32"]
    bits: float
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    group: Annotated[int, Field(ge=0)]
    role: Literal["matrix", "embedding", "head", "table", "scalar"]
    sha256: str = ""
    """Of the codes and then the scales, or of the floats."""

    def parts(self, name: str) -> tuple[str, ...]:
        """The names of its arrays."""
        return (name,) if self.codec in ("f16", "f32") else (f"{name}.codes", f"{name}.scales")


class LayerEntry(Settings):
    """What all layers of few bits have in common."""

    group: Annotated[int, Field(ge=0)]
    act_bits: Literal[8, 16]
    subnorm: bool


class Document(Settings):
    """The metadata of a file."""

    schema_number: Literal[1]
    eff: str
    """The version that wrote it."""
    model: dict[str, Any]
    """Settings of the model."""
    layers: LayerEntry
    tensors: dict[str, TensorEntry]
    tokenizer: str
    """SHA-256 of its JSON."""
    facts: dict[str, Any]
    """Where the model comes from, as told by whoever wrote it."""


class Sizes(Settings):
    """Bytes of a file, all of them, by what they are for."""

    linear: int
    """Codes and scales of the blocks' matrices."""
    embedding: int
    """Embedding, positions and head."""
    tables: int
    tokenizer: int
    rest: int
    """Norms, gains, biases, and the header."""
    linear_weights: int
    weights: int
    """All weights, without those that only pad a table."""

    @property
    def total(self) -> int:
        """Bytes of the file."""
        return self.linear + self.embedding + self.tables + self.tokenizer + self.rest

    @property
    def linear_bits_per_weight(self) -> float:
        """Scales are counted."""
        return 8 * self.linear / self.linear_weights

    def ratio_linear(self, bits: int = 32) -> float:
        """How many times as many bytes the matrices have as floats of so many bits."""
        return bits / self.linear_bits_per_weight

    def ratio_total(self, bits: int = 32) -> float:
        """The same of all weights and the whole file, with tokenizer and header."""
        return bits * self.weights / (8 * self.total)


def sealed(document: Document, arrays: Arrays) -> bytes:
    """A file. The same document and arrays are the same bytes."""
    text = json.dumps(document.model_dump(mode="json"), allow_nan=False, separators=(",", ":"))
    seal = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    file: bytes = safetensors.numpy.save({**arrays, SEAL: seal}, {DOCUMENT: text})
    return file


def opened(data: bytes) -> tuple[Document, Arrays]:
    """The document and the arrays of a file, with the right hashes."""
    try:
        arrays = {
            name: np.frombuffer(part["data"], TYPES[part["dtype"]]).reshape(part["shape"])
            for name, part in safetensors.deserialize(data)  # type: ignore[no-untyped-call]
        }
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        text = header["__metadata__"][DOCUMENT]
        if hashlib.sha256(text.encode()).digest() != arrays.pop(SEAL).tobytes():
            raise InputError("the metadata are not those that were written")
        document = Document.model_validate_json(text, strict=True)
        hashes = {entry.parts(name): entry.sha256 for name, entry in document.tensors.items()}
        for names, expected in (hashes | {(TOKENIZER,): document.tokenizer}).items():
            if digest(*(arrays[name] for name in names)) != expected:
                raise InputError(f"{names[0]} is not what was written")
    except safetensors.SafetensorError as error:
        raise InputError(f"{error}".splitlines()[0]) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{where}: {first['msg']}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{type(error).__name__} {error}".splitlines()[0]) from None
    return document, arrays


def digest(*arrays: Array) -> str:
    """SHA-256 of the bytes of some arrays."""
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(array.tobytes())
    return whole.hexdigest()


def sizes_of(document: Document, arrays: Arrays, total: int) -> Sizes:
    """What the bytes of a file are for."""
    spent, weights = dict.fromkeys(("matrix", "embedding", "table"), 0), 0
    linear = 0
    for name, entry in document.tensors.items():
        count = math.prod(entry.shape)
        weights += count
        linear += count if entry.role == "matrix" else 0
        kind = "embedding" if entry.role == "head" else entry.role
        if kind in spent:
            spent[kind] += sum(arrays[part].nbytes for part in entry.parts(name))
    tokenizer = arrays[TOKENIZER].nbytes
    return Sizes(
        linear=spent["matrix"],
        embedding=spent["embedding"],
        tables=spent["table"],
        tokenizer=tokenizer,
        rest=total - sum(spent.values()) - tokenizer,
        linear_weights=linear,
        weights=weights,
    )
