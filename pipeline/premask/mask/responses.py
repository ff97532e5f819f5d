"""Labels from ids alone: what is trained of rows that somebody else rendered and tokenized.

Markers are compared as bytes, because the ids of plain text depend on its neighbours (`### Response:` behind a line
break is another sequence than at a text's start). Only the tokens in which one may begin are spelled out, and behind
them those in which it may go on, each run apart from the next; the result is searched as `prepare` searches its texts
(`search.py`). A control token is spelled as its id: text that merely looks like one is no marker.

The template writes the same text before a marker, its **anchor** (ChatML: `<|im_end|>` and a line break). A marker
without its anchor is somebody's quotation and begins nothing, unless it is the first of an example. What a quotation
cannot be told from, a text that spells out a whole border between two turns, is taken for one.

Cost: one lookup per token, a few operations per token that may belong to a marker, one pass to write the labels.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from premask.dtypes import IGNORE_INDEX, BoolArray, Int32Array, Int64Array, offsets_of
from premask.mask.search import Haystack, Marker, Markers, find, turns_between


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
    or else the labels `given` `[T]`, so that what those mask stays masked. The counts are `[N]` int64.
    """
    values = ids if given is None else given
    parts, quoted = [values[:0]], np.zeros(len(offsets) - 1, np.int64)
    firsts = np.unique(np.searchsorted(offsets, np.arange(0, len(ids), CHUNK))).tolist()
    for first, behind in itertools.pairwise([*firsts, len(quoted)]):
        tokens = slice(int(offsets[first]), int(offsets[behind]))
        borders = offsets[first : behind + 1] - tokens.start
        found = markers.find(ids[tokens], borders)
        last = _last(found.starts, borders) if last_response_only else slice(None)
        parts.append(_within(found.starts[last], found.ends[last], values[tokens]))
        if len(found.quoted):
            np.add.at(quoted, first + np.searchsorted(borders, found.quoted, "right") - 1, 1)
    return np.concatenate(parts) if len(parts) != 2 else parts[1], quoted


CHUNK = 1 << 19
"""Tokens that are looked at together: as many as stay in a core's cache."""


def _last(starts: Int64Array, offsets: Int64Array) -> BoolArray:
    """Which of the turns that begin at `starts` are the last of their example."""
    examples = np.searchsorted(offsets, starts, "right")
    return np.append(np.diff(examples) > 0, np.ones(min(len(examples), 1), bool))


def _within(starts: Int64Array, ends: Int64Array, values: Int32Array) -> Int32Array:
    """`values` `[T]` in the ranges from `starts` to `ends`, -100 elsewhere."""
    borders = np.stack([starts, ends], axis=1).ravel()
    inside = np.zeros(len(borders) + 1, np.int32)
    inside[1::2] = -1
    labels = values ^ np.int32(IGNORE_INDEX)  # by bits: a third of the time of np.where
    labels &= np.repeat(inside, np.diff(borders, prepend=0, append=len(values)))
    labels ^= np.int32(IGNORE_INDEX)
    return labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """What V ids spell, and which of them markers are made of."""

    raw: NDArray[np.uint8]
    """The bytes of all ids end to end, a NUL behind each."""
    starts: Int64Array
    """`[V]` where each id's bytes begin in `raw`."""
    sizes: Int64Array
    """`[V]` how many there are."""
    begins: BoolArray
    """`[V]` in which ids a marker may begin."""
    goes_on: BoolArray
    """`[V]` in which ids it may go on."""
    leads: BoolArray
    """`[V]` in which ids its anchor may stand."""
    longest: int
    """Bytes of the longest marker or anchor."""
    white: Int32Array
    """`[V]` 1 where an id ends in white space, 2 where it is nothing else."""


