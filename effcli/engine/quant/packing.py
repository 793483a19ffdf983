"""Codes in as few bytes as they need. What cannot have been packed here is refused."""

import numpy as np
from numpy.typing import NDArray

from effcli.engine.quant.codes import FORMATS, Bits
from effcli.errors import InputError

DIGITS: dict[Bits, tuple[int, int]] = {1: (2, 8), 1.58: (3, 5), 2: (4, 4), 4: (16, 2)}
"""Base and number of the digits of a byte, the first one the lowest: 3^5 = 243 for trits."""


def packed_size(count: int, bits: Bits) -> int:
    """Bytes of `count` codes."""
    return count if bits == 8 else -(-count // DIGITS[bits][1])


def pack(codes: NDArray[np.int8], bits: Bits) -> NDArray[np.uint8]:
    """Codes in the order of their array; the digits that are left of a byte are zeros.

    A digit is a code less the lowest one; of signs, half of that. 8 bits are as they are.
    """
    lowest, highest = FORMATS[bits][1:3]
    flat = np.ascontiguousarray(codes).ravel()
    if flat.size and (flat.min() < lowest or flat.max() > highest or (bits == 1 and 0 in flat)):
        raise InputError(f"there is a code that is none of {bits:g} bits")
    if bits == 8:
        return flat.view(np.uint8)
    base, per_byte = DIGITS[bits]
    digits = np.zeros((packed_size(flat.size, bits), per_byte), np.uint8)
    digits.ravel()[: flat.size] = (flat - lowest) // (2 if bits == 1 else 1)
    return digits @ (base ** np.arange(per_byte)).astype(np.uint8)


def unpack(data: NDArray[np.uint8], bits: Bits, count: int) -> NDArray[np.int8]:
    """The `count` codes that were packed, flat."""
    if data.shape != (packed_size(count, bits),):
        raise InputError(f"{data.size} bytes do not hold {count} codes of {bits:g} bits")
    if bits == 8:
        codes = data.view(np.int8)
        if -128 in codes:
            raise InputError("-128 is no code of 8 bits")
        return codes
    base, per_byte = DIGITS[bits]
    if data.size and data.max() >= base**per_byte:
        raise InputError(f"a byte of {data.max()} does not hold {per_byte} trits")
    values = np.arange(base**per_byte)[:, None]
    digits = (values // base ** np.arange(per_byte) % base).astype(np.int8)[data].ravel()
    if digits[count:].any():
        raise InputError("the last byte holds more than its codes")
    return digits[:count] * np.int8(2 if bits == 1 else 1) + np.int8(FORMATS[bits].lowest)
