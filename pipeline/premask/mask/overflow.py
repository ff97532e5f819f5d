"""Overflow: what becomes of conversations that are longer than a pack, and of what lies behind the last trained token.

    drop       the source row is rejected
    truncate   cut behind the last trained turn that fits whole, its terminator included; rejected where none does
    split      several pieces, cut between exchanges and masked as conversations of their own; an exchange that is too
               long for itself is truncated, and dropped where not even its first trained turn fits

What is longer is told after the tail is trimmed. Nothing is cut within a turn, and no example is left with nothing to
train. The account holds for every batch, in tokens and in turns (assistant messages), rows that masking rejects aside:

    tokens_in + tokens_repeated = tokens of the examples + tokens_trimmed + tokens_dropped
    turns_in                    = turns of the examples + turns_dropped

`tokens_repeated` are those of heads that the pieces of a row share. Where each turn has an example of its own
(turns=separate), examples that are too long are dropped alone; with `drop` their row is rejected with them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from premask.dtypes import BoolArray, Examples, Float64Array, Int32Array, Int64Array, take
from premask.mask.cut import joined, last_trained, shortened, truncated
from premask.mask.limits import Limits, Mask, MaskedTurns
from premask.mask.pieces import exchanges, stated, turns_of, within_reach
from premask.mask.split import Splitter
from premask.read import Conversation
from premask.render.program import Failure


@dataclass(frozen=True, slots=True)
class Fitted:
    """A masked batch in which no example is too long."""

    examples: Examples
    """`rows` counts within the batch."""
    failures: dict[int, Failure]
    """Why any other row is not among them."""
    counts: Counter[str]
    """What masking counted, and the account."""


def fit(mask: Mask, conversations: Sequence[Conversation], sizes: ArrayLike, limits: Limits) -> Fitted:
    """Mask a batch of conversations so that every example fits.

    `sizes` `[N]` are bytes that a conversation's texts do not exceed, such as those of its JSON; infinity will do.
    """
    return _Batch(mask, conversations, limits).fit(np.asarray(sizes, np.float64))


class _Batch:
    def __init__(self, mask: Mask, conversations: Sequence[Conversation], limits: Limits) -> None:
        self.mask = mask
        self.conversations = conversations
        self.limits = limits
        self.failures: dict[int, Failure] = {}
        self.tokens = np.zeros(len(conversations), np.int64)
        """`[N]` of every row, as it was encoded."""
        self.trimmed = np.zeros(len(conversations), np.int64)
        """`[N]` tokens of every row behind the last trained one."""
        self.turns = np.zeros(len(conversations), np.int64)
        """`[N]` assistant messages of every row."""

    def fit(self, sizes: Float64Array) -> Fitted:
        far, reached = self._reached(sizes)
        near, conversations = np.arange(len(self.conversations)), self.conversations
        if far or reached or self.failures:
            near = np.setdiff1d(near, [*far, *self.failures])
            conversations = [reached.get(row, self.conversations[row]) for row in near.tolist()]
        masked = self.mask(conversations)
        self.failures |= {int(near[place]): failure for place, failure in masked.failures.items()}
        examples = replace(masked.examples, rows=near[masked.examples.rows])
        self.tokens += self._per_row(examples.rows, examples.lengths)
        self.turns += self._per_row(examples.rows, examples.turns)
        for row in reached:
            self.turns[row] += turns_of(self.conversations[row].messages[len(reached[row].messages) :])
        trimmed = shortened(examples, last_trained(examples)) if self.limits.trim_tail else examples
        self.trimmed += self._per_row(examples.rows, examples.lengths - trimmed.lengths)
        long = trimmed.lengths > self.limits.max_length
        fitting = self._short(trimmed, long, masked, far)
        rows, lengths = np.append(examples.rows, far).astype(np.int64), np.append(trimmed.lengths, np.zeros(len(far)))
        self._refuse(rows, lengths.astype(np.int64), fitting)
        counts = Counter(masked.counts)
        counts.update(self._account(fitting))
        return Fitted(fitting, self.failures, counts)

    def _reached(self, sizes: Float64Array) -> tuple[list[int], dict[int, Conversation]]:
        """The rows that are too far from fitting to be encoded as a whole; and what is left of others that are."""
        far: list[int] = []
        reached: dict[int, Conversation] = {}
        beyond = np.flatnonzero(sizes > self.limits.reach) if self.limits.reach is not None else sizes[:0]
        for row in beyond.tolist():
            conversation = self.conversations[row]
            whole = stated(conversation, self.limits.train_on)  # a beginning ends elsewhere
            beginning = within_reach(whole, self.limits.reach)
            if len(beginning.messages) == len(conversation.messages):
                continue
            if self.limits.overflow == "split" and self.limits.turns == "together":
                far.append(row)
            elif self.limits.overflow == "drop":
                if _trains(whole, len(beginning.messages)):
                    self.failures[row] = self._too_long(0)
            elif _trains(beginning):
                reached[row] = beginning
            else:
                self.failures[row] = self._too_long(0)
        return far, reached

    def _short(self, examples: Examples, long: BoolArray, masked: MaskedTurns, far: list[int]) -> Examples:
        """The examples that fit, and what the policy makes of those that are too `long` `[n]`."""
        if self.limits.overflow == "drop":
            return take(examples, ~np.isin(examples.rows, examples.rows[long]))
        fitting = take(examples, ~long)
        if self.limits.turns == "separate" or not (long.any() or far):
            return fitting
        if self.limits.overflow == "truncate":
            spans = np.repeat(long, np.diff(masked.examples.span_offsets))
            whose = [self.conversations[row] for row in examples.rows[long]]
            cut = truncated(take(examples, long), masked.messages[spans], whose, self.limits.max_length)
            return joined([fitting, cut])
        return joined([fitting, *self._split(sorted([*examples.rows[long].tolist(), *far]))])

    def _split(self, rows: list[int]) -> list[Examples]:
        """The pieces of rows that are too long."""
        parts = [exchanges(row, self.conversations[row], self.limits.train_on) for row in rows]
        splitter = Splitter(self.mask, parts, self.tokens[rows].tolist(), self.limits)
        splitter.run()
        self.failures |= splitter.failures
        self.trimmed[rows] = splitter.trimmed
        for n, row in enumerate(rows):
            if not self.tokens[row]:
                self.tokens[row] = splitter.rendered[n]
                self.turns[row] = turns_of(self.conversations[row].messages)
        return [take(each, ~np.isin(each.rows, list(self.failures))) for each in splitter.examples]

    def _refuse(self, rows: Int64Array, lengths: Int64Array, fitting: Examples) -> None:
        """Reject the rows of which nothing is left; `lengths` `[n]` are those of the examples of `rows` `[n]`."""
        left_over = np.zeros(len(self.conversations), bool)
        left_over[rows] = True
        left_over[fitting.rows] = False
        for row in np.flatnonzero(left_over).tolist():
            self.failures.setdefault(row, self._too_long(int(lengths[rows == row].max())))

    def _too_long(self, length: int) -> Failure:
        limit = self.limits.max_length
        expected = "" if self.limits.overflow == "drop" else ", or a trained turn that ends within them"
        found = f"{length}" if length > limit else f"more than {limit}"
        return Failure("too_long", f"expected at most {limit} tokens{expected}, found {found}; raise --max-length")

    def _per_row(self, rows: Int64Array, values: Int32Array) -> Int64Array:
        """`[N]` the sums of the `values` `[n]` of examples over their `rows` `[n]`."""
        return np.bincount(rows, values, len(self.tokens)).astype(np.int64)  # exact below 2**53

    def _account(self, fitting: Examples) -> dict[str, int]:
        rest = self.tokens - self.trimmed - self._per_row(fitting.rows, fitting.lengths)
        return {
            "tokens_in": int(self.tokens.sum()),
            "tokens_repeated": int(-rest[rest < 0].sum()),
            "tokens_trimmed": int(self.trimmed.sum()),
            "tokens_dropped": int(rest[rest > 0].sum()),
            "turns_in": int(self.turns.sum()),
            "turns_dropped": int(self.turns.sum() - fitting.turns.sum()),
        }


def _trains(conversation: Conversation, first: int = 0) -> bool:
    """Whether a message from the `first` on is trained, of a conversation that states it for each."""
    weights = (conversation.weights or [])[first:]
    return any(
        weight and message["role"] == "assistant"
        for message, weight in zip(conversation.messages[first:], weights, strict=True)
    )
