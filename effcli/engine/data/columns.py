"""Arrays of numbers with names, as Parquet: what other tools can read, too."""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def packed(columns: Mapping[str, NDArray[Any]]) -> bytes:
    """The content of a file; truth values are written as 0 and 1."""
    import pyarrow as arrow
    from pyarrow import parquet

    # By buffers: any other way from numpy to Arrow imports pandas, and its memory.
    rows = {name: np.ascontiguousarray(row) for name, row in columns.items()}
    rows = {name: row.view(np.uint8) if row.dtype == bool else row for name, row in rows.items()}
    arrays = [
        arrow.Array.from_buffers(
            arrow.from_numpy_dtype(row.dtype), len(row), [None, arrow.py_buffer(row.tobytes())]
        )
        for row in rows.values()
    ]
    stream = io.BytesIO()
    table = arrow.Table.from_arrays(arrays, names=list(rows))
    parquet.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def unpacked(data: bytes, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """The arrays of a file; a KeyError or ValueError if it does not hold them.

    No threads are used: a pool of them that is still being started when the program ends
    would abort it.
    """
    from pyarrow import ArrowException, BufferReader
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(BufferReader(data), pre_buffer=False).read(use_threads=False)
        return {name: _array(table.column(name)) for name in names}
    except (ArrowException, OSError) as error:
        raise ValueError(error) from None


def _array(column: Any) -> NDArray[Any]:
    name = str(column.type)
    kind = np.dtype(_NAMES.get(name, name))
    if column.null_count:
        raise ValueError("a value is missing")
    parts = [
        np.frombuffer(one.buffers()[1], kind, len(one), one.offset * kind.itemsize)
        for one in column.chunks
        if len(one)
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype=kind)


_NAMES = {"float": "float32", "double": "float64"}
