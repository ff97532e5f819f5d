"""Where markers stand among ids, which spell them in many ways: compared token by token, and no text is spelled out.

Every spelling of a marker has a token that holds its **pivot**, one of its bytes, chosen so that few ids can hold it
(`:` of `### Response:`, the control token of `<|im_start|>user`). Where such an id stands, the tokens before and behind
it are read for as long as they go on with the marker, and those before it for its anchor. What each token means at each
point is worked out once, for all ids that have bytes in common with a marker.

Places are bytes, told by their tokens: the token's number shifted by `bits`, and the byte in it. So places compare as
bytes do. The end of a token is the beginning of the next one.
"""

from dataclasses import dataclass

import numpy as np

from premask.dtypes import BoolArray, Int32Array, Int64Array
from premask.mask.places import places_of


@dataclass(frozen=True, slots=True)
class Hits:
    """K places where markers stand, in no order."""

    marker: Int64Array
    """`[K]` which one."""
    starts: Int64Array
    """`[K]` the place where it begins."""
    ends: Int64Array
    """`[K]` the place behind it."""
    anchored: BoolArray
    """`[K]` whether its anchor stands before it."""
    rows: Int64Array
    """`[K]` the example that it stands in."""

    def take(self, which: Int64Array) -> "Hits":
        """Some of them."""
        marker, starts, ends, rows = (c.take(which) for c in (self.marker, self.starts, self.ends, self.rows))
        return Hits(marker, starts, ends, self.anchored.take(which), rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """M markers in the spelling of a vocabulary (`threads.py` makes it).

    Ids are told apart by their **kind**, 0 for all that have nothing in common with a marker. What has been read is a
    state: more than 0 while more has to be read, 0 where nothing can come of it, and less than 0 where a text is
    complete. A **thread** is what an id that holds a pivot and the kind before it may lead to; most lead to none.
    """

    bits: int
    pivots: tuple[int, ...]
    """The ids that hold pivots: kinds 1, 2, ..., P."""
    kinds: Int64Array
    """`[V]` the kind of every id."""
    pairs: Int64Array
    """`[V]` where the pairs of a pivot and the kind before it begin, 0 for all other ids."""
    leading: BoolArray
    """`[(P + 1) * kinds]` which pairs have threads."""
    firsts: Int64Array
    """`[(P + 1) * kinds + 1]` where the threads of each pair begin."""
    shifts: Int64Array
    """`[threads]` 1 where the token before the pivot has been read, 0 where that was not needed."""
    before: Int64Array
    """`[threads]` the state in `back`, to reach a marker's beginning."""
    behind: Int64Array
    """`[threads]` the state in `onward`, to reach its end. What completes it is its number and the bytes of its last
    token, negated.
    """
    onward: Int64Array
    """`[states, kinds]` the state after reading a token behind."""
    back: Int64Array
    """`[states, kinds]` the state after reading a token before."""
    begun: Int64Array
    """`[B]` where in a token a marker begins, for the B states of `back` (-1, -2, ...) that complete one."""
    anchors: Int64Array
    """`[B, M]` the state in `back` to reach the beginning of its anchor from there."""

    def scan(self, ids: Int32Array, offsets: Int64Array) -> Hits:
        """All markers in examples `ids` `[T]` that begin at `offsets` `[N + 1]`, none of them empty."""
        at, threads = self._threads(ids)
        first, begun = self._read(self.back, -1, ids, at - self.shifts.take(threads), self.before.take(threads))
        if not begun.all():
            some = begun.nonzero()[0]
            at, threads, first, begun = (column.take(some) for column in (at, threads, first, begun))
        last, ended = self._read(self.onward, 1, ids, at, self.behind.take(threads))
        borders = at.searchsorted(offsets)
        rows = np.arange(len(offsets) - 1).repeat(borders[1:] - borders[:-1])
        fits = (ended > 0) & (first >= offsets.take(rows)) & (last < offsets[1:].take(rows))
        if not fits.all():
            kept = fits.nonzero()[0]
            first, begun, last, ended, rows = (column.take(kept) for column in (first, begun, last, ended, rows))
        marker = (ended >> self.bits + 1) - 1
        begun -= 1
        states = self.anchors.ravel().take(begun * self.anchors.shape[1] + marker)
        limit, anchored = self._read(self.back, -1, ids, first, states)
        return Hits(
            marker=marker,
            starts=(first << self.bits) + self.begun.take(begun),
            ends=(last << self.bits) + (ended & (2 << self.bits) - 1),
            anchored=(anchored > 0) & (limit >= offsets.take(rows)),
            rows=rows,
        )

    def _threads(self, ids: Int32Array) -> tuple[Int64Array, Int64Array]:
        """The tokens that hold a pivot, ascending, and their threads; a token may have several."""
        at = places_of(ids, self.pivots)
        pairs = self.pairs.take(ids.take(at)) + self.kinds.take(ids.take(at - 1, mode="clip"))
        some = self.leading.take(pairs).nonzero()[0]
        at, pairs = at.take(some), pairs.take(some)
        threads = self.firsts.take(pairs)
        if len(self.shifts) == np.count_nonzero(self.leading):  # no pair has several
            return at, threads
        counts = self.firsts[1:].take(pairs) - threads
        ramp = np.arange(counts.sum())
        return np.repeat(at, counts), ramp + np.repeat(threads - np.cumsum(counts) + counts, counts)

    def _read(
        self, table: Int64Array, step: int, ids: Int32Array, at: Int64Array, state: Int64Array
    ) -> tuple[Int64Array, Int64Array]:
        """Read on from the tokens `at` to those that complete a text, and what they complete; 0 where none does.

        What is read of another example completes texts, too; these are for the caller to leave out.
        """
        going = (state > 0).nonzero()[0]
        if not len(going):
            return at, -state
        at, flat, width = at.copy(), table.ravel(), table.shape[1]
        here, due = at.take(going), state.take(going)
        while len(going):
            here += step
            due = flat.take(due * width + self.kinds.take(ids.take(here, mode="clip")))
            if here[0] < 0 or here[-1] >= len(ids):  # an id that spells nothing would be read there for ever
                due[(here < 0) | (here >= len(ids))] = 0
            on = (due > 0).nonzero()[0]
            if len(on) < len(due):  # of what goes on, what it has come to is written later
                at[going], state[going] = here, due
                going, here, due = going.take(on), here.take(on), due.take(on)
        return at, -state
