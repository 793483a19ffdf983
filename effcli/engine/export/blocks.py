"""Tensors in the blocks of GGUF: the smallest type that holds exactly what is computed with.

A block is 32 or 256 weights of a row that share a float16 scale. Codes of few bits are such
blocks already if each group of theirs is a whole number of them: only their order changes. What
is left are floats, of 16 bits where those are exact, else of 32.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from effcli.engine.quant.codes import Codes
from effcli.errors import InputError

Array = NDArray[Any]
Part = Codes | Array
"""A matrix of few bits, or floats of any shape."""


class Stored(NamedTuple):
    """A tensor as it is in a file."""

    data: Array
    """The bytes of each row, or floats."""
    kind: str
    """Its type, as GGUF calls it."""


def library() -> Any:
    """The package `gguf`, which is an extra."""
    try:
        import gguf.quants
    except ImportError:
        raise InputError("gguf is not installed", "pip install 'effcli[gguf]'") from None
    return gguf


def values(part: Part) -> Array:
    """What a part stands for, in float32."""
    return part.weight().numpy() if isinstance(part, Codes) else part


def taken(part: Part, rows: Sequence[int]) -> Part:
    """Rows of a part, in this order."""
    order = list(rows)
    if isinstance(part, Codes):
        return part._replace(codes=part.codes[order], scales=part.scales[order])
    return part[order]


def stored(parts: Sequence[Part]) -> Stored:
    """Parts of a tensor, one below the other, in the smallest type that is exact for all."""
    whole = np.concatenate([values(part) for part in parts])
    for kind, (size, pack) in PACKERS.items():
        rows = [_packed(part, size, pack) for part in parts]
        if all(row is not None for row in rows):
            tensor = Stored(np.concatenate(rows), kind)  # type: ignore[arg-type]
            if np.array_equal(restored(tensor), whole):
                return tensor
    with np.errstate(over="ignore"):
        half = whole.astype(np.float16)
    if whole.ndim > 1 and np.array_equal(half.astype(np.float32), whole):
        return Stored(half, "F16")
    return Stored(whole, "F32")  # vectors are always these


def restored(tensor: Stored) -> Array:
    """The values of a stored tensor, as the package reads them; float32."""
    gguf = library()
    whole: Array = gguf.quants.dequantize(tensor.data, gguf.GGMLQuantizationType[tensor.kind])
    return whole


Pack = Callable[[Array, Array], Array | None]
"""Blocks of integers of shape (blocks, size) and a float16 scale for each, (blocks, 1), as bytes;
none, if the type has no such integers."""


def _packed(part: Part, size: int, pack: Pack) -> Array | None:
    """The rows of a part in blocks of `size`, if it has such blocks."""
    if not isinstance(part, Codes):
        return None
    count, inputs = part.codes.shape
    if (part.group or inputs) % size:
        return None
    steps, scales = part.codes.numpy(), part.scales.numpy()
    if part.offset:  # halves: twice as many steps of half the size
        steps, scales = 2 * steps + 1, scales / np.float16(2)
    repeated = np.repeat(scales, steps.size // size // scales.size, axis=1)
    found = pack(steps.reshape(-1, size), repeated.reshape(-1, 1))
    return None if found is None else found.reshape(count, -1)


def _trits(steps: Array, scales: Array) -> Array | None:
    """TQ1_0: five trits a byte, in an order that the package knows."""
    if np.abs(steps).max() > 1:
        return None
    gguf = library()
    kind = gguf.GGMLQuantizationType.TQ1_0
    blocks = gguf.quants.quantize(steps.astype(np.float32), kind)
    return np.concatenate([blocks[:, :-2], scales.view(np.uint8)], axis=1)


def _odd_quarters(steps: Array, scales: Array) -> Array | None:
    """Q2_K for -3, -1, 1, 3: scale times (2 q - 3), by factors of 2 and 3 in its nibbles."""
    if not np.isin(steps, (-3, -1, 1, 3)).all():
        return None
    places = ((steps + 3) // 2).astype(np.uint8).reshape(-1, 2, 4, 32)
    shifted = places << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    codes = np.bitwise_or.reduce(shifted, axis=2).reshape(len(steps), 64)
    factors = np.full((len(steps), 16), 3 << 4 | 2, np.uint8)
    return np.concatenate([factors, codes, *2 * [scales.view(np.uint8)]], axis=1)


def _nibbles(steps: Array, scales: Array) -> Array | None:
    """Q4_0: -8 to 7; the second half of a block is in the upper nibbles."""
    if steps.min() < -8 or steps.max() > 7:
        return None
    places = (steps + 8).astype(np.uint8)
    codes = places[:, :16] | places[:, 16:] << np.uint8(4)
    return np.concatenate([scales.view(np.uint8), codes], axis=1)


def _bytes(steps: Array, scales: Array) -> Array:
    """Q8_0."""
    return np.concatenate([scales.view(np.uint8), steps.astype(np.int8).view(np.uint8)], axis=1)


PACKERS: dict[str, tuple[int, Pack]] = {
    "TQ1_0": (256, _trits),
    "Q2_K": (256, _odd_quarters),
    "Q4_0": (32, _nibbles),
    "Q8_0": (32, _bytes),
}
"""Types of few bits, the smallest first: weights of a block, and how they are packed."""
