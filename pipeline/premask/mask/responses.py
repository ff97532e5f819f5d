"""Labels from ids alone: what is trained of rows that somebody else rendered and tokenized.

Markers are compared as bytes, because the ids of plain text depend on its neighbours (`### Response:` behind a line
break is another sequence than at a text's start). `scanner.py` finds them without spelling any text out; what follows
from where they stand is worked out here. A control token is spelled as its id: text that merely looks like one is no
marker.

The template writes the same text before a marker, its **anchor** (ChatML: `<|im_end|>` and a line break). A marker
without its anchor is somebody's quotation and begins nothing, unless it is the first of an example. What a quotation
cannot be told from, a text that spells out a whole border between two turns, is taken for one.

Cost: every token is compared with the few ids that may hold a marker's pivot, some dozens of operations follow for
each that does, and two passes write the labels.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from premask.dtypes import IGNORE_INDEX, BoolArray, Int32Array, Int64Array
from premask.mask.scanner import Hits, Scanner
from premask.mask.search import Marker, Markers
from premask.mask.threads import scanner_for


@dataclass(frozen=True, slots=True)
class Responses:
    """What is trained of a batch: half-open ranges of tokens, ascending and disjoint."""

    starts: Int64Array
    ends: Int64Array
    """Equal to the start where a turn holds no token."""
    quoted: Int64Array
    """The tokens behind which a header stands that begins no turn."""


class ResponseFinder(Protocol):
    """A way to find the assistant's turns among ids: `SpeltMarkers`, or `unsloth.UnslothMarkers`."""

    def find(self, ids: Int32Array, offsets: Int64Array) -> Responses:
        """The turns in examples `ids` `[T]` that begin at `offsets` `[N + 1]`."""


def mask_responses(
    ids: Int32Array,
    offsets: Int64Array,
    markers: ResponseFinder,
    *,
    last_response_only: bool = False,
    given: Int32Array | None = None,
) -> tuple[Int32Array, Int64Array]:
    """Labels of N examples, and how many headers in each were taken for quotations.

    `ids` `[T]` int32 are the examples end to end, which begin at `offsets` `[N + 1]`. The labels `[T]` int32 are -100
    outside the assistant's turns (with `last_response_only`, outside the last one of every example), and there the ids,
    or else the labels `given` `[T]` (none below -100), so that what those mask stays masked. The counts are `[N]`
    int64.
    """
    values = ids if given is None else given
    parts, quoted = [values[:0]], np.zeros(len(offsets) - 1, np.int64)
    firsts = [0] if 0 < len(ids) <= CHUNK else sorted({*offsets.searchsorted(np.arange(0, len(ids), CHUNK)).tolist()})
    for first, behind in itertools.pairwise([*firsts, len(quoted)]):
        tokens = slice(int(offsets[first]), int(offsets[behind]))
        borders = offsets[first : behind + 1] - tokens.start
        found = markers.find(ids[tokens], borders)
        last = _last(found.starts, borders) if last_response_only else slice(None)
        parts.append(_within(found.starts[last], found.ends[last], values[tokens]))
        if len(found.quoted):
            np.add.at(quoted, first + np.searchsorted(borders, found.quoted, "right") - 1, 1)
    return np.concatenate(parts) if len(parts) != 2 else parts[1], quoted


CHUNK = 1 << 20
"""Tokens that are looked at together: so many that the fixed cost of array operations does not count."""


def _last(starts: Int64Array, offsets: Int64Array) -> BoolArray:
    """Which of the turns that begin at `starts` are the last of their example."""
    examples = np.searchsorted(offsets, starts, "right")
    return np.append(np.diff(examples) > 0, np.ones(min(len(examples), 1), bool))


