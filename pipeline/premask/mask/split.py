"""Conversations that are too long, split into several: cut between exchanges, each piece masked as a conversation.

Every exchange is masked alone once, to know how long it is; then neighbours are put together as far as they should fit,
and masked for good. A piece that is longer after all (a template need not add up) is halved. Every turn stands in one
piece, an exchange that is too long for itself is truncated, and a piece with nothing to train is left out.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from premask.dtypes import Examples, take
from premask.mask.cut import last_trained, shortened, truncated
from premask.mask.limits import Limits, Mask
from premask.mask.pieces import Exchanges, all_trained, turns_of, within_reach
from premask.read import Conversation
from premask.render.program import Failure

_Range = tuple[int, int, int]
"""Number of a conversation, its first exchange, the exchange behind its last."""


class Splitter:
    """Splits a batch of conversations; `whole` `[R]` are their lengths in tokens, 0 where they were not encoded."""

    def __init__(self, mask: Mask, rows: Sequence[Exchanges], whole: Sequence[int], limits: Limits) -> None:
        self.mask = mask
        self.rows = rows
        self.whole = whole
        self.limits = limits
        self.examples: list[Examples] = []
        """The pieces; `rows` counts as `Exchanges.row`."""
        self.rendered = np.zeros(len(rows), np.int64)
        """`[R]` tokens of all pieces, as they were encoded."""
        self.trimmed = np.zeros(len(rows), np.int64)
        """`[R]` tokens of their tails."""
        self.failures: dict[int, Failure] = {}
        """Why a row's pieces cannot be had, by `Exchanges.row`."""

    def run(self) -> None:
        """Split them all."""
        lengths = self._measured()
        ranges = [(n, *ends) for n in range(len(self.rows)) for ends in self._grouped(n, lengths[n])]
        while ranges:
            ranges = self._round(ranges)

    def _measured(self) -> list[list[tuple[int, int]]]:
        """The tokens of every exchange with its conversation's head, and how many of them are its tail.

        0 where it cannot be told.
        """
        ranges = [(n, k, k + 1) for n, row in enumerate(self.rows) for k in range(len(row))]
        pieces = [self._piece(each) for each in ranges]
        found = [(0, 0) if piece else (self.limits.max_length + 1, 0) for piece in pieces]
        encoded = [place for place, piece in enumerate(pieces) if piece]
        examples = self.mask([all_trained(piece) for piece in pieces if piece]).examples
        tails = (
            examples.lengths - last_trained(examples) if self.limits.trim_tail else np.zeros(len(examples), np.int64)
        )
        measured = zip(examples.lengths.tolist(), tails.tolist(), strict=True)
        for place, length in zip(examples.rows.tolist(), measured, strict=True):
            found[encoded[place]] = length
        lengths: list[list[tuple[int, int]]] = [[] for _ in self.rows]
        for (n, _, _), length in zip(ranges, found, strict=True):
            lengths[n].append(length)
        return lengths

    def _piece(self, of: _Range, whole: bool = True) -> Conversation | None:
        """A piece; None where it is beyond reach, or with `whole=False` where no turn of it is within."""
        piece = self.rows[of[0]].piece(*of[1:])
        reached = within_reach(piece, self.limits.reach)
        if whole:
            return piece if len(reached.messages) == len(piece.messages) else None
        return reached if turns_of(reached.messages) else None

    def _grouped(self, n: int, lengths: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Neighbouring exchanges, together while they should fit: their head counted once, the last tail not."""
        all_heads = sum(length for length, _ in lengths) - self.whole[n] if self.whole[n] else 0
        head = max(0, all_heads) // max(1, len(lengths) - 1)
        groups: list[tuple[int, int]] = []
        start, total = 0, 0
        for k, (length, tail) in enumerate(lengths):
            if k > start and total + length - head - tail > self.limits.max_length:
                groups.append((start, k))
                start, total = k, 0
            total += length - head if k > start else length
        return [*groups, (start, len(lengths))]

    def _round(self, ranges: Sequence[_Range]) -> list[_Range]:
        """Mask the pieces of `ranges` and keep those that fit; returns the halves of those that do not."""
        pieces = {each: piece for each in ranges if (piece := self._piece(each, whole=False)) is not None}
        tried = list(pieces)
        masked = self.mask(list(pieces.values()))
        for place, failure in masked.failures.items():
            n, first, _ = tried[place]
            if failure.reason != "nothing_to_train":
                detail = f"from turn {self.rows[n].turn(first)} on, split off: {failure.detail}"
                self.failures.setdefault(self.rows[n].row, Failure(failure.reason, detail))
        examples = masked.examples
        trimmed = shortened(examples, last_trained(examples)) if self.limits.trim_tail else examples
        long = trimmed.lengths > self.limits.max_length
        several = np.array([tried[place][2] - tried[place][1] > 1 for place in examples.rows], bool)
        self._note(tried, take(examples, ~(long & several)), take(trimmed, ~(long & several)))
        self._keep(tried, take(trimmed, ~long))
        alone = long & ~several
        if alone.any():
            spans = np.repeat(alone, np.diff(examples.span_offsets))
            whose = [pieces[tried[place]] for place in examples.rows[alone]]
            left = truncated(take(trimmed, alone), masked.messages[spans], whose, self.limits.max_length)
            self._keep(tried, left)
        halved = [tried[place] for place in examples.rows[long & several]]
        return [half for n, a, b in halved for half in ((n, a, (a + b) // 2), (n, (a + b) // 2, b))]

    def _note(self, tried: Sequence[_Range], examples: Examples, trimmed: Examples) -> None:
        """Count the tokens of pieces that are not halved."""
        owners = [tried[place][0] for place in examples.rows]
        np.add.at(self.rendered, owners, examples.lengths)
        np.add.at(self.trimmed, owners, examples.lengths - trimmed.lengths)

    def _keep(self, tried: Sequence[_Range], examples: Examples) -> None:
        ranges = [tried[place] for place in examples.rows]
        rows = np.array([self.rows[n].row for n, _, _ in ranges], np.int64)
        turns = np.array([self.rows[n].turn(first) for n, first, _ in ranges], np.int32)
        self.examples.append(replace(examples, rows=rows, source_turns=turns))
