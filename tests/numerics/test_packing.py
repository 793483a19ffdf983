"""Packed codes come back exactly, and nothing else comes back at all."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effcli.engine.quant.codes import FORMATS
from effcli.engine.quant.packing import pack, packed_size, unpack
from effcli.errors import InputError

LOW = list(FORMATS)


@st.composite
def _codes(draw: st.DrawFn) -> tuple[float, np.ndarray]:
    bits = draw(st.sampled_from(LOW))
    lowest, highest = FORMATS[bits][1:3]
    digits = [-1, 1] if bits == 1 else range(lowest, highest + 1)
    return bits, np.array(draw(st.lists(st.sampled_from(digits), max_size=70)), np.int8)


@given(_codes())
def test_what_is_packed_comes_back(packed: tuple[float, np.ndarray]) -> None:
    bits, codes = packed
    data = pack(codes, bits)
    found = unpack(data, bits, len(codes))
    assert found.dtype == codes.dtype
    assert np.array_equal(found, codes)
    assert len(data) == packed_size(len(codes), bits)
    per_byte = {1: 8, 1.58: 5, 2: 4, 4: 2, 8: 1}[bits]
    assert len(data) == math.ceil(len(codes) / per_byte)


@given(st.sampled_from(LOW), st.binary(max_size=6), st.integers(0, 50))
def test_bytes_are_one_row_of_codes_or_none(bits: float, data: bytes, count: int) -> None:
    """So no two files hold the same codes."""
    array = np.frombuffer(data, np.uint8)
    try:
        codes = unpack(array, bits, count)
    except InputError:
        return
    assert pack(codes, bits).tobytes() == data


def test_the_order_of_digits_is_the_one_that_is_written_down() -> None:
    assert pack(np.array([1, 0, -1, 0, 1, 1], np.int8), 1.58).tolist() == [
        2 + 3 * 1 + 9 * 0 + 27 * 1 + 81 * 2,
        2,
    ]
    assert pack(np.array([1, -1, -1, 1, 1, -1, -1, -1, 1], np.int8), 1).tolist() == [0b11001, 1]
    assert pack(np.array([-2, -1, 0, 1, 1], np.int8), 2).tolist() == [0b11100100, 3]
    assert pack(np.array([-8, 7, 0], np.int8), 4).tolist() == [0xF0, 8]
    assert pack(np.array([-127, 127, 0], np.int8), 8).tolist() == [129, 127, 0]


def test_a_matrix_is_packed_row_by_row() -> None:
    codes = np.array([[1, 0, -1], [0, 0, 1]], np.int8)
    assert np.array_equal(pack(codes, 1.58), pack(codes.ravel(), 1.58))
    assert np.array_equal(pack(codes.T, 1.58), pack(codes.T.ravel(), 1.58))


@pytest.mark.parametrize(
    ("data", "bits", "count", "message"),
    [
        ([243], 1.58, 5, "a byte of 243 does not hold 5 trits"),
        ([0, 0], 1.58, 5, "2 bytes do not hold 5 codes of 1.58 bits"),
        ([0], 1.58, 6, "1 bytes do not hold 6"),
        ([[0]], 2, 4, "do not hold"),
        ([81], 1.58, 4, "holds more than its codes"),
        ([0b10000], 1, 4, "holds more than its codes"),
        ([0b10000], 2, 2, "holds more than its codes"),
        ([0x10], 4, 1, "holds more than its codes"),
        ([128], 8, 1, "-128 is no code"),
    ],
)
def test_what_was_never_packed_is_refused(
    data: list[int], bits: float, count: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        unpack(np.array(data, np.uint8), bits, count)


@pytest.mark.parametrize(
    ("code", "bits"), [(0, 1), (2, 1.58), (-2, 1.58), (2, 2), (-3, 2), (8, 4), (-9, 4), (-128, 8)]
)
def test_codes_out_of_range_are_refused(code: int, bits: float) -> None:
    with pytest.raises(InputError, match=f"none of {bits:g} bits"):
        pack(np.array([1, code], np.int8), bits)
