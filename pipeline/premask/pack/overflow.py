"""Tokens that nothing is learned from. Pure, vectorized."""

from dataclasses import replace

import numpy as np

from premask.dtypes import Examples, offsets_of, slices


def trim_tail(examples: Examples) -> Examples:
    """Drop the tokens behind each example's last trained one: in a causal model they cannot affect the loss."""
    if not len(examples):
        return examples
    lengths = np.maximum.reduceat(examples.spans[:, 1], examples.span_offsets[:-1]).astype(np.int64)
    return replace(examples, ids=slices(examples.ids, examples.offsets[:-1], lengths), offsets=offsets_of(lengths))
