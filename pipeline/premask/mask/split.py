"""Conversations that are too long, split into several: cut between exchanges, each piece masked as a conversation.

Every exchange is masked alone once, to know how long it is; then neighbours are put together as far as they should fit,
and masked for good. A piece that is longer after all (a template need not add up) is halved. Every turn stands in one
piece, an exchange that is too long for itself is truncated, and a piece with nothing to train is left out.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from premask.dtypes import Examples, take
from premask.mask.cut import last_trained, shortened, truncated
from premask.mask.limits import Limits, Mask
from premask.mask.pieces import Exchanges, all_trained, turns_of, within_reach
from premask.read import Conversation
from premask.render.program import Failure

CHUNK_BYTES = 4 * 2**20
"""Pieces masked at a time, about: each repeats its head, so that few rows may become many times what they were."""

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
            ranges = [half for chunk in self._chunks(ranges) for half in self._round(chunk)]

    def _chunks(self, ranges: Iterable[_Range]) -> Iterator[list[_Range]]:
        """Neighbouring pieces that are masked together."""
        chunk, held = list[_Range](), 0
        for each in ranges:
            size = self.rows[each[0]].size(*each[1:])
            if chunk and held + size > CHUNK_BYTES:
                yield chunk
                chunk, held = [], 0
            chunk.append(each)
            held += size
        if chunk:
            yield chunk

    def _measured(self) -> list[list[tuple[int, int]]]:
        """The tokens of every exchange with its conversation's head, and how many of them are its tail.

        0 where it cannot be told.
        """
        lengths = [[(0, 0)] * len(row) for row in self.rows]
        for chunk in self._chunks((n, k, k + 1) for n, row in enumerate(self.rows) for k in range(len(row))):
            within = {each: piece for each in chunk if (piece := self._piece(each)) is not None}
            for n, k, _ in set(chunk) - set(within):
                lengths[n][k] = self.limits.max_length + 1, 0
            examples = self.mask([all_trained(piece) for piece in within.values()]).examples
            tails = examples.lengths - last_trained(examples)
            if not self.limits.trim_tail:
                tails[:] = 0
            encoded = list(within)
            for place, length, tail in zip(
                examples.rows.tolist(), examples.lengths.tolist(), tails.tolist(), strict=True
            ):
                n, k, _ = encoded[place]
                lengths[n][k] = length, tail
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
        beyond: list[_Range] = []
        pieces: dict[_Range, Conversation] = {}
        for each in ranges:
            piece = self._piece(each)
            if piece is None and each[2] - each[1] > 1:
                beyond.append(each)
            elif piece := piece or self._piece(each, whole=False):
                pieces[each] = piece
        tried = list(pieces)
        masked = self.mask(list(pieces.values()))
        for place, failure in masked.failures.items():
            n, first, _ = tried[place]
            if failure.reason != "nothing_to_train":
                detail = f"from turn {self.rows[n].turns[first]} on, split off: {failure.detail}"
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
        halved = [*beyond, *(tried[place] for place in examples.rows[long & several])]
        return [half for n, a, b in halved for half in ((n, a, (a + b) // 2), (n, (a + b) // 2, b))]

    def _note(self, tried: Sequence[_Range], examples: Examples, trimmed: Examples) -> None:
        """Count the tokens of pieces that are not halved."""
        owners = [tried[place][0] for place in examples.rows]
        np.add.at(self.rendered, owners, examples.lengths)
        np.add.at(self.trimmed, owners, examples.lengths - trimmed.lengths)

    def _keep(self, tried: Sequence[_Range], examples: Examples) -> None:
        ranges = [tried[place] for place in examples.rows]
        rows = np.array([self.rows[n].row for n, _, _ in ranges], np.int64)
        turns = np.array([self.rows[n].turns[first] for n, first, _ in ranges], np.int32)
        self.examples.append(replace(examples, rows=rows, source_turns=turns))
