"""From spans of bytes to spans of tokens, for a whole batch at once."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from premask.dtypes import BoolArray, Int32Array, Int64Array
from premask.encode.encoder import Encoded


@dataclass(frozen=True, slots=True)
class ByteSpans:
    """S spans over N texts, ordered by text and position. Bytes are counted over the batch, as `Encoded` counts."""

    rows: Int64Array
    """`[S]` the text of every span."""
    starts: Int64Array
    """`[S]` first byte."""
    ends: Int64Array
    """`[S]` byte behind."""
    messages: Int32Array
    """`[S]` the message whose turn it belongs to."""


@dataclass(frozen=True, slots=True)
class TokenSpans:
    """The tokens of S spans of bytes."""

    starts: Int64Array
    """`[S]` first token, counted over the whole batch."""
    ends: Int64Array
    """`[S]` token behind; equal to the start where no token lies inside."""
    cut_at_start: BoolArray
    """`[S]` whether a token holds bytes from both sides of the start."""
    cut_at_end: BoolArray
    """`[S]` whether a token holds bytes from both sides of the end."""


def to_tokens(encoded: Encoded, spans: ByteSpans, straddle: Literal["mask", "train"]) -> TokenSpans:
    """The tokens that lie in spans of bytes.

    A token that holds bytes from both sides of a border belongs to the span with `straddle="train"` only.
    Cost: two binary searches a span over all tokens of the batch.
    """
    starts, ends = encoded.starts, encoded.ends
    low, high = spans.starts.astype(starts.dtype), spans.ends.astype(starts.dtype)  # or all tokens would be cast
    first, last = encoded.offsets[spans.rows], encoded.offsets[spans.rows + 1]
    begin = np.clip(np.searchsorted(starts, low, "left"), first, last)
    end = np.clip(np.searchsorted(ends, high, "right"), first, last)
    before = np.maximum(begin - 1, 0)
    cut_at_start = (begin > first) & (ends[before] > low) if len(ends) else np.zeros(len(low), bool)
    after = np.minimum(end, len(starts) - 1)
    cut_at_end = (end < last) & (starts[after] < high) if len(ends) else np.zeros(len(low), bool)
    if straddle == "train":
        begin, end = begin - cut_at_start, end + cut_at_end
    return TokenSpans(begin, np.maximum(begin, end), cut_at_start, cut_at_end)
