"""Where certain ids stand in a batch: the one pass over all tokens that a search by markers needs."""

from collections.abc import Sequence

import numpy as np

from premask.dtypes import Int32Array, Int64Array

FEW = 8
"""So many ids are compared one by one, which is faster than looking each token up."""


def places_of(ids: Int32Array, wanted: Sequence[int]) -> Int64Array:
    """`[K]` int64, ascending: where one of the ids `wanted` stands in `ids` `[T]`."""
    padded = np.zeros(len(ids) + 7 & ~7, bool)
    found = padded[: len(ids)]
    if len(wanted) > FEW:
        table = np.zeros(max(int(ids.max(initial=0)), *wanted) + 1, bool)
        table[list(wanted)] = True
        table.take(ids, out=found, mode="clip")  # which is the mode that needs no copy; all ids are within
    elif wanted:
        np.equal(ids, wanted[0], out=found)
        for token in wanted[1:]:
            found |= ids == token
    # Eight tokens at a time, since few are found.
    words = padded.view(np.uint64)
    due = np.flatnonzero(words != 0)
    within = np.flatnonzero(words[due].view(bool))
    places: Int64Array = (due[within >> 3] << 3) + (within & 7)
    return places
