"""Labels from ids alone: what is trained of rows that somebody else rendered and tokenized.

A turn runs from behind an assistant's header to the end of its terminator. Only ids are known, so text that spells out
a whole border between two turns cannot be told from one; anything less can, by what the template always does:

- It writes the same before a marker, an **anchor** (ChatML: `<|im_end|>` and a line break). A header elsewhere, but for
  the first of a row, is a quotation: no turn starts there.
- Every turn ends with a terminator (`closed`). A turn in which another one begins first is no turn, and not trained.
- Only the assistant's turns end with one (`exclusive`). Then other roles' markers before it are quotations.

In doubt nothing is trained: a wrong mask teaches the model what users say, a missing one costs a turn. Tokens that hold
bytes from both sides of a border are not trained, as everywhere in premask by default.

Cost: one pass over the ids to find the markers, one to write the labels; no Python loop over tokens, turns or rows.
"""

import functools
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from premask.dtypes import IGNORE_INDEX, BoolArray, Int32Array, Int64Array
from premask.mask.borders import HEADER, NEVER, Border, Borders, find_borders
from premask.mask.trails import SHIFT, WHITE, WHITE_END, Hits, Trail, beginning, find


@dataclass(frozen=True, slots=True)
class TokenTurns:
    """Turns as half-open ranges of tokens of the batch, ascending, disjoint."""

    starts: Int64Array
    ends: Int64Array
    """Equal to the start where a turn holds no token."""
    doubtful: Int64Array
    """Tokens behind headers that were not believed: one place for each."""


class Markers(Protocol):
    """A way to tell turns by their markers."""

    def turns(self, ids: Int32Array, offsets: Int64Array) -> TokenTurns:
        """The turns in rows `ids` `[T]` that begin at `offsets` `[N + 1]`."""


def mask_responses(
    ids: Int32Array,
    offsets: Int64Array,
    markers: Markers,
    *,
    last_response_only: bool = False,
    given: Int32Array | None = None,
    turns: TokenTurns | None = None,
) -> Int32Array:
    """Labels `[T]` int32 of the rows `ids` `[T]` that begin at `offsets` `[N + 1]`: -100 outside the responses.

    `markers` are `ResponseMarkers`, or `UnslothMarkers` for the labels of Unsloth's function. `given` `[T]` are labels
    that the rows have already: they are kept inside the responses, so that what they mask stays masked. `turns` are
    those that the markers find, where they are known.
    """
    turns = markers.turns(ids, offsets) if turns is None else turns
    values = ids if given is None else given
    labels = values - np.int32(IGNORE_INDEX)  # this way takes half the time of np.where
    labels *= trained(turns, offsets, last_response_only)
    labels += np.int32(IGNORE_INDEX)
    return labels


def trained(turns: TokenTurns, offsets: Int64Array, last_response_only: bool = False) -> BoolArray:
    """`[T]` which tokens lie in a turn, or in the last turn of their row."""
    starts, ends = turns.starts, turns.ends
    if last_response_only:
        rows = np.searchsorted(offsets, starts, "right")
        last = np.append(rows[1:] != rows[:-1], np.ones(min(len(rows), 1), bool))
        starts, ends = starts[last], ends[last]
    borders = np.empty(2 * len(starts) + 2, np.int64)
    borders[0], borders[-1] = 0, offsets[-1]
    borders[1:-1:2], borders[2:-1:2] = starts, ends
    inside = np.zeros(len(borders) - 1, bool)
    inside[1::2] = True
    return np.repeat(inside, np.diff(borders))


def trained_per_row(labels: Int32Array, offsets: Int64Array) -> Int64Array:
    """`[N]` how many labels of every row are not -100."""
    if not len(labels):
        return np.zeros(len(offsets) - 1, np.int64)
    filled = offsets[:-1] < offsets[1:]
    counts = np.zeros(len(filled), np.int64)
    counts[filled] = np.add.reduceat(labels != IGNORE_INDEX, offsets[:-1][filled], dtype=np.int64)
    return counts


