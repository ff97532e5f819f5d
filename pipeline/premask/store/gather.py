"""Gathering: the examples that a shard's plan names, out of many stage files into flat arrays.

One Python step for each example, a copy of its ids, and one for each span or row of positions that is made of them:
about 0.3 µs beside the copying. One stage file is open at a time where `StageFiles` holds them: the kernel counts every
page around what is touched, so many maps held at once would look like, and weigh as, memory.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from premask.dtypes import IGNORE_INDEX, Float32Array, Int32Array, Int64Array, offsets_of, ranges
from premask.store.stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """E examples with T tokens and S spans in the order of the plan, flat."""

    ids: Int32Array
    """`[T]` token ids."""

    lengths: Int32Array
    """`[E]` tokens of every example."""

    spans: Int32Array
    """`[S, 2]` start and end of every trained span, relative to its example."""

    span_counts: Int32Array
    """`[E]` spans of every example."""

    span_weights: Float32Array
    """`[S]` loss weight of every span."""


class Stages(Protocol):
    """Stages by the number of their partition: a mapping, a list, or `StageFiles`."""

    def __getitem__(self, number: int, /) -> Stage: ...


class Room:
    """Memory that stays from shard to shard: to get it anew takes longer than what is done in it."""

    def __init__(self) -> None:
        self._arrays: defaultdict[str, Int32Array] = defaultdict(lambda: np.zeros(0, np.int32))

    def array(self, name: str, size: int) -> Int32Array:
        """`[size]` int32, of any content; the same memory whenever `name` is the same."""
        if len(self._arrays[name]) < size:
            self._arrays[name] = np.empty(size + size // 8, np.int32)
        return self._arrays[name][:size]


def gather(
    stages: Stages, partition: Int32Array, index: Int32Array, lengths: Int32Array, room: Room | None = None
) -> Gathered:
    """Copy the examples `index[e]` of the stages `partition[e]`, which have `lengths[e]` tokens (all `[E]`), in order.

    Of a stage in which any has another length no ids are copied; whoever compares the lengths will see. The ids lie in
    `room`. DataError where a stage has no such example.
    """
    offsets = offsets_of(lengths.astype(np.int64))
    ids = (room or Room()).array("ids", int(offsets[-1]))
    found = lengths.copy()
    counts, spans, weights = [np.zeros(0, np.int64)], [np.zeros((0, 2), np.int32)], [np.zeros(0, np.float32)]
    groups = _groups(partition)
    for number, places in groups:
        stage, wanted = stages[number], index[places]
        stage.require(wanted)
        found[places] = stage.lengths[wanted]
        if np.array_equal(found[places], lengths[places]):
            stage.copy_ids(wanted, ids, offsets[places])
        own = stage.spans_of(wanted)
        counts.append(own[0])
        spans.append(own[1])
        weights.append(own[2])
    order = np.argsort(np.concatenate([np.zeros(0, np.int64), *(places for _, places in groups)]))
    sizes = np.concatenate(counts)
    which = ranges(offsets_of(sizes)[:-1][order], sizes[order])
    return Gathered(
        ids=ids,
        lengths=found,
        spans=np.concatenate(spans)[which],
        span_counts=sizes[order].astype(np.int32),
        span_weights=np.concatenate(weights)[which],
    )


def lengths_of(stages: Stages, partition: Int32Array, index: Int32Array) -> Int32Array:
    """`[E]` the tokens of the examples `index[e]` of the stages `partition[e]`. DataError as `gather`."""
    lengths = np.zeros(len(index), np.int32)
    for number, places in _groups(partition):
        stage = stages[number]
        stage.require(index[places])
        lengths[places] = stage.lengths[index[places]]
    return lengths


def positions(lengths: Int32Array, room: Room | None = None) -> Int32Array:
    """`[T]` place of every token in its example, from the lengths `[E]`: [2, 3] gives [0, 1, 0, 1, 2]. In `room`."""
    offsets = offsets_of(lengths.astype(np.int64)).tolist()
    result = (room or Room()).array("positions", offsets[-1])
    count, target = np.arange(lengths.max(initial=0), dtype=np.int32).data, result.data
    for first, last in pairwise(offsets):
        target[first:last] = count[: last - first]
    return result


def labels(examples: Gathered, room: Room | None = None) -> Int32Array:
    """`[T]` the id where a token is trained, IGNORE_INDEX elsewhere. In `room`."""
    result = (room or Room()).array("labels", len(examples.ids))
    result.fill(IGNORE_INDEX)
    source, target = examples.ids.data, result.data
    starts, ends = _bounds(examples).T.tolist()
    for start, end in zip(starts, ends, strict=True):
        target[start:end] = source[start:end]
    return result


def loss_weights(examples: Gathered) -> Float32Array:
    """`[T]` the weight of its span where a token is trained, 0 elsewhere."""
    values = np.zeros(2 * len(examples.spans) + 1, np.float32)
    values[1::2] = examples.span_weights
    return np.repeat(values, np.diff(_bounds(examples).reshape(-1), prepend=0, append=len(examples.ids)))


def _bounds(examples: Gathered) -> Int64Array:
    """`[S, 2]` start and end of every span, counted over all tokens."""
    starts = offsets_of(examples.lengths.astype(np.int64))[:-1]
    bounds: Int64Array = examples.spans + np.repeat(starts, examples.span_counts)[:, None]
    return bounds


def _groups(keys: NDArray[Any]) -> list[tuple[int, NDArray[np.intp]]]:
    """Every key that occurs in `keys` `[E]`, with its places."""
    order = np.argsort(keys, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
    return [(int(keys[group[0]]), group) for group in groups if len(group)]
