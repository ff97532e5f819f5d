"""Markers among ids, byte by byte: a text is found however its tokens were cut, without spelling out the batch.

The ids of a plain-text marker depend on its neighbours (`### Response:` is another sequence behind a line break than
at the start of a text), its bytes do not. A marker is therefore compiled against the vocabulary into a **trail**: the
tokens in which it may begin, and for every number of its bytes that are matched, the tokens that may come next. Both
are short lists, so that after one pass over the ids (who begins a marker?) only a few places are left to follow.

A control token in a marker is matched by its id alone: text that merely spells it is no marker.

Places are numbers that order bytes within the batch: `token << SHIFT | byte within the token`.

Cost: one pass over the ids for all markers together; compiling looks at the vocabulary once per marker.
"""

import bisect
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from premask.dtypes import BoolArray, Int32Array, Int64Array

SHIFT = 20
"""Bits of a place that count bytes within a token."""

WHITE, WHITE_END, BREAKS, BREAK = 1, 2, 4, 8
"""What bytes end in, as flags: they are nothing but white space (or nothing at all), white space ends them, they are
nothing but line breaks; and `BREAK` times the number of line breaks at their end, 7 at most.
"""

Element = bytes | int
"""A part of a marker: plain text, or the id of a control token."""


def ending(text: bytes) -> int:
    """What a text ends in: WHITE, WHITE_END, BREAKS and BREAK."""
    breaks = min(len(text) - len(text.rstrip(b"\n")), 7)
    white = not text.strip()
    return WHITE * white | WHITE_END * text[-1:].isspace() | BREAKS * (breaks == len(text)) | BREAK * breaks


@dataclass(frozen=True, slots=True)
class Step:
    """Tokens by which a marker begins or goes on."""

    ids: Int32Array
    """`[K]` ascending."""
    state: int
    """Bytes of the marker that are matched behind them."""
    skipped: Int32Array
    """`[K]` bytes of each token before the marker begins; 0 where it goes on."""
    before: Int32Array
    """`[K]` what those bytes end in (WHITE and so on)."""
    inside: Int32Array
    """`[K]` bytes of each token up to the marker's end where it ends within the token, else 0."""


@dataclass(frozen=True, slots=True)
class Trail:
    """A marker as the tokens that spell it."""

    length: int
    """Bytes of the marker."""
    starts: tuple[Step, ...]
    steps: Mapping[int, tuple[Step, ...]]
    """By the number of bytes that are matched."""


@dataclass(frozen=True, slots=True)
class Hits:
    """Places where a marker stands, ascending."""

    starts: Int64Array
    ends: Int64Array
    before: Int32Array
    """What the bytes end in that the first token holds before the marker (WHITE and so on)."""


class Spelling:
    """A vocabulary, ready for compiling markers."""

    def __init__(self, table: Sequence[bytes], controls: frozenset[int]) -> None:
        """`table` `[V]` holds the bytes of every id; `controls` are the ids that are never plain text."""
        self.table = table
        self.controls = controls
        self.by_bytes: dict[bytes, list[int]] = {}
        for i, spelt in enumerate(table):
            if spelt and i not in controls:
                self.by_bytes.setdefault(spelt, []).append(i)

    @functools.cached_property
    def _sorted(self) -> list[bytes]:
        return sorted(self.by_bytes)

    def beginning_with(self, prefix: bytes) -> list[bytes]:
        """The tokens that go on beyond `prefix`."""
        words = self._sorted
        first, last = bisect.bisect_right(words, prefix), bisect.bisect_left(words, prefix + b"\xff" * 8)
        return words[first:last]

    def trail(self, elements: Sequence[Element]) -> Trail:
        """Compile a marker."""
        flat = [e if isinstance(e, bytes) else self.table[e] for e in elements]
        borders = np.cumsum([0, *map(len, flat)]).tolist()
        length = borders[-1]
        steps: dict[int, tuple[Step, ...]] = {}
        for element, start, end in zip(elements, borders, borders[1:], strict=False):
            if isinstance(element, int):
                steps[start] = (_step([(element, 0, b"", 0)], end),)
                continue
            for at in range(start, end):
                steps[at] = tuple(self._next(element[at - start :], at, last=end == length))
        first = elements[0]
        starts = steps[0] if isinstance(first, int) else tuple(self._first(first, whole=len(elements) == 1))
        return Trail(length, starts, steps)

    def _next(self, rest: bytes, state: int, *, last: bool) -> list[Step]:
        """How plain text goes on: tokens that are its next bytes, and, at a marker's end, tokens that hold more."""
        found = []
        for size in range(1, len(rest) + 1):
            ids = self.by_bytes.get(rest[:size], [])
            if ids:
                found.append(_step([(i, 0, b"", 0) for i in ids], state + size))
        longer = (
            [(i, 0, b"", len(rest)) for word in self.beginning_with(rest) for i in self.by_bytes[word]] if last else []
        )
        return [*found, _step(longer, state + len(rest))] if longer else found

    def _first(self, text: bytes, *, whole: bool) -> list[Step]:
        """Tokens in which plain text begins; `whole` says that it is all there is of the marker."""
        groups: dict[tuple[int, int], list[tuple[int, int, bytes, int]]] = {}
        for word, ids in self.by_bytes.items():
            at, order = word.find(text[0]), 0
            while at >= 0:
                tail = word[at:]
                if text.startswith(tail):
                    key, inside = (len(tail), -1), 0
                elif whole and tail.startswith(text):
                    key, inside, order = (len(text), order), at + len(text), order + 1
                else:
                    at = word.find(text[0], at + 1)
                    continue
                groups.setdefault(key, []).extend((i, at, word[:at], inside) for i in ids)
                at = word.find(text[0], at + 1)
        return [_step(group, state) for (state, _), group in sorted(groups.items())]