@dataclass(frozen=True, kw_only=True)
class ResponseMarkers:
    """The markers of a template, compiled against a vocabulary."""

    borders: tuple[Border, ...]
    """What stands before an assistant's own words, and what any other text begins with."""
    closings: tuple[Trail, ...]
    """What a turn ends with."""
    spelt: Int32Array = field(repr=False)
    """`[V]` what the bytes of every id end in: WHITE and so on."""
    closed: bool
    """Every turn of the template ends with a terminator."""
    exclusive: bool
    """Only the assistant's turns end with a terminator."""

    @functools.cached_property
    def _trails(self) -> tuple[Trail, ...]:
        return (*(border.trail for border in self.borders), *self.closings)

    @functools.cached_property
    def _beginning(self) -> Int32Array:
        return beginning(self._trails)

    def turns(self, ids: Int32Array, offsets: Int64Array) -> TokenTurns:
        """The turns in rows `ids` `[T]` that begin at `offsets` `[N + 1]`; those without a token are left out."""
        found = find(ids, offsets, self._trails, self._beginning, len(self.spelt))
        borders = find_borders(ids, offsets, self.borders, found[: len(self.borders)], self.spelt)
        mine = np.flatnonzero((borders.kinds == HEADER) & borders.anchored)
        starts, limits = borders.ends[mine], borders.limits[mine]
        stops, behind = _closings(found[len(self.borders) :], starts, limits)
        border = _within(np.append(borders.starts, NEVER)[mine + 1], limits)
        closed = stops <= (self._reach(borders, mine, behind) if self.closed else border)
        closed &= stops < NEVER
        believed = closed | (border == NEVER) | (not self.closed)  # with no border behind it, the row was cut
        first, ends = _token_behind(starts), behind >> SHIFT
        open_ended = np.flatnonzero(~closed)
        ends[open_ended] = self._before(ids, borders, mine[open_ended])
        kept = believed & (ends > first)
        return TokenTurns(first[kept], ends[kept], first[~believed])

    def _reach(self, borders: Borders, mine: Int64Array, behind: Int64Array) -> Int64Array:
        """Up to where a terminator, which ends at `behind`, is that of the turn that each header begins.

        Markers out of place are quotations where the turn is followed by another role's; where a header follows, what
        went before was not the assistant's, and a turn that was cut may have run into it.
        """
        limits = borders.limits[mine]
        headers = borders.next_of(borders.anchored & (borders.kinds == HEADER))
        if self.exclusive:
            return _within(headers[mine + 1], limits)
        anchored = borders.next_of(borders.anchored)
        if borders.anchored.all():
            return _within(anchored[mine + 1], limits)
        after = np.searchsorted(borders.starts, behind, "left")
        by_header = (headers[after] == anchored[after]) & (headers[after] < limits)
        anywhere = np.append(borders.starts, NEVER)[mine + 1]
        return _within(np.where(by_header, anywhere, anchored[mine + 1]), limits)

    def _before(self, ids: Int32Array, borders: Borders, mine: Int64Array) -> Int64Array:
        """The tokens behind turns that end before the next border, less the white space there."""
        stops = np.append(borders.starts, NEVER)[mine + 1]
        blank = np.append(borders.before, 0)[mine + 1] & WHITE > 0
        limits, first = borders.limits[mine], _token_behind(borders.ends[mine])
        ends = np.minimum(stops, limits) >> SHIFT
        moving = np.flatnonzero((ends > first) & (blank | (stops >= limits)))
        while len(moving):
            spelt = self.spelt[ids[ends[moving] - 1]]
            ends[moving] -= spelt & WHITE_END > 0
            moving = moving[(spelt & WHITE > 0) & (ends[moving] > first[moving])]
        return ends


def _token_behind(places: Int64Array) -> Int64Array:
    """The first token that lies wholly behind each place."""
    return (places + (1 << SHIFT) - 1) >> SHIFT


def _closings(found: list[Hits], starts: Int64Array, limits: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Where the terminator next to each start begins (NEVER where the row has none), and where it ends.

    Of several at one place the longest counts.
    """
    places = np.concatenate([np.zeros(0, np.int64), *(hits.starts for hits in found)])
    ends = np.concatenate([np.zeros(0, np.int64), *(hits.ends for hits in found)])
    if len(found) > 1:
        order = np.lexsort((-ends, places))
        places, ends = places[order], ends[order]
    at = np.searchsorted(places, starts, "left")
    return _within(np.append(places, NEVER)[at], limits), np.append(ends, 0)[at]


def _within(places: Int64Array, limits: Int64Array) -> Int64Array:
    """Places before their limits; NEVER for the others."""
    return np.where(places < limits, places, NEVER)
