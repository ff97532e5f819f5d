"""Arrow list columns over numpy arrays and back, without a copy either way."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_DTYPES = {"float": "float32", "double": "float64"}
"""What numpy calls Arrow's numbers, where that differs."""


def list_column(offsets: NDArray[np.int64], values: NDArray[Any] | pa.Array) -> pa.Array:
    """List column over `values`, row n being `values[offsets[n]:offsets[n + 1]]`; 32-bit offsets, so values < 2**31."""
    return pa.ListArray.from_arrays(column_of(offsets.astype(np.int32)), column_of(values))


def large_list_column(offsets: NDArray[np.int64], values: NDArray[Any] | pa.Array) -> pa.Array:
    """large_list column over `values`, row n being `values[offsets[n]:offsets[n + 1]]`."""
    return pa.LargeListArray.from_arrays(column_of(offsets), column_of(values))


def pair_column(pairs: NDArray[Any]) -> pa.Array:
    """fixed_size_list<2> column over `pairs` `[N, 2]`."""
    return pa.FixedSizeListArray.from_arrays(column_of(pairs.reshape(-1)), 2)


def bytes_column(rows: NDArray[np.uint8]) -> pa.Array:
    """fixed_size_binary[W] column over `rows` `[N, W]`."""
    buffer = pa.py_buffer(np.ascontiguousarray(rows))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, buffer])


def offsets_of(column: pa.Array) -> NDArray[Any]:
    """First value of every list of the column, and the end of the last: `[N + 1]`, read-only."""
    return view(column.offsets)


def values_of(column: pa.Array) -> NDArray[Any]:
    """All values of a (large) list column, flat, read-only."""
    return view(column.values)


def pairs_of(column: pa.Array) -> NDArray[Any]:
    """All pairs of a (large) list column of fixed_size_list<2>: `[N, 2]`, read-only."""
    return view(column.values.values).reshape(-1, 2)


def bytes_of(column: pa.Array) -> NDArray[np.uint8]:
    """The rows of a fixed_size_binary[W] column: `[N, W]`, read-only."""
    width = column.type.byte_width
    data = np.frombuffer(column.buffers()[1], np.uint8)
    return data[column.offset * width : (column.offset + len(column)) * width].reshape(-1, width)


def view(column: pa.Array) -> NDArray[Any]:
    """A column of numbers as a read-only numpy view. ArrowInvalid where it holds nulls."""
    if column.null_count:
        raise pa.ArrowInvalid("expected a column without nulls")
    name = str(column.type)
    values = column.buffers()[1] or b""  # `to_numpy` imports pandas, where that is installed
    return np.frombuffer(values, _DTYPES.get(name, name))[column.offset : column.offset + len(column)]


def column_of(values: NDArray[Any] | pa.Array) -> pa.Array:
    """A column of numbers over `values` `[N]`; a column as it is."""
    if isinstance(values, pa.Array):
        return values
    whole = np.ascontiguousarray(values)  # `pa.array` imports pandas, where that is installed: a fifth of a second
    return pa.Array.from_buffers(pa.from_numpy_dtype(whole.dtype), len(whole), [None, pa.py_buffer(whole)])
