"""Gathering: the examples that a shard's plan names, out of many stage files into flat arrays.

One Python step for each example (a copy of its ids, one of its spans), then one more by `np.concatenate`; no Python per
token or span. About 1 µs an example beside the copying. One stage file is open at a time where `StageFiles` holds them:
the kernel counts every page around what is touched, so many maps held at once would look like, and weigh as, memory.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from premask.dtypes import IGNORE_INDEX, BoolArray, Float32Array, Int32Array
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
    ids: list[NDArray[np.int32]] = [np.zeros(0, np.int32)] * len(index)
    spans: list[NDArray[np.int32]] = [np.zeros((0, 2), np.int32)] * len(index)
    weights: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(index)

    def take(stage: Stage, places: NDArray[np.intp]) -> None:
        batch_numbers, rows = stage.locate(index[places])
        for batch_number, within in _groups(batch_numbers):
            examples, at, row = stage.batches[batch_number], places[within].tolist(), rows[within]
            _slices(ids, at, examples.ids, examples.offsets, row)
            _slices(spans, at, examples.spans, examples.span_offsets, row)
            _slices(weights, at, examples.span_weights, examples.span_offsets, row)

    for number, places in _groups(partition):
        take(stages[number], places)
    return Gathered(
        ids=_concatenate(ids, np.zeros(0, np.int32)),
        lengths=_sizes(ids),
        spans=_concatenate(spans, np.zeros((0, 2), np.int32)),
        span_counts=_sizes(spans),
        span_weights=_concatenate(weights, np.zeros(0, np.float32)),
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


def _slices(
    copies: list[NDArray[Any]], places: list[int], values: NDArray[Any], offsets: NDArray[Any], rows: NDArray[Any]
) -> None:
    bounds = zip(places, offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True)
    for place, start, end in bounds:
        copies[place] = values[start:end].copy()


def _concatenate(parts: list[NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else empty


def _sizes(parts: list[NDArray[Any]]) -> Int32Array:
    return np.fromiter(map(len, parts), np.int32, len(parts))
