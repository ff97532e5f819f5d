"""The plan: which example goes into which pack of which shard, in which order.

In: a `Pool` or `Candidates`, the examples there are, in global order, without their ids; and the stages, which of them
are packed together. Out: `Plan`, an order of the examples with the bounds of its packs and shards, from which the rows
of any one shard are drawn (`PlanRows`). It depends on the lengths, the stages, the capacity, the seed and
`shard_tokens` alone.

Memory: the plan holds 4 bytes an example and 8 a pack. While it is made, 15 an example beside the pool on log-normal
lengths, 20 where it has stages, 5 more on uniform lengths, and more where nearly every example fills its own pack.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Protocol, Self

import numpy as np

from premask.dtypes import BoolArray, Int32Array, Int64Array
from premask.errors import DataError, UsageError
from premask.pack.best_fit import best_fit, gather, lower_bound, order_by, stable_order

Packer = Callable[[Int32Array, int], Int32Array]
"""Lengths `[N]` and a capacity -> pack numbers `[N]`, 0 up to the number of packs, none empty."""

MAX_SHARD_TOKENS = 2**29
"""Arrow's list offsets are int32; a shard holds less than twice `shard_tokens` and a pack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """N examples, with all that a plan says of them."""

    partition: Int32Array
    """`[N]` whose stage file holds the example."""

    index: Int32Array
    """`[N]` its place in that stage file."""

    source_row: Int64Array
    """`[N]` global number of its source row."""

    source_turn: Int32Array
    """`[N]` which turn it was made for, or its first; -1 where it holds them all (a broadcast -1 costs nothing)."""

    length: Int32Array
    """`[N]` tokens."""

    supervised: Int32Array
    """`[N]` trained tokens."""

    def __len__(self) -> int:
        return len(self.index)

    def take(self, which: Int32Array | Int64Array | BoolArray | slice) -> Self:
        """The examples that `which` selects (indices, a mask, or a slice), in its order."""
        return type(self)(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


class Packable(Protocol):
    """N examples in global order, of which the plan reads the lengths, and the rest one shard at a time."""

    @property
    def length(self) -> Int32Array: ...

    def take(self, which: Any, /) -> Candidates: ...


@dataclass(frozen=True, slots=True)
class PlanStage:
    """M examples that are packed, and then shuffled, among themselves."""

    examples: Int32Array | None = None
    """`[M]` their numbers, in the order that breaks ties and that they keep within a pack; an example may come more
    than once. None: all there are, in global order."""

    parts: Sequence[int] | None = None
    """`[G + 1]` places in `examples` where parts begin that no pack crosses; None: one part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRows(Candidates):
    """N examples in the order in which they are written: whole packs, one after the other."""

    pack: Int64Array
    """`[N]` number of the example's pack within its split; never falls."""

    shard: Int32Array
    """`[N]` number of its shard within its split; never falls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """M examples, some perhaps more than once, in P packs and S shards; no pack is empty, nor a shard unless P is 0."""

    candidates: Packable
    """The examples to choose from, in global order."""

    order: Int32Array
    """`[M]` numbers of examples in the order in which they are written."""

    pack_offsets: Int64Array
    """`[P + 1]` first place in `order` of every pack."""

    shard_offsets: Int64Array
    """`[S + 1]` first pack of every shard; S is at least 1."""

    stage_offsets: Int64Array
    """`[K + 1]` first pack of every stage."""

    packs_at_least: int
    """The lower bound of the packs that any packing of these stages needs (`lower_bound`)."""

    def __len__(self) -> int:
        return len(self.order)

    @property
    def packs(self) -> int:
        """Number of packs."""
        return len(self.pack_offsets) - 1

    @property
    def shards(self) -> int:
        """Number of shards, at least 1."""
        return len(self.shard_offsets) - 1

    def shard(self, number: int) -> PlanRows:
        """The rows of one shard, gathered."""
        packs = np.arange(self.shard_offsets[number], self.shard_offsets[number + 1])
        bounds = self.pack_offsets[self.shard_offsets[number] : self.shard_offsets[number + 1] + 1]
        taken = self.candidates.take(self.order[bounds[0] : bounds[-1]])
        columns = {field.name: getattr(taken, field.name) for field in fields(Candidates)}
        shard = np.full(len(taken), number, np.int32)
        return PlanRows(**columns, pack=np.repeat(packs, np.diff(bounds)), shard=shard)


def make_plan(
    candidates: Packable,
    *,
    capacity: int,
    seed: int | None,
    shard_tokens: int,
    packer: Packer = best_fit,
    stages: Sequence[PlanStage] = (PlanStage(),),
) -> Plan:
    """Pack the candidates, shuffle the packs by `seed` (None: by their first example) and cut them into shards.

    No pack holds examples of two stages, and packs come in the order of the stages.

    `capacity` and `shard_tokens` are in tokens. There are total // shard_tokens shards of equal tokens, give or take a
    pack: each holds one to two times `shard_tokens` (never less than `capacity`, so that none is empty). DataError for
    a length outside 1..capacity, UsageError for `shard_tokens` outside 1..2**29.
    """
    if shard_tokens < 1 or max(shard_tokens, capacity) > MAX_SHARD_TOKENS:
        raise UsageError(
            f"shard_tokens and capacity: expected 1 to {MAX_SHARD_TOKENS} tokens, found {shard_tokens} and {capacity};"
            " a shard's lists have 32-bit offsets"
        )
    order, sizes, counts, bound = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)], [0], 0
    for number, stage in enumerate(stages):
        entropy = None if seed is None else [seed, number] if number else seed
        places, packs, least = _pack(candidates, stage, capacity, packer, entropy)
        order.append(places if stage.examples is None else gather(stage.examples, places))
        sizes.append(packs)
        counts.append(len(packs))
        bound += least
    placed = order[1] if len(order) == 2 else np.concatenate(order)
    pack_offsets = np.concatenate([[0], np.cumsum(np.concatenate(sizes), dtype=np.int64)])
    tokens = np.zeros(0, np.int32)
    if len(placed):  # reduceat knows no empty input
        tokens = np.add.reduceat(gather(candidates.length, placed), pack_offsets[:-1], dtype=np.int32)
    return Plan(
        candidates=candidates,
        order=placed,
        pack_offsets=pack_offsets,
        shard_offsets=cut_shards(tokens, max(shard_tokens, capacity)),
        stage_offsets=np.cumsum(counts, dtype=np.int64),
        packs_at_least=bound,
    )


def _pack(
    candidates: Packable, stage: PlanStage, capacity: int, packer: Packer, seed: int | list[int] | None
) -> tuple[Int32Array, Int32Array, int]:
    """The M examples of a stage pack by pack, in the order in which packs are written; the sizes `[P]` of the packs;
    and the lower bound.
    """
    lengths = candidates.length if stage.examples is None else gather(candidates.length, stage.examples)
    _check(candidates, stage.examples, lengths, capacity)
    bound = lower_bound(lengths, capacity)
    pack = packer(lengths, capacity) if stage.parts is None else _apart(lengths, stage.parts, capacity, packer)
    del lengths
    sizes = np.bincount(pack).astype(np.int32)
    written = _by_first_example(pack, len(sizes)) if seed is None else shuffle(len(sizes), seed)
    keys = gather(_inverse(written), pack)
    del pack
    return order_by(keys, len(sizes)), sizes[written], bound


def _apart(lengths: Int32Array, parts: Sequence[int], capacity: int, packer: Packer) -> Int32Array:
    """Pack numbers `[M]` where every part is packed by itself."""
    pack, packs = np.empty(len(lengths), np.int32), 0
    for start, end in pairwise(parts):
        pack[start:end] = packer(lengths[start:end], capacity)
        pack[start:end] += packs
        packs = int(pack[start:end].max(initial=packs - 1)) + 1
    return pack


def _by_first_example(pack: Int32Array, count: int) -> Int32Array:
    """The packs `[count]` in the order in which their first examples come in `pack` `[M]`."""
    first = np.zeros(count, np.int64)
    first[pack[::-1]] = np.arange(len(pack) - 1, -1, -1, dtype=np.int32)  # the last assignment stays
    return order_by(first, len(pack))


def shuffle(count: int, seed: int | Sequence[int] | None) -> Int32Array:
    """A permutation `[count]` by `seed` (0 or more); None gives the identity.

    It sorts the high bits of PCG64's raw stream, which numpy promises never to change, unlike `Generator.permutation`
    (NEP 19): shards must not change with numpy's version. Equal draws keep their order.
    """
    if seed is None:
        return np.arange(count, dtype=np.int32)
    draws = np.random.PCG64(seed).random_raw(count) >> np.uint64(count.bit_length() + 1)
    return stable_order(draws.view(np.int64)).astype(np.int32)


def _inverse(permutation: Int32Array) -> Int64Array:
    inverse = np.empty(len(permutation), np.int64)
    inverse[permutation] = np.arange(len(permutation), dtype=np.int32)
    return inverse


def cut_shards(tokens: Int32Array, shard_tokens: int) -> Int64Array:
    """First pack `[S + 1]` of every shard, from the tokens `[P]` of every pack.

    Shard s begins with the first pack that starts at or after s/S of all tokens.
    """
    ends = np.cumsum(tokens, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    shards = max(1, total // shard_tokens)
    bounds = np.array([number * total // shards for number in range(shards)], np.int64)
    return np.append(np.searchsorted(ends - tokens, bounds), len(tokens))


def _check(candidates: Packable, which: Int32Array | None, lengths: Int32Array, capacity: int) -> None:
    bad = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if len(bad):
        row = candidates.take(bad[:1] if which is None else which[bad[:1]])
        raise DataError(
            f"source row {row.source_row[0]} (partition {row.partition[0]}, example {row.index[0]}): expected 1 to"
            f" {capacity} tokens, found {row.length[0]} ({len(bad)} such examples); apply an overflow policy first"
        )
