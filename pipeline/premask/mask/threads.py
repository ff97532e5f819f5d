"""What each id of a vocabulary means to a search for markers, worked out once: the tables of a `Scanner`.

An id has to do with a marker if its bytes fit somewhere: within it, or over one of its ends. Markers of which none
begins another one are read together, as a **group**, so that what they have in common is read once.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from premask.dtypes import Int64Array, offsets_of
from premask.mask.scanner import Scanner
from premask.mask.search import Marker

State = tuple[int, bytes]
"""Onward: a group, and what has been read of its markers. Back: MARKER or ANCHOR, and what has yet to be read of it."""

MARKER, ANCHOR = 0, 1

NOTHING = 0
"""The code of a dead end; those of what is complete are negative (see `Scanner`)."""


@dataclass(frozen=True, slots=True)
class _Way:
    """A way for a token to hold a marker's pivot."""

    token: int
    marker: int
    start: int
    """Where in the marker the token begins; negative where it begins before."""


def scanner_for(table: Sequence[bytes], markers: Sequence[Marker], anchors: Sequence[bytes]) -> Scanner:
    """Tables to find M `markers` in the ids that `table` `[V]` spells; `anchors` `[M]` may stand before each."""
    related = _related(table, [marker.text for marker in markers], anchors)
    ways, held = _ways(table, related, markers)
    ids = [*held, *(i for i in related if i not in held)]
    kinds = np.zeros(len(table), np.int64)
    kinds[ids] = np.arange(1, len(ids) + 1)
    words = [table[i] for i in ids]
    texts = _Texts(markers, _groups(markers), max(map(len, table)).bit_length())
    onward, back = _Table(words, texts.onward), _Table(words, texts.back)
    found = {
        (
            int(kinds[way.token]),
            back.number(texts.before(table[way.token], way)),
            onward.number(texts.behind(table[way.token], way)),
        )
        for way in ways
    }
    back.filled()  # so that all beginnings are known
    anchored = [[back.number(texts.back((ANCHOR, text), word)) for text in anchors] for word in [*texts.beginnings]]
    states = back.filled()
    firsts, threads = _by_pairs(sorted(found), states, len(held) + 1)
    pairs = np.where(kinds <= len(held), kinds * states.shape[1], 0)
    return Scanner(
        bits=texts.bits,
        pivots=tuple(held),
        kinds=kinds,
        pairs=pairs,
        leading=firsts[1:] > firsts[:-1],
        firsts=firsts,
        shifts=threads[:, 0].copy(),
        before=threads[:, 1].copy(),
        behind=threads[:, 2].copy(),
        onward=onward.filled(),
        back=states,
        begun=np.array([*map(len, texts.beginnings)], np.int64),
        anchors=np.array(anchored, np.int64).reshape(-1, len(markers)),
    )


def _by_pairs(found: Sequence[tuple[int, int, int]], back: Int64Array, pivots: int) -> tuple[Int64Array, Int64Array]:
    """Threads by the kind of their pivot and the kind before it.

    `found` are kinds of pivots with their states before and behind. Where the threads of each pair begin; and
    `[threads, 3]` whether the token before has been read, the state before, the state behind.
    """
    width = back.shape[1]
    pairs, threads = [np.zeros(0, np.int64)], [np.zeros((0, 3), np.int64)]
    for kind, before, behind in found:
        after = back[before] if before > 0 else np.full(width, before)
        earlier = np.flatnonzero(after)
        pairs.append(kind * width + earlier)
        shift = np.full(len(earlier), int(before > 0))
        threads.append(np.stack([shift, after[earlier], np.full(len(earlier), behind)], axis=1))
    every = np.concatenate(pairs)
    order = np.argsort(every, kind="stable")
    return offsets_of(np.bincount(every, minlength=pivots * width)), np.concatenate(threads)[order]


def _related(table: Sequence[bytes], markers: Sequence[bytes], anchors: Sequence[bytes]) -> list[int]:
    """The ids whose bytes fit somewhere in a marker or anchor, or over an end of one."""
    wholes = b"\0\0".join([*markers, *anchors])
    heads = tuple({text[:n] for text in (*markers, *anchors) for n in range(1, len(text) + 1)})
    tails = tuple({text[n:] for text in markers for n in range(1, len(text))})
    return [
        i
        for i, word in enumerate(table)
        if word in wholes or word.endswith(heads) or word.startswith(tails) or any(text in word for text in markers)
    ]


