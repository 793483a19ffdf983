"""Arrays go into a file and come back, at no more than the price of the file."""

import subprocess
import sys

import numpy as np
import pytest

from effcli.engine.data.columns import packed, unpacked

KINDS = (np.int64, np.int32, np.int16, np.uint8, np.float32, np.float64)


@pytest.mark.parametrize("count", [0, 1, 7, 100_000])
def test_arrays_come_back_as_they_were(count: int) -> None:
    random = np.random.default_rng(0)
    columns = {np.dtype(kind).name: random.integers(0, 99, count).astype(kind) for kind in KINDS}
    columns["float64"] = random.normal(size=count)
    columns["truth"] = random.random(count) < 0.5
    found = unpacked(packed(columns), columns)
    for name, row in columns.items():
        assert np.array_equal(found[name].astype(row.dtype), row)
        assert found[name].dtype == (np.uint8 if name == "truth" else row.dtype)


def test_numbers_that_are_none_come_back() -> None:
    row = np.array([np.nan, np.inf, -np.inf, 0.0], dtype=np.float32)
    assert np.array_equal(unpacked(packed({"x": row}), ["x"])["x"], row, equal_nan=True)


def test_a_slice_is_written_as_it_is() -> None:
    row = np.arange(10)[::-2]
    assert np.array_equal(unpacked(packed({"x": row}), ["x"])["x"], row)


@pytest.mark.parametrize("change", [b"", b"PAR1", b"junk" * 50])
def test_a_damaged_file_is_an_error(change: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever the reader says
        unpacked(change, ["x"])


def test_a_column_that_is_missing_is_an_error() -> None:
    with pytest.raises((KeyError, ValueError)):
        unpacked(packed({"x": np.arange(3)}), ["y"])


def test_no_data_frames_are_loaded_for_it() -> None:
    code = """
import sys, numpy
from effcli.engine.data.columns import packed, unpacked
unpacked(packed({"x": numpy.arange(9), "y": numpy.ones(9, bool)}), ["x", "y"])
print("pandas" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
