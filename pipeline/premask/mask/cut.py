"""Masked examples, cut and put together: pure array code on `Examples`.

`messages` `[S]` names the message behind every span, so that spans of one turn (its text, its terminator) are known to
belong together.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from premask.dtypes import Examples, Int32Array, Int64Array, concatenated, offsets_of, ranges, slices, take
from premask.mask.pieces import turns_of
from premask.read import Conversation


def last_trained(examples: Examples) -> Int64Array:
    """`[N]` int64 the end of each example's last trained span: what comes behind it cannot affect a causal model."""
    last: Int64Array = examples.spans[examples.span_offsets[1:] - 1, 1].astype(np.int64)
    return last


def last_fitting(examples: Examples, messages: Int32Array, max_length: int) -> Int64Array:
    """`[N]` int64 the last span of each example behind which it may be cut, counted over all; -1 where there is none.

    The span ends within `max_length` tokens, and no turn that began before goes on behind it.
    """
    spans = np.arange(len(messages))
    owner = np.repeat(np.arange(len(examples)), np.diff(examples.span_offsets))
    _, turn = np.unique(np.stack([owner, messages]), axis=1, return_inverse=True)
    last = np.zeros(len(spans), np.int64)
    last[turn.ravel()] = spans  # of assignments to one place the last stays
    open_until = np.maximum.accumulate(last[turn.ravel()])
    fitting = (open_until == spans) & (examples.spans[:, 1] <= max_length)
    found = np.full(len(examples), -1)
    found[owner[fitting]] = spans[fitting]
    return found


def truncated(
    examples: Examples, messages: Int32Array, conversations: Sequence[Conversation], max_length: int
) -> Examples:
    """The examples cut behind their last turns that fit; those of which no trained turn fits are left out.

    `conversations` `[N]` are those of the examples, to count the turns that are left.
    """
    last = last_fitting(examples, messages, max_length)
    fitting = last >= 0
    kept = take(examples, fitting)
    ends = examples.spans[last[fitting], 1].astype(np.int64)
    within = [conversations[n].messages[: messages[last[n]] + 1] for n in np.flatnonzero(fitting)]
    return replace(shortened(kept, ends), turns=np.array([turns_of(each) for each in within], np.int32))


def shortened(examples: Examples, lengths: Int64Array) -> Examples:
    """The first `lengths` `[N]` tokens of every example, and the spans that end within them."""
    owner = np.repeat(np.arange(len(examples)), np.diff(examples.span_offsets))
    left = examples.spans[:, 1] <= lengths[owner]
    return replace(
        examples,
        ids=slices(examples.ids, examples.offsets[:-1], lengths),
        offsets=offsets_of(lengths),
        spans=examples.spans[left],
        span_offsets=offsets_of(np.bincount(owner[left], minlength=len(examples))),
        span_weights=examples.span_weights[left],
    )


def joined(parts: Sequence[Examples]) -> Examples:
    """At least one batch of examples behind each other, ordered by row and, within a row, by source turn."""
    return in_order(parts)[0]


def in_order(parts: Sequence[Examples]) -> tuple[Examples, Int64Array]:
    """As `joined`; and the order `[S]` in which the spans of `parts`, one batch behind the other, come then."""
    every = concatenated(parts)
    lengths, sizes = np.diff(every.offsets), np.diff(every.span_offsets)
    order = np.lexsort((every.source_turns, every.rows))
    spans = ranges(every.span_offsets[:-1][order], sizes[order])
    examples = Examples(
        ids=slices(every.ids, every.offsets[:-1][order], lengths[order]),
        offsets=offsets_of(lengths[order]),
        spans=every.spans[spans],
        span_offsets=offsets_of(sizes[order]),
        span_weights=every.span_weights[spans],
        rows=every.rows[order],
        turns=every.turns[order],
        source_turns=every.source_turns[order],
        digests=every.digests[order],
    )
    return examples, spans