def _groups(markers: Sequence[Marker]) -> list[list[int]]:
    """Markers of which none begins another one, together; by their numbers."""
    groups: list[list[int]] = []
    for i, marker in enumerate(markers):
        for group in groups:
            others = [markers[j].text for j in group]
            if not any(marker.text.startswith(text) or text.startswith(marker.text) for text in others):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _ways(table: Sequence[bytes], related: Sequence[int], markers: Sequence[Marker]) -> tuple[list[_Way], list[int]]:
    """Choose a pivot for every marker, so that few ids hold one: all ways for them to do so, and these ids."""
    covers = [_covers(table, related, i, marker) for i, marker in enumerate(markers)]
    shared = Counter(token for some in covers for token in {way.token for cover in some for way in cover})
    chosen: list[list[_Way]] = [[] for _ in markers]

    def cost(cover: Sequence[_Way], held: set[int]) -> tuple[int, int]:
        """How many more ids to look for; among equals those that other markers may share."""
        tokens = {way.token for way in cover}
        return len(tokens - held), -min((shared[token] for token in tokens), default=0)

    for _ in range(2):  # in the second round it is known what the others hold
        for i, some in enumerate(covers):
            held = {way.token for ways in (*chosen[:i], *chosen[i + 1 :]) for way in ways}
            chosen[i] = min(some, key=partial(cost, held=held))
    ways = [way for ways in chosen for way in ways]
    return ways, sorted({way.token for way in ways})


def _covers(table: Sequence[bytes], related: Sequence[int], number: int, marker: Marker) -> list[list[_Way]]:
    """For every byte of a marker that may be its pivot, the ways to hold it."""
    if marker.token is not None:
        return [[_Way(marker.token, number, 0)]]  # nothing else is this token, whatever its bytes
    covers: list[list[_Way]] = [[] for _ in marker.text]
    for i in related:
        for start in _fitting(table[i], marker.text):
            for cover in covers[max(start, 0) : start + len(table[i])]:
                cover.append(_Way(i, number, start))
    return covers


def _fitting(word: bytes, text: bytes) -> list[int]:
    """Where in a text a word may begin (negative: before it) so that both agree in all bytes they share."""
    places = range(1 - len(word), len(text))
    return [at for at in places if word[max(-at, 0) : len(text) - at] == text[max(at, 0) : at + len(word)]]


@dataclass(frozen=True, slots=True)
class _Texts:
    """The texts of markers and anchors, as they are read token by token."""

    markers: Sequence[Marker]
    groups: Sequence[Sequence[int]]
    bits: int
    beginnings: dict[bytes, int] = field(default_factory=dict)
    """What may stand before a marker in the token in which it begins, numbered from 1."""

    def before(self, word: bytes, way: _Way) -> State | int:
        """What has yet to be read before a token that holds a pivot, to reach the marker's beginning."""
        text = self.markers[way.marker].text
        return (MARKER, text[: way.start]) if way.start > 0 else self._begun(word[: -way.start])

    def behind(self, word: bytes, way: _Way) -> State | int:
        """What has been read with a token that holds a pivot, to reach the marker's end."""
        text = self.markers[way.marker].text
        if len(text) - way.start <= len(word):
            return self._ended(way.marker, len(text) - way.start, word)
        group = next(n for n, some in enumerate(self.groups) if way.marker in some)
        return group, text[: way.start + len(word)]

    def onward(self, state: State, word: bytes) -> State | int:
        """What a token means behind what has been read."""
        group, read = state
        whole = read + word
        for i in self.groups[group]:
            text = self.markers[i].text
            if whole.startswith(text):
                return self._ended(i, len(text) - len(read), word)
            if text.startswith(whole):
                return group, whole
        return NOTHING

    def back(self, state: State, word: bytes) -> State | int:
        """What a token means before what has been read."""
        what, text = state
        if word.endswith(text):
            return self._begun(word[: len(word) - len(text)]) if what == MARKER else -1
        return (what, text[: len(text) - len(word)]) if text.endswith(word) else NOTHING

    def _begun(self, before: bytes) -> int:
        """The code of a marker's beginning, behind some bytes of its token."""
        return -self.beginnings.setdefault(before, len(self.beginnings) + 1)

    def _ended(self, marker: int, size: int, word: bytes) -> int:
        """The code of a marker that ends behind the first bytes of a token, or with it."""
        byte = size if size < len(word) else 1 << self.bits
        return -((marker + 1) << self.bits + 1 | byte)


@dataclass(frozen=True, slots=True)
class _Table:
    """States, numbered as they come up, and what every kind of token makes of them."""

    words: Sequence[bytes]
    """What kinds 1, 2, ... spell."""
    after: Callable[[State, bytes], State | int]
    numbers: dict[State, int] = field(default_factory=dict)

    def number(self, state: State | int) -> int:
        """The number of a state, which is more than 0; codes stay as they are."""
        return state if isinstance(state, int) else self.numbers.setdefault(state, len(self.numbers) + 1)

    def filled(self) -> Int64Array:
        """`[states, kinds]` for all states that have come up, and those that follow from them."""
        rows = [[NOTHING] * (len(self.words) + 1)]
        while len(rows) <= len(self.numbers):
            state = next(itertools.islice(self.numbers, len(rows) - 1, None))
            rows.append([NOTHING, *(self.number(self.after(state, word)) for word in self.words)])
        return np.array(rows, np.int64)
