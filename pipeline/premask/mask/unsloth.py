"""The rule of Unsloth's `train_on_responses_only`, exactly, for people who must match an earlier run.

Restated from the behaviour of `unsloth_zoo.dataset_utils` (PyPI, 2026.10.9), quirks included:

- A response begins behind its marker and ends behind the first EOS; before the first BOS, opener (the control tokens
  that both markers begin with) or response marker; or before the first instruction marker, whichever comes first.
- Tokens at a marker's edges whose ids depend on their neighbours are optional: they belong to the marker where they
  stand beside it. At the end of a row the optional tokens of the instruction are left out with the last token behind
  them, whether or not an instruction follows; an instruction marker of one token that is the row's last is trained.
- A turn may be empty and still be the last of its row; a marker that ends the row is no turn at all.

The original walks over every token; here each marker is looked for once, and which turns the walk would visit follows
from the place where each of them would let it go on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from premask.dtypes import BoolArray, Int32Array, Int64Array
from premask.mask.places import places_of
from premask.mask.responses import Responses

Tokenize = Callable[[str], list[int]]
"""Text to ids, with no special tokens added."""

NEVER = np.iinfo(np.int64).max
"""A place behind all others."""

EDGE_PROBES = ("\\", "{", "a", "A", "1", "(", ".", "<", "}", ">")
"""Neighbours with which the ids of a marker's edges are tried."""


@dataclass(frozen=True, slots=True)
class Core:
    """A marker's ids, and those at its edges that it may do without."""

    ids: list[int]
    left: list[int]
    right: list[int]


def core_of(part: str, tokenize: Tokenize, force_match: bool, named: frozenset[int]) -> Core:
    """The ids of a marker that are looked for; empty where none are sure.

    `named` are the added tokens that are not white space. Without `force_match` it is the longest run of ids that
    the marker has whatever white space stands around it.
    """
    own = tokenize(part)
    common = [*own] if force_match else _common(part, own, tokenize)
    at = next((j for j in range(len(own)) if own[j : j + len(common)] == common), None)
    if at is None:
        return Core([], [], [])
    start, end = _stable(part, own, tokenize)
    start, end = max(at, start), min(at + len(common), end)
    if not (start < end and (start, end) != (at, at + len(common)) and named.intersection(own[start:end])):
        start, end = at, at + len(common)
    return Core(own[start:end], own[:start], own[end:])


def _common(part: str, own: list[int], tokenize: Tokenize) -> list[int]:
    """The longest run of ids in all of 18 spellings of a marker, each with a 0 behind it (which may be part of it)."""
    text = part.strip()
    before = part[0] if part[:1] in (" ", "\n") else ""
    after = part[-1] if part[-1:] in (" ", "\n") else ""
    spellings = []
    for left in range(3):
        for right in range(3):
            spellings.append(tokenize(left * before + text + right * after))
            spellings.append(tokenize(left * "\n" + text + right * "\n"))
    first = spellings[0]
    common = _longest_common_run([[*ids, 0] for ids in spellings])
    if common == [0] and len(first) == 1 and all(first[0] in ids for ids in spellings):
        return first
    if common == [*first, 0] and all(ids == first for ids in spellings):
        return first
    return common


def _longest_common_run(lists: Sequence[list[int]]) -> list[int]:
    """The longest run of numbers that all lists hold; of several, what a set built in this order gives first."""
    for length in range(min(map(len, lists)), 0, -1):
        common: set[tuple[int, ...]] = set()
        for n, numbers in enumerate(lists):
            found: set[tuple[int, ...]] = set()
            for i in range(len(numbers) - length + 1):
                run = tuple(numbers[i : i + length])
                if n == 0 or run in common:
                    found.add(run)
            common = found
        if common:
            return list(common.pop())
    return []


def _stable(part: str, own: list[int], tokenize: Tokenize) -> tuple[int, int]:
    """The range of a marker's ids that no neighbour changes."""
    start, end = 0, len(own)
    for neighbour in EDGE_PROBES if own else ():
        end = min(end, longest_shared(own, tokenize(part + neighbour)))
        start = max(start, len(own) - longest_shared(own[::-1], tokenize(neighbour + part)[::-1]))
    return start, end


