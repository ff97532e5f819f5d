"""Turns found by their markers alone: vectorized search over the flat ids and bytes of a batch.

The second way to the same spans, which knows nothing of how a text came about. A turn starts behind an assistant
header and ends behind the next terminator, or before the next header of any role. Markers that begin with a control
token are looked for among the ids and compared by their bytes from there; markers of plain text are looked for among
the bytes, because their ids depend on their neighbours.

No Python loop over tokens, turns or rows: one pass over the ids (or bytes) for every distinct marker, then sorted
arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from premask.dtypes import BoolArray, Int32Array, Int64Array, offsets_of
from premask.mask.places import sparse

Bytes = NDArray[np.uint8]

WHITE = np.zeros(256, bool)
WHITE[[9, 10, 11, 12, 13, 32]] = True


@dataclass(frozen=True, slots=True)
class Marker:
    """A text that marks a turn's border, and the control token it begins with, if it does."""

    text: bytes
    token: int | None


@dataclass(frozen=True, slots=True)
class Markers:
    """The markers of a chat template."""

    headers: tuple[Marker, ...]
    """What stands before an assistant's own words; of several that fit at one place the longest counts."""
    closings: tuple[Marker, ...]
    """What an assistant's turn ends with."""
    openings: tuple[Marker, ...]
    """What every other role's turn begins with."""
    prompts: tuple[Marker, ...] = ()
    """The headers that are whole generation prompts: a message may write the end of one itself."""


@dataclass(frozen=True, slots=True)
class Haystack:
    """A batch as one stretch of bytes: texts one NUL apart, so that no marker spans two of them."""

    raw: Bytes
    """`[B]` UTF-8 of all texts."""
    ids: Int32Array
    """`[T]` their ids, or those of them that a marker may begin with."""
    places: Int64Array
    """`[T]` where each id begins in `raw`."""
    bases: Int64Array
    """`[N + 1]` where each text begins in `raw`, and where one more would."""


def haystack(texts: Sequence[str], ids: Int32Array, places: NDArray[np.signedinteger[Any]]) -> Haystack:
    """Lay a batch out for searching: `ids` `[T]` that begin at `places` `[T]`, all that markers may begin with."""
    encoded = [text.encode() for text in texts]
    raw = np.frombuffer(b"\0".join([*encoded, bytes(_WORD)]), np.uint8)
    bases = offsets_of(np.fromiter(map(len, encoded), np.int64, len(encoded)) + 1)
    return Haystack(raw, ids, places.astype(np.int64, copy=False), bases)


def find(hay: Haystack, markers: Sequence[Marker]) -> list[Int64Array]:
    """Every place in `hay.raw` where each marker stands, ascending."""
    words = _words(hay.raw)
    seen: dict[tuple[int, int], tuple[Int64Array, NDArray[np.uint64]]] = {}

    def word(token: int, offset: int) -> tuple[Int64Array, NDArray[np.uint64]]:
        """Where a token stands, and the word at `offset` behind each place: the same for all markers that begin so."""
        if (token, offset) not in seen:
            places = hay.places[np.flatnonzero(hay.ids == token)] if not offset else word(token, 0)[0]
            seen[token, offset] = places, words[np.minimum(places + offset, len(words) - 1)]
        return seen[token, offset]

    found = []
    for marker in markers:
        if marker.token is None:
            found.append(find_bytes(hay.raw, marker.text))
            continue
        places = word(marker.token, 0)[0]
        same = places + len(marker.text) <= len(hay.raw)
        for offset in range(0, len(marker.text), _WORD):
            same &= _equal(word(marker.token, offset)[1], marker.text[offset : offset + _WORD])
        found.append(places[same])
    return found


def find_bytes(raw: Bytes, text: bytes) -> Int64Array:
    """Every place where `text` stands in `raw`, overlapping ones included, ascending. `raw` ends with 8 NULs."""
    if not text:
        return np.zeros(0, np.int64)
    counts = np.bincount(raw[:4096], minlength=256)
    rarest = min(range(len(text)), key=lambda i: int(counts[text[i]]))
    found = np.zeros(len(raw) + 7 & ~7, bool)
    np.equal(raw, text[rarest], out=found[: len(raw)])
    places = sparse(found) - rarest
    return _matching(raw, places[places >= 0], text)


_WORD = 8


def _matching(raw: Bytes, places: Int64Array, text: bytes) -> Int64Array:
    """Those `places` at which `text` stands, compared eight bytes at a time."""
    words = _words(raw)
    for i in range(0, len(text), _WORD):
        places = places[places + i < len(words)]
        places = places[_equal(words[places + i], text[i : i + _WORD])]
    return places


def _words(raw: Bytes) -> NDArray[np.uint64]:
    """A word of eight bytes at every byte but the last seven, aligned or not; no copy."""
    return np.ndarray(len(raw) - _WORD + 1, "<u8", raw.data, 0, (1,))


def _equal(words: NDArray[np.uint64], part: bytes) -> BoolArray:
    """Which words begin with the bytes `part`, eight at the most."""
    mask = np.uint64((1 << 8 * len(part)) - 1)
    equal: BoolArray = words & mask == np.uint64(int.from_bytes(part, "little"))
    return equal


