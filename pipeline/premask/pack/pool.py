"""The pool: all examples that came out of masking, in global order, as the columns that selection and the plan need.

16 bytes an example, 20 where `source_turn` differs: where an example lies is not stored but worked out from its number,
since examples are numbered stage file by stage file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from premask.dtypes import BoolArray, Int32Array, Int64Array
from premask.pack.plan import Candidates


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """N examples of P partitions."""

    starts: Int64Array
    """`[P + 1]` first example of every partition."""

    first_rows: Int64Array
    """`[P]` global number of every partition's first source row."""

    sources: Int32Array
    """`[P]` which entry of the recipe's sources every partition belongs to."""

    row: Int32Array
    """`[N]` source row, counted within its partition; examples of one row are neighbours."""

    length: Int32Array
    """`[N]` tokens."""

    supervised: Int32Array
    """`[N]` trained tokens."""

    turns: Int32Array
    """`[N]` assistant turns."""

    source_turn: Int32Array
    """`[N]` which turn it was made for, or its first; -1 where it holds them all (a broadcast -1 costs nothing)."""

    def __len__(self) -> int:
        return len(self.row)

    def take(self, which: Int32Array | Int64Array) -> Candidates:
        """The examples of the numbers `which` `[n]`, in its order."""
        partition = np.searchsorted(self.starts, which, side="right") - 1
        return Candidates(
            partition=partition.astype(np.int32),
            index=(which - self.starts[partition]).astype(np.int32),
            source_row=self.first_rows[partition] + self.row[which],
            source_turn=self.source_turn[which],
            length=self.length[which],
            supervised=self.supervised[which],
        )

    def begins_row(self, part: slice = slice(None)) -> BoolArray:
        """`[n]` whether an example is the first of its source row; `part` are all, or those of one partition."""
        row = self.row[part]
        begins = np.ones(len(row), bool)
        np.not_equal(row[1:], row[:-1], out=begins[1:])
        if part == slice(None):
            begins[self.starts[:-1][self.starts[:-1] < len(row)]] = True  # rows are counted anew in every partition
        return begins

    def parts(self) -> Iterator[tuple[int, slice]]:
        """The source of every partition that has examples, and where these are, in order."""
        for source, (start, end) in zip(self.sources.tolist(), pairwise(self.starts.tolist()), strict=True):
            if end > start:
                yield source, slice(start, end)

    def source(self) -> NDArray[np.uint16]:
        """`[N]` which entry of the recipe's sources every example belongs to."""
        return np.repeat(self.sources.astype(np.uint16), np.diff(self.starts))
