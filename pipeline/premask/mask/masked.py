"""A masked batch, and how it is put together: from spans, from turns masked apart, from batches of two templates."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from premask.dtypes import Examples, Float32Array, Int32Array, offsets_of, slices, take
from premask.encode.encoder import Encoded
from premask.mask.columns import Columns
from premask.mask.cut import in_order
from premask.mask.separate import Separated
from premask.mask.spans import ByteSpans, TokenSpans
from premask.read import Conversation
from premask.render.program import Failure


@dataclass(frozen=True, slots=True)
class Masked:
    """A masked batch."""

    examples: Examples
    """The rows that are kept, in order; `rows` counts within the batch."""
    messages: Int32Array
    """`[S]` the message behind every span of the examples."""
    failures: dict[int, Failure]
    """Why any other row is not."""
    counts: Counter[str]
    """What happened on the way: straddling tokens, escaped rows and the like."""


def examples_of(
    conversations: Sequence[Conversation],
    encoded: Encoded,
    spans: ByteSpans,
    tokens: TokenSpans,
    weights: Float32Array,
    columns: Columns,
    failures: dict[int, Failure],
) -> tuple[Examples, Int32Array]:
    """The rows with something to train, and the message behind every span; rows without are added to `failures`."""
    first = encoded.offsets[spans.rows]
    starts = np.maximum(tokens.starts, first + 1)  # nothing predicts an example's first token
    starts[1:] = np.maximum(starts[1:], tokens.ends[:-1])  # with straddle=train neighbours may share a token
    filled = tokens.ends > starts
    per_row = np.bincount(spans.rows[filled], minlength=len(conversations))
    kept = per_row > 0
    for row in np.flatnonzero(~kept).tolist():
        failures.setdefault(
            row,
            Failure(
                "nothing_to_train",
                "expected a token to train, found none under this recipe; train_on, reasoning, tool_calls and the "
                "weights of messages say what is trained",
            ),
        )
    kept[list(failures)] = False
    rows = np.flatnonzero(kept)
    of_kept = kept[spans.rows] & filled
    relative = np.stack([starts - first, tokens.ends - first], axis=1)[of_kept].astype(np.int32)
    lengths = np.diff(encoded.offsets)[rows]
    examples = Examples(
        ids=slices(encoded.ids, encoded.offsets[rows], lengths),
        offsets=offsets_of(lengths),
        spans=relative,
        span_offsets=offsets_of(per_row[rows]),
        span_weights=weights[of_kept],
        rows=rows,
        turns=columns.per_row([path.turns for path in columns.paths])[rows].astype(np.int32),
        source_turns=np.full(len(rows), -1, np.int32),
        digests=np.zeros((len(rows), 0), np.uint8),
    )
    return examples, spans.messages[of_kept]


def regrouped(masked: Masked, parts: Sequence[Separated], conversations: Sequence[Conversation]) -> Masked:
    """Examples of single turns under the rows they come from. A row of which one turn fails is rejected whole."""
    failures: dict[int, Failure] = {}
    for number, failure in sorted(masked.failures.items()):
        part = parts[number]
        failures.setdefault(part.row, Failure(failure.reason, f"turn {part.turn}: {failure.detail}"))
    for row in set(range(len(conversations))) - {part.row for part in parts}:
        failures[row] = Failure(
            "nothing_to_train",
            "expected a turn to train, found none under this recipe; train_on and the weights of messages say what is "
            "trained",
        )
    rows = np.array([part.row for part in parts], np.int64)[masked.examples.rows]
    turns = np.array([part.turn for part in parts], np.int32)[masked.examples.rows]
    examples = replace(
        masked.examples,
        rows=rows,
        turns=np.ones(len(rows), np.int32),
        source_turns=turns,
    )
    kept = ~np.isin(rows, list(failures))
    messages = masked.messages[np.repeat(kept, np.diff(examples.span_offsets))]
    return Masked(take(examples, kept), messages, failures, masked.counts)


def merged(parts: Sequence[tuple[Sequence[int], Masked]]) -> Masked:
    """One batch of several, each given with the places that its rows have in the whole."""
    rows = [np.array(places, np.int64)[masked.examples.rows] for places, masked in parts]
    examples = [replace(m.examples, rows=r) for r, (_, m) in zip(rows, parts, strict=True)]
    failures = {places[row]: failure for places, masked in parts for row, failure in masked.failures.items()}
    counts = sum((masked.counts for _, masked in parts), Counter[str]())
    together, spans = in_order(examples)
    messages = np.concatenate([masked.messages for _, masked in parts])[spans]
    return Masked(together, messages, dict(sorted(failures.items())), counts)
