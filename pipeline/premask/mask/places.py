"""Where certain ids stand in a batch: the one pass over all tokens that a search by markers needs."""

from collections.abc import Sequence

import numpy as np

from premask.dtypes import BoolArray, Int32Array, Int64Array

FEW = 24
"""So many ids are compared one by one, which is faster than looking each token up."""

WIDE = 3
"""So many are compared as they are; for more it pays to make the tokens half as wide first."""

BLOCK = 1 << 16
"""Tokens that are compared with all of these ids before the next ones are."""

SAMPLE = 1024
"""Tokens that tell how rare the ids at the end of the vocabulary are."""


def places_of(ids: Int32Array, wanted: Sequence[int]) -> Int64Array:
    """`[K]` int64, ascending: where one of the ids `wanted`, ascending, stands in `ids` `[T]`, and a few others.

    The others are for the caller to leave out, who looks at the ids there anyway.
    """
    if not wanted or not len(ids):
        return np.zeros(0, np.int64)
    if len(wanted) > FEW:
        among: Int64Array = np.flatnonzero(np.isin(ids, wanted, kind="table"))
        return among
    singles, least = _split(ids, wanted)
    padded = np.zeros(len(ids) + 7 & ~7, bool)
    buffer = np.empty(min(len(ids), BLOCK), bool)
    half = np.uint16 if len(singles) > WIDE else np.int32
    tokens = [np.array(token & 0xFFFF if half is np.uint16 else token, half) for token in singles]
    for first in range(0, len(ids), BLOCK):
        block = ids[first : first + BLOCK]
        found, more = padded[first : first + len(block)], buffer[: len(block)]
        np.greater_equal(block, least, found)
        block = block.astype(half, copy=False)
        for token in tokens:
            np.equal(block, token, more)
            np.logical_or(found, more, found)
    return sparse(padded)


def _split(ids: Int32Array, wanted: Sequence[int]) -> tuple[Sequence[int], Int32Array]:
    """The ids to look for one by one, and the least of the others, from which on all ids are rare.

    Control tokens are the last ids of most vocabularies, so that one comparison does for all of them.
    """
    sample = ids[:: len(ids) // SAMPLE + 1]
    for n, token in enumerate(wanted):
        if np.count_nonzero(sample >= token) << 5 <= len(sample):
            return wanted[:n], np.array(token, np.int32)
    return wanted, np.array(np.iinfo(np.int32).max, np.int32)


def sparse(found: BoolArray) -> Int64Array:
    """`np.flatnonzero` where little is found, in half the time: eight tokens at a time. `found` has whole eights."""
    words = found.view(np.uint64)
    due = (words != 0).nonzero()[0]
    within = words.take(due).view(bool).nonzero()[0]
    places: Int64Array = (due.take(within >> 3) << 3) + (within & 7)
    return places
