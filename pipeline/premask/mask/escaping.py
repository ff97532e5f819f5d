"""Rows whose messages spell control tokens: found in the encoded batch, and encoded again, the spelt as plain text."""

import functools
from collections import Counter

import numpy as np

from premask.dtypes import Int32Array
from premask.encode.encoder import Encoded, Encoder
from premask.encode.escape import Escaper
from premask.mask.choices import Path
from premask.mask.columns import Columns
from premask.mask.controls import Vocabulary, unexpected
from premask.render.program import Failure, Rendered

Row = tuple[Int32Array, Int32Array, Int32Array]
"""Ids, starts and ends of one text."""


class Escaping:
    """What a vocabulary's control tokens are in a batch, and what to do where a message spells one."""

    def __init__(self, encoder: Encoder, vocabulary: Vocabulary) -> None:
        size = encoder.vocabulary_size
        self._controls = vocabulary.ids(size)
        self._only_tags = Vocabulary({}, vocabulary.tags, frozenset())
        self._tags = self._only_tags.ids(size)
        self._encoder, self._vocabulary = encoder, vocabulary

    @functools.cached_property
    def _escaper(self) -> Escaper:
        """Loaded when a row first needs it: a second tokenizer takes 0.3 seconds."""
        return Escaper(self._encoder, [*self._vocabulary.controls, *self._vocabulary.tags])

    def escape(
        self,
        rendered: Rendered[Path],
        encoded: Encoded,
        columns: Columns,
        failures: dict[int, Failure],
        counts: Counter[str],
        reject: bool,
    ) -> Encoded:
        """`encoded` with the rows encoded anew in which a message spells a control token; or such rows are rejected."""
        due = columns.controls()
        words, ends = columns.words()
        hit = np.flatnonzero(unexpected(encoded, due, words, ends, self._controls, self._tags))
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
            own = list(zip(due.starts[first:last].tolist(), columns.control_texts(row), strict=True))
            within = range(*np.searchsorted(words.rows, (row, row + 1)))
            spoken = [(int(words.starts[i]), int(ends[i])) for i in within]
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
        return _replaced(encoded, again)

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
    if not again:
        return encoded
    rows = len(encoded.offsets) - 1
    columns: list[list[Int32Array]] = [[], [], []]
    done = 0
    for row in [*sorted(again), rows]:
        a, b = encoded.offsets[done], encoded.offsets[row]
        for column, old, new in zip(
            columns, (encoded.ids, encoded.starts, encoded.ends), again.get(row, ()) or ((),) * 3, strict=True
        ):
            column += [old[a:b], np.asarray(new, np.int32)]
        done = row + 1
    lengths = np.diff(encoded.offsets)
    for row, (ids, _, _) in again.items():
        lengths[row] = len(ids)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    ids, starts, ends = (np.concatenate(column) for column in columns)
    return Encoded(ids, offsets, starts, ends, encoded.by_offsets)
