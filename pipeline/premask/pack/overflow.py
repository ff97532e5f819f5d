"""Examples that are too long, and tokens that nothing is learned from. Pure, vectorized."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from premask.dtypes import BoolArray, Examples, Int64Array


def trim_tail(examples: Examples) -> Examples:
    """Drop the tokens behind each example's last trained one: in a causal model they cannot affect the loss."""
    ends = np.maximum.reduceat(examples.spans[:, 1], examples.span_offsets[:-1]) if len(examples) else np.zeros(0)
    return _cut(examples, ends.astype(np.int64))


def take(examples: Examples, which: BoolArray) -> Examples:
    """The examples that the mask `which` `[N]` selects."""
    chosen = np.flatnonzero(which)
    span_sizes = np.diff(examples.span_offsets)
    spans = np.repeat(which, span_sizes)
    lengths = np.diff(examples.offsets)
    return replace(
        examples,
        ids=_slices(examples.ids, examples.offsets[:-1][chosen], lengths[chosen]),
        offsets=_offsets(lengths[chosen]),
        spans=examples.spans[spans],
        span_offsets=_offsets(span_sizes[chosen]),
        span_weights=examples.span_weights[spans],
        rows=examples.rows[chosen],
        turns=examples.turns[chosen],
        source_turns=examples.source_turns[chosen],
        digests=examples.digests[chosen],
    )


def _cut(examples: Examples, lengths: Int64Array) -> Examples:
    """Every example cut to its first `lengths` `[N]` tokens."""
    ids = _slices(examples.ids, examples.offsets[:-1], lengths)
    return replace(examples, ids=ids, offsets=_offsets(lengths))


def _slices(values: NDArray[np.int32], starts: Int64Array, lengths: Int64Array) -> NDArray[np.int32]:
    parts: Sequence[NDArray[np.int32]] = [
        values[a : a + n] for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)
    ]
    return np.concatenate([values[:0], *parts])


def _offsets(lengths: Int64Array) -> Int64Array:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
