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

    def take(self, which: BoolArray | Int64Array) -> "Hits":
        """Some of them."""
        return Hits(self.marker[which], self.starts[which], self.ends[which], self.anchored[which], self.rows[which])


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """M markers in the spelling of a vocabulary (`threads.py` makes it).

    Ids are told apart by their **kind**, 0 for all that have nothing in common with a marker. A **thread** is one way
    for a token to hold a pivot. What has been read is a state: more than 0 while more has to be read, 0 where nothing
    can come of it, and less than 0 (negated: marker and byte) where a text is complete.
    """

    bits: int
    pivots: tuple[int, ...]
    """The ids that hold pivots."""
    kinds: Int32Array
    """`[V]` the kind of every id."""
    firsts: Int64Array
    """`[kinds + 1]` where the threads of every kind begin, and where the last ones end."""
    before: Int32Array
    """`[threads]` the state in `back` to reach a marker's beginning."""
    behind: Int32Array
    """`[threads]` the state in `onward` to reach its end."""
    anchors: Int32Array
    """`[threads, M]` the state in `back` to reach the beginning of its anchor."""
    onward: Int32Array
    """`[states, kinds]` the state after reading a token behind."""
    back: Int32Array
    """`[states, kinds]` the state after reading a token before."""

    def scan(self, ids: Int32Array, offsets: Int64Array) -> Hits:
        """All markers in examples `ids` `[T]` that begin at `offsets` `[N + 1]`, none of them empty."""
        at = places_of(ids, self.pivots)
        rows = np.repeat(np.arange(len(offsets) - 1), np.diff(np.searchsorted(at, offsets)))
        kinds = self.kinds.take(ids.take(at))
        counts = np.diff(self.firsts).take(kinds)
        borders = offsets_of(counts)
        threads = np.repeat(self.firsts.take(kinds) - borders[:-1], counts) + np.arange(borders[-1])
        at, rows = np.repeat(at, counts), np.repeat(rows, counts)

        first, begun = self._read(self.back, -1, ids, at, self.before.take(threads), offsets[rows] - 1)
        kept = np.flatnonzero(begun)
        at, rows, threads = at[kept], rows[kept], threads[kept]
        starts = (first[kept] << self.bits) + (begun[kept] & self._byte)

        last, ended = self._read(self.onward, 1, ids, at, self.behind.take(threads), offsets[rows + 1])
        kept = np.flatnonzero(ended)
        at, rows, threads, ended = at[kept], rows[kept], threads[kept], ended[kept]
        marker = (ended >> self.bits + 1) - 1
        ends = (last[kept] << self.bits) + (ended & self._byte)

        _, anchored = self._read(self.back, -1, ids, at, self.anchors[threads, marker], offsets[rows] - 1)
        return Hits(marker, starts[kept], ends, anchored > 0, rows)

    @property
    def _byte(self) -> int:
        return (2 << self.bits) - 1

    def _read(
        self, table: Int32Array, step: int, ids: Int32Array, at: Int64Array, state: Int32Array, limits: Int64Array
    ) -> tuple[Int64Array, Int64Array]:
        """Read on from the tokens `at` to what completes each text, before its limit.

        That token, and what was found there; 0 where nothing was.
        """
        at = at.copy()
        going = np.flatnonzero(state > 0)
        while len(going):
            here = at[going] + step
            kinds = self.kinds.take(ids.take(here, mode="clip"))
            after = table[state[going], np.where(here != limits[going], kinds, 0)]
            at[going], state[going] = here, after
            going = going[after > 0]
        return at, -state.astype(np.int64)