def search(hay: Haystack, markers: Markers, inside: "Intervals | None" = None) -> tuple[Int64Array, Int64Array, int]:
    """Turns by their markers: starts and ends in `hay.raw`, ascending by start; and how many hits were set aside.

    Hits in a message's own text (`inside`) are set aside: a whole generation prompt only where it lies there wholly,
    since a message may write its end; the other markers, which the template always writes, at any touch.
    """
    wanted = [*markers.headers, *markers.closings, *markers.openings]
    hits = find(hay, wanted)
    aside = 0
    if inside is not None:
        tests = [inside.contain if m in markers.prompts else inside.touch for m in wanted]
        within = [test(h, h + len(m.text)) for test, h, m in zip(tests, hits, wanted, strict=True)]
        aside = sum(int(w.sum()) for w in within)
        hits = [h[~w] for h, w in zip(hits, within, strict=True)]
    return *turns_between(hay, markers, hits), aside


def turns_between(hay: Haystack, markers: Markers, hits: Sequence[Int64Array]) -> tuple[Int64Array, Int64Array]:
    """Starts and ends of the turns, ascending; `hits` are those of the headers, the closings, then the openings."""
    n, c = len(markers.headers), len(markers.closings)
    headers = sorted(zip((len(m.text) for m in markers.headers), hits, strict=False), key=lambda pair: pair[0])
    places = np.sort(np.concatenate([np.zeros(0, np.int64), *hits[:n]]))
    places = places[np.append(True, np.diff(places) > 0)[: len(places)]]  # np.unique takes ten times as long
    starts = np.zeros(len(places), np.int64)
    for length, found in headers:  # longer ones last, so that they win
        starts[np.searchsorted(places, found)] = found + length
    closings = [(h, len(m.text)) for h, m in zip(hits[n : n + c], markers.closings, strict=True)]
    openings = hits[n + c :]
    ends, closed = _ends(hay, starts, closings, np.concatenate([places, *openings]))
    ends = np.where(closed, ends, _stripped(hay.raw, starts, ends))
    filled = ends > starts
    return starts[filled], ends[filled]


def _ends(
    hay: Haystack, starts: Int64Array, closings: list[tuple[Int64Array, int]], openings: Int64Array
) -> tuple[Int64Array, BoolArray]:
    """Where each turn ends: behind its terminator, else before the next header or the end of its text; and which it
    is.
    """
    row_ends = hay.bases[np.searchsorted(hay.bases, starts, "right")] - 1
    ends = _next(np.sort(openings), starts, row_ends)
    closed = np.zeros(len(starts), bool)
    stops, closing_ends = ends.copy(), ends.copy()
    for found, length in closings:
        nearest = _next(found, starts, row_ends)
        better = (nearest <= stops) & (nearest < row_ends)  # a next header may itself be the stop token
        stops[better], closing_ends[better] = nearest[better], nearest[better] + length
        closed |= better
    return np.where(closed, closing_ends, ends), closed


def _next(places: Int64Array, starts: Int64Array, otherwise: Int64Array) -> Int64Array:
    """The first of `places` (ascending) at or behind each start, within its text."""
    if not len(places):
        return otherwise.copy()
    at = np.searchsorted(places, starts, "left")
    found = places[np.minimum(at, len(places) - 1)]
    return np.where((at < len(places)) & (found < otherwise), found, otherwise)


def _stripped(raw: Bytes, starts: Int64Array, ends: Int64Array) -> Int64Array:
    """`ends` moved before the white space that precedes them."""
    ends = ends.copy()
    moving = np.flatnonzero(ends > starts)
    while len(moving):
        moving = moving[WHITE[raw[ends[moving] - 1]]]
        ends[moving] -= 1
        moving = moving[ends[moving] > starts[moving]]
    return ends


@dataclass(frozen=True, slots=True)
class Intervals:
    """Disjoint stretches of `raw`, ascending."""

    starts: Int64Array
    ends: Int64Array

    def contain(self, starts: Int64Array, ends: Int64Array) -> BoolArray:
        """Which of the stretches from `starts` to `ends` lie wholly inside one of these."""
        if not len(self.starts):
            return np.zeros(len(starts), bool)
        at = np.maximum(np.searchsorted(self.starts, starts, "right") - 1, 0)
        within: BoolArray = (self.starts[at] <= starts) & (ends <= self.ends[at])
        return within

    def touch(self, starts: Int64Array, ends: Int64Array) -> BoolArray:
        """Which of the stretches from `starts` to `ends` share a byte with one of these."""
        if not len(self.starts):
            return np.zeros(len(starts), bool)
        at = np.searchsorted(self.ends, starts, "right")
        nearest = self.starts[np.minimum(at, len(self.starts) - 1)]
        touching: BoolArray = (at < len(self.starts)) & (nearest < ends)
        return touching


def differing(
    found: tuple[Int64Array, Int64Array], expected: tuple[Int64Array, Int64Array], bases: Int64Array
) -> BoolArray:
    """`[N]` the texts in which two sets of spans (starts and ends in `raw`, starts distinct) are not the same."""
    bad = np.zeros(len(bases) - 1, bool)
    if all(map(np.array_equal, found, expected)):  # as in nearly every batch
        return bad
    for mine, others in ((found, expected), (expected, found)):
        order = np.argsort(others[0])
        starts, ends = others[0][order], others[1][order]
        at = np.minimum(np.searchsorted(starts, mine[0]), max(len(starts) - 1, 0))
        same = (starts[at] == mine[0]) & (ends[at] == mine[1]) if len(starts) else np.zeros(len(mine[0]), bool)
        bad[np.searchsorted(bases, mine[0][~same], "right") - 1] = True
    return bad
