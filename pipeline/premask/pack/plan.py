"""The plan: which example goes into which pack of which shard, in which order.

In: `Candidates`, six columns `[N]` of the examples that are to be kept, in global order, and nothing else: no ids.
Out: `Plan`, an order of the examples with the bounds of its packs and shards, from which the rows of any one shard are
drawn (`PlanRows`). It depends on the candidates, the capacity, the seed and `shard_tokens` alone.

Memory: 28 bytes an example for the candidates (24 where `source_turn` is a broadcast -1), 8 and 8 a pack for the plan.
While it is made, 18 beside the candidates on log-normal lengths, 26 on uniform ones, 44 where each fills its own pack.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from premask.dtypes import BoolArray, Int32Array, Int64Array
from premask.errors import DataError, UsageError
from premask.pack.best_fit import best_fit, stable_order

Packer = Callable[[Int32Array, int], Int32Array]
"""Lengths `[N]` and a capacity -> pack numbers `[N]`, 0 up to the number of packs, none empty."""

MAX_SHARD_TOKENS = 2**29
"""Arrow's list offsets are int32; a shard holds less than twice `shard_tokens` and a pack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """N examples that may be packed, in global order."""

    partition: Int32Array
    """`[N]` whose stage file holds the example."""

    index: Int32Array
    """`[N]` its place in that stage file."""

    source_row: Int64Array
    """`[N]` global number of its source row."""

    source_turn: Int32Array
    """`[N]` which turn it was made for; -1 where it holds them all (a broadcast -1 costs nothing)."""

    length: Int32Array
    """`[N]` tokens."""

    supervised: Int32Array
    """`[N]` trained tokens."""

    def __len__(self) -> int:
        return len(self.index)

    def take(self, which: Int64Array | BoolArray | slice) -> Self:
        """The examples that `which` selects (indices, a mask, or a slice), in its order."""
        return type(self)(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRows(Candidates):
    """N examples in the order in which they are written: whole packs, one after the other."""

    pack: Int64Array
    """`[N]` number of the example's pack within its split; never falls."""

    shard: Int32Array
    """`[N]` number of its shard within its split; never falls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """N examples ordered into P packs and S shards; no pack and, unless P is 0, no shard is empty."""

    candidates: Candidates
    """`[N]` the examples, in global order."""

    order: Int64Array
    """`[N]` the candidates in the order in which they are written."""

    pack_offsets: Int64Array
    """`[P + 1]` first place in `order` of every pack."""

    shard_offsets: Int64Array
    """`[S + 1]` first pack of every shard; S is at least 1."""

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
    candidates: Candidates, *, capacity: int, seed: int | None, shard_tokens: int, packer: Packer = best_fit
) -> Plan:
    """Pack the candidates, shuffle the packs by `seed` (None keeps their order) and cut them into shards.

    `capacity` and `shard_tokens` are in tokens. Within a pack examples keep their global order. There are
    total // shard_tokens shards of equal tokens, give or take a pack: each holds one to two times `shard_tokens` (never
    less than `capacity`, so that none is empty). DataError for a length outside 1..capacity, UsageError for
    `shard_tokens` outside 1..2**29.
    """
    if shard_tokens < 1 or max(shard_tokens, capacity) > MAX_SHARD_TOKENS:
        raise UsageError(
            f"shard_tokens and capacity: expected 1 to {MAX_SHARD_TOKENS} tokens, found {shard_tokens} and {capacity};"
            " a shard's lists have 32-bit offsets"
        )
    _check(candidates, capacity)
    pack = packer(candidates.length, capacity)
    sizes = np.bincount(pack).astype(np.int32)
    shuffled = shuffle(len(sizes), seed)
    order = stable_order(_inverse(shuffled)[pack].astype(np.int64))
    del pack
    pack_offsets = np.concatenate([[0], np.cumsum(sizes[shuffled], dtype=np.int64)])
    tokens = np.zeros(0, np.int32)
    if len(order):  # reduceat knows no empty input
        tokens = np.add.reduceat(candidates.length[order], pack_offsets[:-1], dtype=np.int32)
    shard_offsets = cut_shards(tokens, max(shard_tokens, capacity))
    return Plan(candidates=candidates, order=order, pack_offsets=pack_offsets, shard_offsets=shard_offsets)


def shuffle(count: int, seed: int | None) -> Int32Array:
    """A permutation `[count]` by `seed` (0 or more); None gives the identity.

    It sorts the high bits of PCG64's raw stream, which numpy promises never to change, unlike `Generator.permutation`
    (NEP 19): shards must not change with numpy's version. Equal draws keep their order.
    """
    if seed is None:
        return np.arange(count, dtype=np.int32)
    draws = np.random.PCG64(seed).random_raw(count) >> np.uint64(count.bit_length() + 1)
    return stable_order(draws.view(np.int64)).astype(np.int32)


def _inverse(permutation: Int32Array) -> Int32Array:
    inverse = np.empty_like(permutation)
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


def _check(candidates: Candidates, capacity: int) -> None:
    bad = np.flatnonzero((candidates.length < 1) | (candidates.length > capacity))
    if len(bad):
        row = candidates.take(bad[:1])
        raise DataError(
            f"source row {row.source_row[0]} (partition {row.partition[0]}, example {row.index[0]}): expected 1 to"
            f" {capacity} tokens, found {row.length[0]} ({len(bad)} such examples); apply an overflow policy first"
        )
