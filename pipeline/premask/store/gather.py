"""Gathering: the examples that a shard's plan names, out of many stage files into flat arrays.

One Python step for each example, a copy of its ids; all else by array operations. About 0.3 µs an example with its
copying. One stage file is open at a time where `StageFiles` holds them: the kernel counts every page around what is
touched, so many maps held at once would look like, and weigh as, memory.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from premask.dtypes import IGNORE_INDEX, BoolArray, Float32Array, Int32Array, offsets_of, ranges
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


def gather(stages: Stages, partition: Int32Array, index: Int32Array) -> Gathered:
    """Copy the examples `index[e]` of the stages `partition[e]` (both `[E]`), in order.

    DataError where a stage has no such example.
    """
    ids = [b""] * len(index)
    counts, spans, weights = [np.zeros(0, np.int64)], [np.zeros((0, 2), np.int32)], [np.zeros(0, np.float32)]
    groups = _groups(partition)
    for number, places in groups:
        stage, wanted = stages[number], index[places]
        for place, values in zip(places.tolist(), stage.ids_of(wanted), strict=True):
            ids[place] = values
        own = stage.spans_of(wanted)
        counts.append(own[0])
        spans.append(own[1])
        weights.append(own[2])
    order = np.argsort(np.concatenate([np.zeros(0, np.int64), *(places for _, places in groups)]))
    sizes = np.concatenate(counts)
    which = ranges(offsets_of(sizes)[:-1][order], sizes[order])
    return Gathered(
        ids=np.frombuffer(b"".join(ids), np.int32),
        lengths=np.fromiter(map(len, ids), np.int32, len(ids)) // np.int32(4),
        spans=np.concatenate(spans)[which],
        span_counts=sizes[order].astype(np.int32),
        span_weights=np.concatenate(weights)[which],
    )


def positions(lengths: Int32Array) -> Int32Array:
    """`[T]` place of every token in its example, from the lengths `[E]`: [2, 3] gives [0, 1, 0, 1, 2]."""
    ends = np.cumsum(lengths)
    result = np.arange(ends[-1] if len(ends) else 0, dtype=np.int32)
    result -= np.repeat((ends - lengths).astype(np.int32), lengths)
    return result


def trained(examples: Gathered) -> BoolArray:
    """`[T]` whether a token lies in a span."""
    return np.repeat(np.arange(2 * len(examples.spans) + 1) % 2 == 1, _stretches(examples))


def labels(examples: Gathered) -> Int32Array:
    """`[T]` the id where a token is trained, IGNORE_INDEX elsewhere."""
    return np.where(trained(examples), examples.ids, np.int32(IGNORE_INDEX))


def loss_weights(examples: Gathered) -> Float32Array:
    """`[T]` the weight of its span where a token is trained, 0 elsewhere."""
    values = np.zeros(2 * len(examples.spans) + 1, np.float32)
    values[1::2] = examples.span_weights
    return np.repeat(values, _stretches(examples))


def _stretches(examples: Gathered) -> NDArray[np.int64]:
    """`[2 S + 1]` tokens before the first span, in it, from there to the second, in it ... and after the last."""
    starts = np.cumsum(examples.lengths, dtype=np.int64) - examples.lengths
    bounds = (examples.spans + np.repeat(starts, examples.span_counts)[:, None]).reshape(-1)
    return np.diff(bounds, prepend=0, append=len(examples.ids))


def _groups(keys: NDArray[Any]) -> list[tuple[int, NDArray[np.intp]]]:
    """Every key that occurs in `keys` `[E]`, with its places."""
    order = np.argsort(keys, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
    return [(int(keys[group[0]]), group) for group in groups if len(group)]