def _within(starts: Int64Array, ends: Int64Array, values: Int32Array) -> Int32Array:
    """`values` `[T]`, none below -100, in the ranges from `starts` to `ends`; -100 elsewhere."""
    borders = np.zeros(2 * len(starts) + 2, np.int64)
    borders[1:-1:2], borders[2:-1:2], borders[-1] = starts, ends, len(values)
    most = np.full(len(borders) - 1, np.iinfo(np.int32).max, np.int32)
    most[::2] = IGNORE_INDEX
    labels = np.repeat(most, borders[1:] - borders[:-1])
    return np.minimum(labels, values, out=labels)  # a third less than np.where takes


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeltMarkers:
    """The markers of a template in the spelling of a vocabulary (`spelt_markers` makes them)."""

    scanner: Scanner
    """Finds headers, then openings, then closings."""
    headers: int
    """How many markers are headers."""
    restarts: BoolArray
    """`[headers + openings]` behind which of them an example begins anew: BOS."""
    white: Int32Array
    """`[V]` 1 where an id ends in white space, 2 where it is nothing else."""
    indent: Int32Array
    """`[V]` bytes of white space with which each id begins."""

    def find(self, ids: Int32Array, offsets: Int64Array) -> Responses:
        """The turns in examples `ids` `[T]` that begin at `offsets` `[N + 1]`; those without a token are left out."""
        if not (filled := offsets[1:] > offsets[:-1]).all():
            offsets = offsets[np.append(True, filled)]
        hits = self.scanner.scan(ids, offsets)
        is_border = hits.marker < len(self.restarts)
        borders = _one_each(hits.take(is_border.nonzero()[0]))
        closings = _one_each(hits.take((~is_border).nonzero()[0]))
        quoted = self._quoted(borders)
        cited = borders.ends[:0]
        if quoted.any():
            cited = borders.ends[quoted & (borders.marker < self.headers)]
            closings = closings.take(np.flatnonzero(~np.isin(closings.starts, borders.starts[quoted])))
            borders = borders.take(np.flatnonzero(~quoted))
        starts, ends = self._turns(ids, offsets, borders, closings)
        if not (kept := ends > starts).all():
            starts, ends = starts[kept], ends[kept]
        return Responses(starts, ends, cited - 1 >> self.scanner.bits)

    def _quoted(self, borders: Hits) -> BoolArray:
        """Which headers and openings somebody quotes."""
        genuine = borders.anchored.copy()
        genuine[:1] = True
        genuine[1:] |= borders.rows[1:] > borders.rows[:-1]
        genuine[1:] |= self.restarts.take(borders.marker[:-1])
        if genuine.all():
            return ~genuine
        header = borders.marker < self.headers
        quoted: BoolArray = ~genuine & (header | ~_cut_off(borders.rows, header, genuine))
        return quoted

    def _turns(
        self, ids: Int32Array, offsets: Int64Array, borders: Hits, closings: Hits
    ) -> tuple[Int64Array, Int64Array]:
        """The tokens that lie wholly between each header and its terminator, or else the next header of any role."""
        headers = (borders.marker < self.headers).nonzero()[0]
        starts, rows = borders.ends.take(headers), borders.rows.take(headers)
        row_ends = offsets[1:].take(rows) << self.scanner.bits
        places, behind = np.concatenate((borders.starts, NEVER)), headers + 1
        while (early := places.take(behind) < starts).any():  # a marker that overlaps the header
            behind += early
        limits = np.minimum(places.take(behind), row_ends)
        at = closings.starts.searchsorted(starts)
        stops = np.concatenate((closings.starts, NEVER)).take(at)
        closed = (stops <= limits) & (stops < row_ends)
        ends = np.where(closed, np.concatenate((closings.ends, NEVER)).take(at), limits) >> self.scanner.bits
        starts = (starts - 1 >> self.scanner.bits) + 1
        self._strip(ids, starts, ends, limits, ~closed)
        return starts, ends

    def _strip(
        self, ids: Int32Array, starts: Int64Array, ends: Int64Array, limits: Int64Array, open_: BoolArray
    ) -> None:
        """Move the ends of turns without a terminator before the tokens that end in white space there."""
        if not open_.any():
            return
        within = limits & (1 << self.scanner.bits) - 1  # bytes of a token that holds the beginning of the next marker
        moving = np.flatnonzero(open_ & (ends > starts))
        partial = np.flatnonzero(within[moving] > 0)
        if len(partial):
            solid = within[moving[partial]] > self.indent[ids[ends[moving[partial]]]]
            moving = np.delete(moving, partial[solid])
        while len(moving):
            white = self.white[ids[ends[moving] - 1]]
            ends[moving] -= white > 0
            moving = moving[(white == 2) & (ends[moving] > starts[moving])]


NEVER = np.array([np.iinfo(np.int64).max])
"""A place behind all others."""


def _one_each(hits: Hits) -> Hits:
    """The hits in order, and at every place the first of the markers that stand there."""
    if (hits.starts[1:] > hits.starts[:-1]).all():
        return hits
    hits = hits.take(np.lexsort((hits.marker, hits.starts)))
    return hits.take(np.flatnonzero(np.append(True, np.diff(hits.starts) > 0)))


def _cut_off(example: Int64Array, header: BoolArray, genuine: BoolArray) -> BoolArray:
    """Which markers stand in a turn of the assistant that a header follows.

    They may begin an example that was put behind a turn cut short, so the turn ends there, to be safe.
    """
    places = np.flatnonzero(genuine)
    number = np.cumsum(genuine)  # genuine ones up to each marker
    inner = (number > 0) & (number < len(places))
    before, after = places[number[inner] - 1], places[number[inner]]
    cut = np.zeros(len(header), bool)
    cut[inner] = header[before] & header[after] & (example[after] == example[inner])
    return cut


def spelt_markers(
    table: Sequence[bytes], markers: Markers, anchors: Sequence[bytes], restarts: Sequence[bytes]
) -> SpeltMarkers:
    """Markers in the ids that `table` `[V]` spells.

    `markers` are made by `spelt_marker`: headers and openings longest first, of closings that stand at one place the
    last counts. `anchors` are what stands before each header, then before each opening, empty where that may be
    anything; `restarts` are the openings behind which an example begins anew.
    """
    borders = [*markers.headers, *markers.openings]
    wanted = [*borders, *reversed(markers.closings)]
    return SpeltMarkers(
        scanner=scanner_for(table, wanted, [*anchors, *(b"" for _ in markers.closings)]),
        headers=len(markers.headers),
        restarts=np.array([marker.text in restarts for marker in borders], bool),
        white=np.array([word[-1:].isspace() + word.isspace() for word in table], np.int32),
        indent=np.array([len(word) - len(word.lstrip()) for word in table], np.int32),
    )


def control(token: int) -> bytes:
    """How a control token is spelled: as no text is, since these bytes are no UTF-8."""
    return b"\xff" + bytes(0x80 | token >> shift & 0x3F for shift in (18, 12, 6, 0))


def spelt_marker(text: bytes) -> Marker:
    """A marker as it is spelled, and the control token that it begins with."""
    digits = [byte & 0x3F for byte in text[1:5]]
    token = digits[0] << 18 | digits[1] << 12 | digits[2] << 6 | digits[3] if text[:1] == b"\xff" else None
    return Marker(text, token)