def spelling_of(table: Sequence[bytes], markers: Sequence[bytes], anchors: Sequence[bytes]) -> Spelling:
    """Make the bytes of V ids searchable for markers: one pass over the vocabulary."""
    whole, before = b"\0\0".join(markers), b"\0\0".join(anchors)
    heads = tuple({text[:n] for text in markers for n in range(1, len(text) + 1)})
    tails = tuple({text[n:] for text in markers for n in range(1, len(text))})
    first = tuple({text[:n] for text in anchors for n in range(1, len(text) + 1)})
    sizes = np.array([len(word) for word in table], np.int64)
    return Spelling(
        raw=np.frombuffer(b"\0".join([*table, b""]), np.uint8),
        starts=offsets_of(sizes + 1)[:-1],
        sizes=sizes,
        begins=np.array([word.endswith(heads) or any(text in word for text in markers) for word in table], bool),
        goes_on=np.array([word in whole or word.startswith(tails) for word in table], bool),
        leads=np.array([word in before or word.endswith(first) for word in table], bool),
        longest=max(map(len, [*markers, *anchors])),
        white=np.array([word[-1:].isspace() + word.isspace() for word in table], np.int32),
    )


def control(token: int) -> bytes:
    """How a control token is spelled: as no text is, since these bytes are no UTF-8."""
    return b"\xff" + bytes(0x80 | token >> shift & 0x3F for shift in (18, 12, 6, 0))


def spelt_marker(text: bytes) -> Marker:
    """A marker as it is spelled, and the control token that it begins with."""
    digits = [byte & 0x3F for byte in text[1:5]]
    token = digits[0] << 18 | digits[1] << 12 | digits[2] << 6 | digits[3] if text[:1] == b"\xff" else None
    return Marker(text, token)


FEW = 6
"""So many ids are compared one by one, which is faster than looking each token up."""


def _beginnings(ids: Int32Array, begins: BoolArray) -> BoolArray:
    """`[T]` in which tokens a marker may begin."""
    wanted = np.flatnonzero(begins)
    if len(wanted) > FEW:
        return begins.take(ids)
    found = np.zeros(len(ids), bool)
    for i in wanted.astype(np.int32):
        found |= ids == i
    return found


