"""How many bytes texts have, and where in a batch of texts their tokens lie: one running sum of a table of lengths."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from premask.dtypes import BoolArray, Int32Array, Int64Array

Positions: TypeAlias = NDArray[np.signedinteger[Any]]
"""Bytes of a batch."""


def sizes_of(texts: Sequence[str]) -> tuple[Int64Array, BoolArray]:
    """`[N]` the UTF-8 bytes of texts, and which of them are ASCII."""
    plain = np.fromiter(map(str.isascii, texts), bool, len(texts))
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    for row in np.flatnonzero(~plain):
        sizes[row] = len(texts[row].encode())
    return sizes, plain


def running(
    table: Int32Array, ids: Int32Array, offsets: Int64Array, bases: Int64Array
) -> tuple[Positions, Positions, Int64Array]:
    """Starts and ends `[T]` of tokens in texts that begin at `bases`, and `[N]` the bytes of every text's tokens.

    `table` `[V]` has the bytes of every id. One running sum over the whole batch, in which the first token of a text
    brings the byte between it and the text before.
    """
    lengths = table.take(ids)
    filled = np.flatnonzero(np.diff(offsets))
    first, last = offsets[filled], offsets[filled + 1] - 1
    apart = np.diff(filled, prepend=0)
    lengths[first] += apart
    small = len(ids) * int(table.max(initial=0)) + len(bases) < 2**31  # sums of 64 bits take twice the time
    ends: Positions = np.cumsum(lengths, dtype=np.int32 if small else np.int64)
    starts: Positions = ends - lengths
    starts[first] += apart
    spelt = np.zeros(len(offsets) - 1, np.int64)
    spelt[filled] = ends[last] - starts[first]
    astray = bases[filled] - starts[first]  # behind texts that their tokens do not add up to
    if astray.any():
        shifts = np.repeat(astray, np.diff(offsets)[filled])
        starts, ends = starts + shifts, ends + shifts
    return starts, ends, spelt