def longest_shared(a: Sequence[object], b: Sequence[object]) -> int:
    """How many items two sequences begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@dataclass(frozen=True, slots=True, kw_only=True)
class UnslothMarkers:
    """What Unsloth's function looks for."""

    response: Core
    instruction: Core
    opener: list[int]
    """The control tokens with which both markers begin; empty where that are not control tokens."""
    bos: int | None
    eos: int | None

    def find(self, ids: Int32Array, offsets: Int64Array) -> Responses:
        """The turns in rows `ids` `[T]` that begin at `offsets` `[N + 1]`, in the order of Unsloth's walk."""
        sequences = [self.response.ids, self.instruction.ids, self.opener, _single(self.bos), _single(self.eos)]
        heads, *others = find_sequences(ids, offsets, sequences)
        limits = offsets[np.searchsorted(offsets, heads, "right")]
        starts = _extended(ids, heads + len(self.response.ids), self.response.right, limits)
        ends, onward = self._ends(ids, offsets, (heads, *others), starts, limits)
        visited = _visited(np.searchsorted(heads, onward, "left"), _first_of_rows(heads, offsets))
        kept = visited & (starts < limits)
        return Responses(starts[kept], np.maximum(starts, ends)[kept], quoted=starts[:0])

    def _ends(
        self,
        ids: Int32Array,
        offsets: Int64Array,
        found: Sequence[Int64Array],
        starts: Int64Array,
        limits: Int64Array,
    ) -> tuple[Int64Array, Int64Array]:
        """Where each turn ends, and where the walk goes on."""
        heads, instructions, openers, bos, eos = found
        borders = np.sort(np.concatenate([heads, openers, bos]), kind="stable")
        stop, border, user = (_next(places, starts, limits) for places in (eos, borders, instructions))
        last = limits - 1
        at_eos = (stop <= border) & (stop <= np.minimum(user, last))
        at_border = ~at_eos & (border <= np.minimum(user, last))
        at_user = ~at_eos & ~at_border & (user < last)
        until = _retracted(ids, np.where(at_user, user, last), self.instruction.left, offsets)
        behind = _extended(ids, user + at_user * len(self.instruction.ids), self.instruction.right, limits)
        at_last = np.where(until == last, limits, until)
        ends = np.select([at_eos, at_border, at_user], [stop + 1, border, until], at_last)
        return ends, np.select([at_eos, at_border, at_user], [stop + 1, border, behind], limits)


def unsloth_markers(
    instruction: Core,
    response: Core,
    *,
    special: frozenset[int],
    named: frozenset[int],
    bos: int | None,
    eos: int | None,
) -> UnslothMarkers:
    """Put the markers together. `special` are the special tokens, `named` the added tokens that are not white space.

    An edge goes back to a marker that would otherwise be the beginning of the other one.
    """
    if response.ids == instruction.ids[: len(response.ids)] and response.right:
        response = Core(response.ids + response.right, response.left, [])
    if instruction.ids == response.ids[: len(instruction.ids)] and instruction.right:
        instruction = Core(instruction.ids + instruction.right, instruction.left, [])
    opener = response.ids[: longest_shared(instruction.ids, response.ids)]
    if not special.issuperset(opener) or not named.intersection(opener):
        opener = []
    return UnslothMarkers(response=response, instruction=instruction, opener=opener, bos=bos, eos=eos)


def _single(token: int | None) -> list[int]:
    return [] if token is None else [token]


def find_sequences(ids: Int32Array, offsets: Int64Array, sequences: Sequence[Sequence[int]]) -> list[Int64Array]:
    """Where each sequence of ids stands within a row of `ids` `[T]`, ascending; an empty one nowhere."""
    fresh = np.zeros(len(ids) + 1, bool)
    fresh[offsets] = True
    firsts = places_of(ids, sorted({sequence[0] for sequence in sequences if sequence}))
    first_ids = ids.take(firsts)
    found = []
    for sequence in sequences:
        at = firsts[first_ids == sequence[0]] if sequence else firsts[:0]
        for n, token in enumerate(sequence[1:], 1):
            at = at[~fresh[at + n]]
            at = at[ids[at + n] == token]
        found.append(at)
    return found


def _next(places: Int64Array, starts: Int64Array, limits: Int64Array) -> Int64Array:
    """The first of `places` at or behind each start and before its limit; NEVER where there is none."""
    found = np.append(places, NEVER)[np.searchsorted(places, starts, "left")]
    return np.where(found < limits, found, NEVER)


def _extended(ids: Int32Array, places: Int64Array, optional: Sequence[int], limits: Int64Array) -> Int64Array:
    """`places` moved behind those of the optional tokens that stand there in order."""
    places, going = places.copy(), np.ones(len(places), bool)
    for token in optional:
        going &= places < limits
        going[going] = ids[places[going]] == token
        places += going
    return places


def _retracted(ids: Int32Array, places: Int64Array, optional: Sequence[int], offsets: Int64Array) -> Int64Array:
    """`places` moved before those of the optional tokens that stand before them in order."""
    first = offsets[np.searchsorted(offsets, places, "right") - 1]
    places, going = places.copy(), np.ones(len(places), bool)
    for token in reversed(optional):
        going &= places > first
        going[going] = ids[places[going] - 1] == token
        places -= going
    return places


def _first_of_rows(places: Int64Array, offsets: Int64Array) -> BoolArray:
    rows = np.searchsorted(offsets, places, "right")
    first = np.ones(len(rows), bool)
    first[1:] = rows[1:] != rows[:-1]
    return first


def _visited(onward: Int64Array, first: BoolArray) -> BoolArray:
    """Which places a walk visits that begins at every `first` one and goes from each place to the one `onward` from it.

    Doubling: after n rounds everything within 2^n steps is known.
    """
    size = len(first)
    visited = np.append(first, False)
    if np.array_equal(onward, np.arange(1, size + 1)):
        return np.ones(size, bool)
    jump = np.append(onward, size)
    while True:
        reached = visited.copy()
        reached[jump[visited]] = True
        if np.array_equal(reached, visited):
            return reached[:-1]
        visited, jump = reached, jump[jump]