@dataclass(frozen=True, slots=True)
class _Spelt:
    """The tokens of a batch that were spelled out."""

    hay: Haystack
    tokens: Int64Array
    """`[K]` which tokens of the batch."""
    ends: Int64Array
    """`[K]` where the bytes of each end."""
    owners: Int64Array
    """`[B]` which of them each byte, or the NUL behind it, belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeltMarkers:
    """The markers of a template in the spelling of a vocabulary (`sought.py` makes them)."""

    spelling: Spelling
    markers: Markers
    """Made by `spelt_marker`; headers and openings longest first."""
    anchors: tuple[bytes, ...]
    """What stands before each header, then before each opening; empty where that may be anything."""
    restarts: tuple[bytes, ...]
    """Openings behind which an example begins anew: BOS."""

    def find(self, ids: Int32Array, offsets: Int64Array) -> Responses:
        """The turns in examples `ids` `[T]` that begin at `offsets` `[N + 1]`; those without a token are left out."""
        spelt = self._spell(ids, offsets[np.append(True, np.diff(offsets) > 0)])
        hits = find(spelt.hay, [*self.markers.headers, *self.markers.closings, *self.markers.openings])
        places, quoted = self._quotations(spelt.hay, hits)
        if len(places):
            hits = [at[~_among(at, places)] for at in hits]
        first, behind = turns_between(spelt.hay, self.markers, hits)
        starts = _tokens_behind(spelt, first)
        ends = self._tokens_before(ids, spelt, starts, behind)
        kept = ends > starts
        return Responses(starts[kept], ends[kept], _tokens_behind(spelt, quoted) - 1)

    def _spell(self, ids: Int32Array, offsets: Int64Array) -> _Spelt:
        """Spell out what may be a marker, and the last token of every example, so that its end is known."""
        due = _beginnings(ids, self.spelling.begins)
        beginnings = np.flatnonzero(due)
        for step, belongs in ((1, self.spelling.goes_on), (-1, self.spelling.leads)):
            front = beginnings
            for _ in range(self.spelling.longest):
                front = front + step
                front = front[(front >= 0) & (front < len(ids))]
                front = front[belongs[ids[front]] & ~due[front]]
                if not len(front):
                    break
                due[front] = True
        due[offsets[1:] - 1] = True
        tokens = np.flatnonzero(due)
        firsts = np.searchsorted(tokens, offsets)  # of every example, among these tokens
        apart = np.ones(len(tokens), bool)
        apart[:-1] = np.diff(tokens) > 1
        apart[firsts[1:] - 1] = True
        which = ids[tokens]
        lengths = self.spelling.sizes[which] + apart  # with the NUL behind it
        places = offsets_of(lengths)
        owners = np.repeat(np.arange(len(tokens)), lengths)
        source = (self.spelling.starts[which] - places[:-1])[owners]
        source += np.arange(places[-1])
        raw = np.append(self.spelling.raw[source], np.zeros(8, np.uint8))
        hay = Haystack(raw, which, places[:-1], places[firsts])
        return _Spelt(hay, tokens, places[1:] - apart, owners)

    def _quotations(self, hay: Haystack, hits: Sequence[Int64Array]) -> tuple[Int64Array, Int64Array]:
        """Where markers stand that somebody quotes, ascending, and where those that are headers end."""
        n, c = len(self.markers.headers), len(self.markers.closings)
        borders, hits = [*self.markers.headers, *self.markers.openings], [*hits[:n], *hits[n + c :]]
        at = np.concatenate(hits)
        which = np.repeat(np.arange(len(borders)), [len(h) for h in hits])
        order = np.argsort(at, kind="stable")  # at one place a header comes first, then the longest
        at, which = at[order], which[order]
        if not (np.diff(at) > 0).all():
            single = np.append(True, np.diff(at) > 0)
            at, which = at[single], which[single]
        genuine = self._first(hay, at, which) | self._anchored(hay.raw, at, which)
        if genuine.all():
            return at[:0], at[:0]
        header = which < n
        quoted = ~genuine & (header | ~_cut_off(np.searchsorted(hay.bases, at, "right"), header, genuine))
        cited = quoted & header
        return at[quoted], at[cited] + np.array([len(m.text) for m in borders])[which[cited]]

    def _first(self, hay: Haystack, at: Int64Array, which: Int64Array) -> BoolArray:
        """Which markers are the first of their example, or follow one behind which an example begins."""
        first = np.zeros(len(at) + 1, bool)
        first[np.searchsorted(at, hay.bases[:-1])] = True
        restart = [m.text in self.restarts for m in (*self.markers.headers, *self.markers.openings)]
        first[1:] |= np.array(restart, bool)[which]
        return first[:-1]

    def _anchored(self, raw: NDArray[np.uint8], at: Int64Array, which: Int64Array) -> BoolArray:
        """Which markers stand behind their anchor, or need none."""
        anchored = np.zeros(len(at), bool)
        for text in set(self.anchors):
            mine = np.array([anchor == text for anchor in self.anchors], bool)[which]
            before = at[:, None] - np.arange(len(text), 0, -1)
            anchored |= mine & (raw[np.maximum(before, 0)] == np.frombuffer(text, np.uint8)).all(axis=1)
        return anchored

    def _tokens_before(self, ids: Int32Array, spelt: _Spelt, starts: Int64Array, places: Int64Array) -> Int64Array:
        """The token behind the last one that lies wholly before each place, which is the end of a turn.

        Where a turn has no terminator the search leaves out white space at its end, as far as it is spelled out; here
        follow the tokens before, which end in white space.
        """
        last = spelt.owners[places - 1]
        gap = places > spelt.ends[last]
        ends: Int64Array = spelt.tokens[last + gap] + (places == spelt.ends[last])
        moving = np.flatnonzero(gap & (ends > starts))
        while len(moving):
            white = self.spelling.white[ids[ends[moving] - 1]]
            ends[moving] -= white > 0
            moving = moving[(white == 2) & (ends[moving] > starts[moving])]
        return ends


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


def _among(values: Int64Array, places: Int64Array) -> BoolArray:
    """Which values are among places, which ascend."""
    at = np.searchsorted(places, values)
    among: BoolArray = np.append(places, -1)[at] == values
    return among


def _tokens_behind(spelt: _Spelt, places: Int64Array) -> Int64Array:
    """The first token that lies wholly behind each place, which is the end of a marker."""
    behind: Int64Array = spelt.tokens[spelt.owners[places - 1]] + 1
    return behind
