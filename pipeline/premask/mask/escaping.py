"""Rows whose messages spell control tokens: found in the encoded batch, and encoded again, the spelt as plain text."""

import functools
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from premask.dtypes import Int32Array, Int64Array, offsets_of
from premask.encode.encoder import Encoded, Encoder
from premask.encode.escape import Escaper
from premask.mask.choices import Path
from premask.mask.columns import Columns
from premask.mask.controls import ControlIds, Vocabulary, unexpected
from premask.render.program import Failure, Rendered

Row = tuple[Int32Array, Int64Array, Int64Array]
"""Ids, starts and ends of one text."""


class Escaping:
    """What a vocabulary's control tokens are in a batch, and what to do where a message spells one."""

    def __init__(self, encoder: Encoder, vocabulary: Vocabulary) -> None:
        size = encoder.vocabulary_size
        self._controls = ControlIds(vocabulary.ids(size))
        self._only_tags = Vocabulary({}, vocabulary.tags, frozenset())
        self._tags = self._only_tags.ids(size)
        self._encoder, self._vocabulary = encoder, vocabulary

    @functools.cached_property
    def _escaper(self) -> Escaper:
        """Loaded when a row first needs it: a second tokenizer takes 0.3 seconds."""
        return Escaper(self._encoder, [*self._vocabulary.controls, *self._vocabulary.tags])

    def find(self, encoded: Encoded) -> Int64Array:
        """The tokens of a batch that are control tokens or tags."""
        return self._controls.find(encoded.ids)

    def escape(
        self,
        rendered: Rendered[Path],
        encoded: Encoded,
        found: Int64Array,
        columns: Columns,
        failures: dict[int, Failure],
        counts: Counter[str],
        reject: bool,
    ) -> tuple[Encoded, Int64Array]:
        """`encoded` with the rows encoded anew in which a message spells a control token; or such rows are rejected.

        And `found`, which `find` gave, as it gives it for the result.
        """
        due = columns.controls()
        words, ends = columns.words()
        hit = np.flatnonzero(unexpected(encoded, found, due, words, ends, self._tags))
        again: dict[int, Row] = {}
        for row in map(int, hit):
            if row in failures:
                continue
            if reject:
                failures[row] = Failure(
                    "control_token",
                    "expected messages without control tokens, found one spelt out; "
                    "take it out, or leave control_tokens=escape to have it as plain text",
                )
                continue
            first, last = np.searchsorted(due.rows, (row, row + 1))
            base = int(encoded.bases[row])
            own = list(zip((due.starts[first:last] - base).tolist(), columns.control_texts(row), strict=True))
            within = range(*np.searchsorted(words.rows, (row, row + 1)))
            spoken = [(int(words.starts[i]) - base, int(ends[i]) - base) for i in within]
            result = self._escaper.encode(rendered.texts[row], self._with_tags(rendered.texts[row], own, spoken))
            if result is None:
                failures[row] = Failure(
                    "control_token",
                    "a message spells a control token and holds a character of private plane 15, which stands for "
                    "such tokens while they are escaped; take one of them out",
                )
            else:
                again[row] = result
        counts["escaped_rows"] += len(again)
        if not again:
            return encoded, found
        replaced = _replaced(encoded, again)
        return replaced, self.find(replaced)

    def _with_tags(self, text: str, own: list[tuple[int, str]], spoken: list[tuple[int, int]]) -> list[tuple[int, str]]:
        """The template's own control tokens, and the tags that the assistant's words hold between them."""
        raw = text.encode()
        taken = {start for start, _ in own}
        found = list(own)
        for start, end in spoken:
            words = raw[start:end].decode()
            for at, tag in self._only_tags.find_all(words):
                place = start + len(words[:at].encode())
                if place not in taken:
                    found.append((place, tag))
        return sorted(found)


def _replaced(encoded: Encoded, again: dict[int, Row]) -> Encoded:
    """`encoded` with some rows encoded anew."""
    old = encoded.ids, encoded.starts, encoded.ends
    lengths = np.diff(encoded.offsets)
    columns: list[list[NDArray[Any]]] = [[], [], []]
    done = 0
    for row, (ids, starts, ends) in sorted(again.items()):
        new = ids, starts + encoded.bases[row], ends + encoded.bases[row]
        for column, before, own in zip(columns, old, new, strict=True):
            column += [before[encoded.offsets[done] : encoded.offsets[row]], own.astype(before.dtype)]
        lengths[row], done = len(ids), row + 1
    columns = [[*column, before[encoded.offsets[done] :]] for column, before in zip(columns, old, strict=True)]
    ids, starts, ends = (np.concatenate(column) for column in columns)
    return Encoded(ids, offsets_of(lengths), encoded.bases, starts, ends, encoded.by_offsets)
