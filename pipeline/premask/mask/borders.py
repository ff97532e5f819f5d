"""Where something begins in a row of ids: the headers of all roles, and which of them stand where they should.

A template always writes the same before a marker: its **anchor**. ChatML ends every turn with `<|im_end|>` and a line
break, so a header that stands behind anything else is somebody's quotation of one. The first marker of a row, or of a
sample that a BOS begins, needs no anchor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from premask.dtypes import BoolArray, Int32Array, Int64Array
from premask.mask.trails import BREAK, BREAKS, SHIFT, WHITE, Hits, Trail

HEADER, OPENING, SAMPLE = 0, 1, 2
"""What a marker begins: a turn of the assistant, another role's, another sample."""

NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, kw_only=True)
class Border:
    """A marker that begins something."""

    kind: int
    trail: Trail
    behind: int | None = None
    """Its anchor: this token comes before it, white space aside."""
    breaks: int = 0
    """Its anchor: so many line breaks come before it."""


@dataclass(frozen=True, slots=True)
class Borders:
    """B markers in a batch, by their places: one at each, and none that begins within a header."""

    starts: Int64Array
    ends: Int64Array
    before: Int32Array
    """As `Hits.before`."""
    limits: Int64Array
    """The place where the row ends."""
    kinds: Int32Array
    anchored: BoolArray
    """Whether the marker stands where the template writes it."""

    def next_of(self, which: BoolArray) -> Int64Array:
        """`[B + 1]` the place of the first marker among `which` `[B]` at each or behind it, or NEVER."""
        places = np.append(np.where(which, self.starts, NEVER), NEVER)
        return np.minimum.accumulate(places[::-1])[::-1]


def find_borders(
    ids: Int32Array, offsets: Int64Array, borders: Sequence[Border], found: Sequence[Hits], spelt: Int32Array
) -> Borders:
    """Put the hits of `borders` in order: at each place a header goes before others, then the longest.

    `spelt` `[V]` says what the bytes of ids end in.
    """
    hits = [(h.starts, h.ends, h.before) for h in found]
    starts, ends, before = (np.concatenate(column) for column in zip(*hits, strict=True))
    which = np.repeat(np.arange(len(found)), [len(h.starts) for h in found])
    kinds = np.array([border.kind for border in borders], np.int32)[which]
    order = np.argsort(starts, kind="stable")
    if len(order) and (np.diff(starts[order]) == 0).any():
        order = np.lexsort((-ends, kinds, starts))
        order = order[np.append(True, np.diff(starts[order]) > 0)]
    reach = np.maximum.accumulate(np.where(kinds[order] == HEADER, ends[order], 0))
    order = order[np.append(np.ones(min(len(order), 1), bool), starts[order][1:] >= reach[:-1])]
    starts, ends, before, kinds, which = (a[order] for a in (starts, ends, before, kinds, which))
    rows = np.searchsorted(offsets, starts >> SHIFT, "right")
    fresh = np.append(np.ones(min(len(rows), 1), bool), (np.diff(rows) > 0) | (kinds[:-1] == SAMPLE))
    anchored = fresh | _anchored(ids, starts >> SHIFT, before, offsets[rows - 1], borders, which, spelt)
    return Borders(starts, ends, before, offsets[rows] << SHIFT, kinds, anchored)


def _anchored(
    ids: Int32Array,
    tokens: Int64Array,
    before: Int32Array,
    row_starts: Int64Array,
    borders: Sequence[Border],
    which: Int64Array,
    spelt: Int32Array,
) -> BoolArray:
    """Which hits have their anchor before them, or need none."""
    anchored = np.zeros(len(tokens), bool)
    for number, border in enumerate(borders):
        mine = np.flatnonzero(which == number)
        where = ids, tokens[mine], before[mine], row_starts[mine], spelt
        if border.behind is not None:
            anchored[mine] = _behind_white(*where) == border.behind
        elif border.breaks:
            anchored[mine] = _breaks_before(*where) >= border.breaks
        else:
            anchored[mine] = True
    return anchored


def _behind_white(
    ids: Int32Array, tokens: Int64Array, before: Int32Array, row_starts: Int64Array, spelt: Int32Array
) -> Int32Array:
    """The id before each hit, white space aside; -1 where there is none, or the hit begins within a word."""
    at = tokens - 1
    found = np.where((at >= row_starts) & (before & WHITE > 0), ids[np.maximum(at, 0)], np.int32(-1))
    moving = np.flatnonzero((found >= 0) & (spelt[found] & WHITE > 0))
    while len(moving):
        at[moving] -= 1
        found[moving] = np.where(at[moving] >= row_starts[moving], ids[np.maximum(at[moving], 0)], -1)
        moving = moving[(found[moving] >= 0) & (spelt[found[moving]] & WHITE > 0)]
    return found


def _breaks_before(
    ids: Int32Array, tokens: Int64Array, before: Int32Array, row_starts: Int64Array, spelt: Int32Array
) -> Int32Array:
    """How many line breaks come before each hit."""
    breaks, at = before // BREAK, tokens.copy()
    moving = np.flatnonzero(before & BREAKS > 0)
    while len(moving):
        at[moving] -= 1
        moving = moving[at[moving] >= row_starts[moving]]
        found = spelt[ids[at[moving]]]
        breaks[moving] += found // BREAK
        moving = moving[found & BREAKS > 0]
    return breaks
