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

from premask.dtypes import BoolArray, Int32Array, Int64Array, offsets_of
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
        columns = (self.marker, self.starts, self.ends, self.anchored, self.rows)
        return Hits(*(column.take(which) for column in columns))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """M markers in the spelling of a vocabulary (`threads.py` makes it).

    Ids are told apart by their **kind**, 0 for all that have nothing in common with a marker. A **thread** is one way
    for a token to hold a pivot. What has been read is a state: more than 0 while more has to be read, 0 where nothing
    can come of it, and less than 0 (negated: marker and byte) where a text is complete.
    """

    bits: int
    pivots: tuple[int, ...]
    """The ids that hold pivots: kinds 1, 2, ..., P."""
    kinds: Int64Array
    """`[V]` the kind of every id."""
    firsts: Int64Array
    """`[P + 2]` where the threads of every kind begin, and where the last ones end."""
    before: Int64Array
    """`[threads]` the state in `back` to reach a marker's beginning."""
    behind: Int64Array
    """`[threads]` the state in `onward` to reach its end."""
    anchors: Int64Array
    """`[threads, M]` the state in `back` to reach the beginning of its anchor."""
    onward: Int64Array
    """`[states, kinds]` the state after reading a token behind."""
    back: Int64Array
    """`[states, kinds]` the state after reading a token before."""
    possible: BoolArray
    """`[P + 1, kinds]` whether a kind that stands before a pivot leads to a marker."""

    def scan(self, ids: Int32Array, offsets: Int64Array) -> Hits:
        """All markers in examples `ids` `[T]` that begin at `offsets` `[N + 1]`, none of them empty."""
        at, threads = self._threads(ids)
        rows = np.repeat(np.arange(len(offsets) - 1), np.diff(np.searchsorted(at, offsets)))
        first, begun = self._read(self.back, -1, ids, at, self.before.take(threads), offsets[:-1].take(rows) - 1)
        kept = np.flatnonzero(begun)
        if len(kept) < len(at):
            at, rows, threads, first, begun = (a.take(kept) for a in (at, rows, threads, first, begun))
        limits = offsets.take(rows + 1)
        last, ended = self._read(self.onward, 1, ids, at, self.behind.take(threads), limits)
        kept = np.flatnonzero(ended)
        if len(kept) < len(at):
            at, rows, threads, first, begun, last, ended = (
                a.take(kept) for a in (at, rows, threads, first, begun, last, ended)
            )
        marker = (ended >> self.bits + 1) - 1
        anchors = self.anchors.ravel().take(threads * self.anchors.shape[1] + marker)
        _, anchored = self._read(self.back, -1, ids, at, anchors, offsets.take(rows) - 1)
        byte = (2 << self.bits) - 1
        return Hits(
            marker, (first << self.bits) + (begun & byte), (last << self.bits) + (ended & byte), anchored > 0, rows
        )

    def _threads(self, ids: Int32Array) -> tuple[Int64Array, Int64Array]:
        """The tokens that hold a pivot, ascending, and the thread that each of them belongs to; one may have more."""
        at = places_of(ids, self.pivots)
        kinds = self.kinds.take(ids.take(at))
        if not self.possible.all():
            earlier = self.kinds.take(ids.take(at - 1, mode="clip"))
            kept = np.flatnonzero(self.possible.ravel().take(kinds * self.possible.shape[1] + earlier))
            at, kinds = at.take(kept), kinds.take(kept)
        threads = self.firsts.take(kinds)
        counts = self.firsts.take(kinds + 1) - threads
        if counts.max(initial=1) > 1:
            borders = offsets_of(counts)
            threads = np.repeat(threads - borders[:-1], counts) + np.arange(borders[-1])
            at = np.repeat(at, counts)
        return at, threads

    def _read(
        self, table: Int64Array, step: int, ids: Int32Array, at: Int64Array, state: Int64Array, limits: Int64Array
    ) -> tuple[Int64Array, Int64Array]:
        """Read on from the tokens `at` to what completes each text, before its limit.

        That token, and what was found there; 0 where nothing was.
        """
        at = at.copy()
        flat, width = table.ravel(), table.shape[1]
        going = np.flatnonzero(state > 0)
        here, due = at.take(going), state.take(going)
        while len(going):
            here += step
            kinds = self.kinds.take(ids.take(here, mode="clip"))
            due = flat.take(due * width + kinds)
            due *= here != limits.take(going)
            at[going], state[going] = here, due
            on = np.flatnonzero(due > 0)
            going, here, due = going.take(on), here.take(on), due.take(on)
        return at, -state
