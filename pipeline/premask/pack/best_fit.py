"""Packing: lengths `[N]` and a capacity in tokens -> the pack number `[N]` of every example.

Best-fit decreasing (Johnson 1973): from the longest example to the shortest, each goes into the fullest pack that it
still fits. It is worked out on the histogram of the lengths, as in shortest-pack-first histogram packing (Krell et al.
2021, arXiv:2107.02027): examples of one length are alike, and so are packs with the same room, so one step puts many
equal examples into many equal packs. As lengths only fall, the rooms that still count form a stack with the tightest on
top, and no search tree is needed. The packs come out exactly as many as by the textbook loop.

Cost: O(capacity + D log capacity) steps of Python for D distinct lengths, and one sort of N keys; a million examples
take about 0.04 s and 12 bytes each beside the lengths. tests/bench/packing.py measures it.

Quality: within 0.1 % of the lower bound on chat-like mixes, near-half ones included. Where nearly all lengths lie close
to a third of the capacity it needs up to 7 % more: it pairs the longest first and no third one fits.
"""

from collections import defaultdict
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from premask.dtypes import Int32Array, Int64Array, offsets_of
from premask.errors import DataError

S = TypeVar("S", bound=np.generic)

COUNTED = 2**14
"""Keys that are counted at a time, at least."""

CHUNK = 2**16
"""Examples gathered or scattered at a time: numpy turns all their numbers into int64 first, 8 bytes each."""


def best_fit(lengths: Int32Array, capacity: int) -> Int32Array:
    """Pack number of every example by best-fit decreasing.

    `lengths` is `[N]` int, tokens, each in 1..capacity (else DataError). Returns `[N]` int32. Packs are numbered from
    0 as they are opened, so pack 0 holds the longest example; equal lengths are placed in input order.
    """
    check_lengths(lengths, capacity)
    if not len(lengths):
        return np.zeros(0, np.int32)
    counts = np.bincount(lengths, minlength=capacity + 1)
    steps = np.array(_fill(counts, capacity)).T
    order = order_by(np.subtract(capacity, lengths, dtype=np.int64), capacity)
    by_falling_length = _expand(*steps)
    pack = np.empty(len(lengths), np.int32)
    for start in range(0, len(order), CHUNK):
        pack[order[start : start + CHUNK]] = by_falling_length[start : start + CHUNK]
    return pack


def alone(lengths: Int32Array, capacity: int) -> Int32Array:
    """Pack number of every example where each is a pack of its own. Same arguments, result and errors as `best_fit`."""
    check_lengths(lengths, capacity)
    return np.arange(len(lengths), dtype=np.int32)


