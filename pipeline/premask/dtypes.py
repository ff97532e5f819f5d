"""Named dtypes, the ignore index, and `Examples`: the flat arrays that flow from masking to the shards."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

IGNORE_INDEX = -100
"""The label of every token that is not trained (PyTorch's and Hugging Face's convention)."""

Int32Array: TypeAlias = NDArray[np.int32]
Int64Array: TypeAlias = NDArray[np.int64]
Float32Array: TypeAlias = NDArray[np.float32]
Float64Array: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """N examples with T tokens and S trained spans, flat.

    Example n holds `ids[offsets[n]:offsets[n + 1]]`; its trained spans are
    `spans[span_offsets[n]:span_offsets[n + 1]]`, half-open token ranges counted from the example's first token,
    in order, disjoint, never empty, never holding token 0.
    """

    ids: Int32Array
    """`[T]` token ids."""

    offsets: Int64Array
    """`[N + 1]` first token of every example."""

    spans: Int32Array
    """`[S, 2]` start and end of every trained span, relative to its example."""

    span_offsets: Int64Array
    """`[N + 1]` first span of every example."""

    span_weights: Float32Array
    """`[S]` loss weight of every span; 1.0 where none was stated, never 0."""

    rows: Int64Array
    """`[N]` source row of every example, counted within its partition."""

    turns: Int32Array
    """`[N]` number of assistant turns in the example."""

    source_turns: Int32Array
    """`[N]` which assistant turn of its conversation an example was made for; -1 where it holds them all."""

    digests: NDArray[np.uint8]
    """`[N, 16]` hash of every example's conversation; `[N, 0]` before it is known, and where nothing asks for it."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Int32Array:
        """`[N]` int32, tokens of every example."""
        return np.diff(self.offsets).astype(np.int32)

    @property
    def supervised(self) -> Int32Array:
        """`[N]` int32, trained tokens of every example."""
        sizes = np.zeros(len(self.spans) + 1, np.int64)
        np.cumsum(self.spans[:, 1] - self.spans[:, 0], out=sizes[1:])
        return np.diff(sizes[self.span_offsets]).astype(np.int32)


def take(examples: Examples, which: BoolArray) -> Examples:
    """The examples that the mask `which` `[N]` selects."""
    if which.all():
        return examples
    lengths, span_sizes = np.diff(examples.offsets), np.diff(examples.span_offsets)
    spans = np.repeat(which, span_sizes)
    return replace(
        examples,
        ids=slices(examples.ids, examples.offsets[:-1][which], lengths[which]),
        offsets=offsets_of(lengths[which]),
        spans=examples.spans[spans],
        span_offsets=offsets_of(span_sizes[which]),
        span_weights=examples.span_weights[spans],
        rows=examples.rows[which],
        turns=examples.turns[which],
        source_turns=examples.source_turns[which],
        digests=examples.digests[which],
    )


def concatenated(parts: Sequence[Examples]) -> Examples:
    """At least one batch of examples behind each other, as they are."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    sizes = np.concatenate([np.diff(part.span_offsets) for part in parts])
    return Examples(
        ids=np.concatenate([part.ids for part in parts]),
        offsets=offsets_of(lengths),
        spans=np.concatenate([part.spans for part in parts]),
        span_offsets=offsets_of(sizes),
        span_weights=np.concatenate([part.span_weights for part in parts]),
        rows=np.concatenate([part.rows for part in parts]),
        turns=np.concatenate([part.turns for part in parts]),
        source_turns=np.concatenate([part.source_turns for part in parts]),
        digests=np.concatenate([part.digests for part in parts]),
    )


def slices(values: Int32Array, starts: Int64Array, lengths: Int64Array) -> Int32Array:
    """The slices of `values` `[T]` that begin at `starts` `[N]` and have `lengths` `[N]`, one behind the other.

    A view where they are neighbours already, a copy otherwise.
    """
    ends = starts + lengths
    if len(starts) and (starts[1:] == ends[:-1]).all():
        return values[starts[0] : ends[-1]]
    if 2 * lengths.sum() > len(values) and (starts[1:] >= ends[:-1]).all():  # most of them, in order
        borders = np.stack([starts, ends], axis=1).reshape(-1)
        inside = np.repeat(np.arange(len(borders) + 1) % 2 == 1, np.diff(borders, prepend=0, append=len(values)))
        most: Int32Array = values[inside]
        return most
    parts: Sequence[Int32Array] = [values[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
    return np.concatenate([values[:0], *parts])


def ranges(starts: Int64Array, sizes: Int64Array) -> Int64Array:
    """The numbers of the ranges `[starts, starts + sizes)`, both `[N]`, one range behind the other."""
    offsets = offsets_of(sizes)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], sizes)


def offsets_of(lengths: Int64Array) -> Int64Array:
    """`[N + 1]` int64: where each of N neighbouring stretches of `lengths` `[N]` begins, and where the last ends."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