def _step(tokens: list[tuple[int, int, bytes, int]], state: int) -> Step:
    """From tokens with the bytes that each skips, as a count and as they are, and the bytes up to a marker's end."""
    ordered = sorted(tokens)
    return Step(
        ids=np.array([t[0] for t in ordered], np.int32),
        state=state,
        skipped=np.array([t[1] for t in ordered], np.int32),
        before=np.array([ending(t[2]) for t in ordered], np.int32),
        inside=np.array([t[3] for t in ordered], np.int32),
    )


def find(ids: Int32Array, offsets: Int64Array, trails: Sequence[Trail], beginning: Int32Array, size: int) -> list[Hits]:
    """Where each marker stands in the rows of `ids` `[T]` that begin at `offsets` `[N + 1]`.

    `beginning` are the ids in which any of the markers may begin, `size` is that of the vocabulary.
    """
    tokens = places_of(ids, beginning, size)
    fresh = np.zeros(len(ids) + 1, bool)
    fresh[offsets] = True  # no marker goes on there
    first = ids[tokens]
    return [_follow(ids, fresh, tokens, first, trail) for trail in trails]


_FEW = 6


def places_of(ids: Int32Array, wanted: Int64Array | Int32Array, size: int) -> Int64Array:
    """Where any of the `wanted` ids stands in `ids` `[T]`, ascending; ids are below `size`.

    By comparing where few are wanted, since that is ten times faster than looking up.
    """
    found = np.zeros(-(-len(ids) // 8) * 8, bool)
    here = found[: len(ids)]
    if len(wanted) <= _FEW:
        for i in wanted:
            here |= ids == i
    else:
        table = np.zeros(size, bool)
        table[wanted] = True
        table.take(ids, out=here, mode="clip")
    eights = np.flatnonzero(found.view(np.uint64))  # mostly nothing: eight at a time
    which, byte = np.nonzero(found.reshape(-1, 8)[eights])
    return eights[which] * 8 + byte


def beginning(trails: Sequence[Trail]) -> Int32Array:
    """The ids in which any of the markers may begin, ascending."""
    return np.unique(np.concatenate([np.zeros(0, np.int32), *(step.ids for trail in trails for step in trail.starts)]))


def _follow(ids: Int32Array, fresh: BoolArray, tokens: Int64Array, first: Int32Array, trail: Trail) -> Hits:
    """The hits of one marker among `tokens`, the places of the ids `first`, in which it may begin."""
    waiting: dict[int, list[_Path]] = {}
    done = []

    def advance(step: Step, path: _Path) -> None:
        if step.state < trail.length:
            waiting.setdefault(step.state, []).append(_Path(path.starts, path.before, path.at + 1))
            return
        ends = (path.at + 1) << SHIFT
        if step.inside.any():
            ends += step.inside[np.searchsorted(step.ids, ids[path.at])] - (1 << SHIFT)
        done.append((path.starts, ends, path.before))

    for step in trail.starts:
        which, place = _members(step, first)
        at = tokens[which]
        advance(step, _Path((at << SHIFT) | step.skipped[place], step.before[place], at))
    for state in range(1, trail.length):
        for path in waiting.pop(state, ()):
            within = path.take(np.flatnonzero(~fresh[path.at]))
            following = ids[within.at]
            for step in trail.steps[state]:
                which, _ = _members(step, following)
                if len(which):
                    advance(step, within.take(which))
    return _ordered(done)


@dataclass(frozen=True, slots=True)
class _Path:
    """Places where a marker has matched so far."""

    starts: Int64Array
    before: Int32Array
    at: Int64Array
    """The token that comes next (or, while a step is taken, the last)."""

    def take(self, which: Int64Array) -> "_Path":
        if len(which) == len(self.at):
            return self
        return _Path(self.starts[which], self.before[which], self.at[which])


def _members(step: Step, tokens: Int32Array) -> tuple[Int64Array, Int64Array]:
    """Which of `tokens` are among a step's, and where they stand in it."""
    if len(step.ids) == 1:
        which = np.flatnonzero(tokens == step.ids[0])
        return which, np.zeros(len(which), np.int64)
    place = np.minimum(np.searchsorted(step.ids, tokens), len(step.ids) - 1)
    which = np.flatnonzero(step.ids[place] == tokens)
    return which, place[which]


def _ordered(found: list[tuple[Int64Array, Int64Array, Int32Array]]) -> Hits:
    if not found:
        return Hits(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int32))
    if len(found) == 1:
        return Hits(*found[0])
    starts, ends, before = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(starts, kind="stable")
    return Hits(starts[order], ends[order], before[order])