def _fill(counts: NDArray[np.intp], capacity: int) -> list[tuple[int, int, int]]:
    """Steps `(first pack, packs, examples in each)`, in order of falling length; packs of one step are consecutive."""
    steps: list[tuple[int, int, int]] = []
    packs_by_room: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    rooms: list[int] = []  # the keys of packs_by_room from `length` up, the tightest last
    length, opened = capacity + 1, 0

    def put(room: int, first: int, packs: int) -> None:
        if packs and room:
            if room >= length and room not in packs_by_room:
                rooms.append(room)
            packs_by_room[room].append((first, packs))

    sizes = counts.tolist()
    for shorter in np.flatnonzero(counts)[::-1].tolist():
        rooms += [room for room in range(length - 1, shorter - 1, -1) if room in packs_by_room]
        length, left = shorter, sizes[shorter]
        while left:
            if rooms:
                room = rooms[-1]
                first, packs = packs_by_room[room].pop()
                if not packs_by_room[room]:
                    del packs_by_room[rooms.pop()]
            else:
                room, first, packs = capacity, opened, -(-left // (capacity // length))
                opened += packs
            each = room // length
            full = min(packs, left // each)
            rest = left - full * each if full < packs else 0
            last = int(rest > 0)
            steps += [(first, full, each), (first + full, last, rest)]
            # Falling room keeps the stack in order: untouched packs, the one that took the rest, the full ones.
            put(room, first + full + last, packs - full - last)
            put(room - rest * length, first + full, last)
            put(room - each * length, first, full)
            left -= full * each + rest
    return steps


def _expand(firsts: Int64Array, packs: Int64Array, each: Int64Array) -> Int32Array:
    """Pack numbers `[N]` of the examples in order of falling length, from the steps of `_fill`."""
    ends = np.cumsum(packs)
    numbers = np.arange(ends[-1], dtype=np.int32)
    numbers += np.repeat((firsts - (ends - packs)).astype(np.int32), packs)
    return np.repeat(numbers, np.repeat(each, packs))


def sequential(lengths: Int32Array, capacity: int) -> Int32Array:
    """Pack number of every example by next fit: in input order, a new pack whenever the next one does not fit.

    Same arguments, result and errors as `best_fit`. Fills packs to about 86 % on log-normal lengths, but never parts
    neighbours further than one pack.
    """
    check_lengths(lengths, capacity)
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    following = np.searchsorted(ends, starts + capacity, side="right").tolist()
    opens = np.zeros(len(lengths), np.int32)
    first = 0
    while first < len(lengths):
        opens[first] = 1
        first = following[first]
    return np.cumsum(opens, dtype=np.int32) - np.int32(1)


def lower_bound(lengths: Int32Array, capacity: int) -> int:
    """Fewest packs that any packing needs at least: Martello and Toth's L2 (1990), never below ceil(sum / capacity).

    For a threshold K, examples above capacity - K sit alone, those above half of the capacity sit apart, and the
    rest of at least K must fit beside the latter or in new packs. L2 is the greatest such count over all K; at K = 0 it
    is at least ceil(sum / capacity).
    """
    check_lengths(lengths, capacity)
    counts = np.bincount(lengths, minlength=capacity + 1)
    below = np.concatenate([[0], np.cumsum(counts)])  # below[x]: examples shorter than x
    tokens = np.concatenate([[0], np.cumsum(counts * np.arange(capacity + 1))])
    half = capacity // 2 + 1
    small = np.arange(half)  # K
    large = capacity - small + 1
    alone = len(lengths) - below[large]
    apart = below[large] - below[half]
    room = apart * capacity - (tokens[large] - tokens[half])
    missing = (tokens[half] - tokens[small]) - room
    return int((alone + apart + np.maximum(0, -(-missing // capacity))).max())


def check_lengths(lengths: Int32Array, capacity: int) -> None:
    """DataError unless every length lies in 1..capacity."""
    bad = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if len(bad):
        raise DataError(
            f"example {bad[0]}: expected 1 to {capacity} tokens, found {lengths[bad[0]]}"
            f" ({len(bad)} such examples); apply an overflow policy before packing"
        )


def order_by(keys: Int64Array, below: int) -> Int32Array:
    """`np.argsort(keys, kind="stable")`, `[N]` int32, for keys from 0 and under `below`; they may be overwritten.

    Keys of 16 bits are counted, chunk by chunk, each of them put in order by numpy's radix sort: a third of the time of
    a sort that compares, and bounded memory beside the result.
    """
    if below > 2**16:
        return stable_order(keys).astype(np.int32)
    size = max(below // 4, COUNTED)
    following = offsets_of(np.bincount(keys, minlength=below))[:-1]  # where the next of every key goes
    order = np.empty(len(keys), np.int32)
    for start in range(0, len(keys), size):
        chunk = keys[start : start + size].astype(np.uint16)
        own, counts = np.argsort(chunk, kind="stable"), np.bincount(chunk, minlength=below)
        places = np.arange(len(own)) + np.repeat(following - offsets_of(counts)[:-1], counts)
        order[places] = own + start
        following += counts
    return order


def stable_order(keys: Int64Array) -> Int64Array:
    """`np.argsort(keys, kind="stable")` for keys `[N]` of 0 and more, in place: `keys` is overwritten and returned.

    Key and index share one int64 (their bits must add up to at most 63), which numpy sorts with SIMD and no workspace:
    a third of argsort's memory, and faster. N is below 2**31.
    """
    bits = len(keys).bit_length()
    keys <<= bits
    keys |= np.arange(len(keys), dtype=np.int32)
    keys.sort()
    keys &= (1 << bits) - 1
    return keys


def gather(values: NDArray[S], numbers: Int32Array) -> NDArray[S]:
    """`values[numbers]` in bounded memory beside the result: `[N]`."""
    found = np.empty(len(numbers), values.dtype)
    for start in range(0, len(numbers), CHUNK):
        found[start : start + CHUNK] = values[numbers[start : start + CHUNK]]
    return found


PACKERS = {"best_fit": best_fit, "sequential": sequential, "none": alone}
"""The packers by the value of the recipe's option `pack`."""
