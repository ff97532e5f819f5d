"""Encoding a text in which only named places are control tokens.

Every control token gets a stand-in, one character of Unicode's private plane 15. A twin of the tokenizer finds the
stand-ins instead of the tokens' texts, so whatever a message spells is plain text to it, and the rest of the tokenizer
does exactly what it always does: normalizers, prefixes and flags included.
"""

from collections.abc import Sequence

import numpy as np

from premask.dtypes import Int32Array, Int64Array
from premask.encode.encoder import Encoder

_FIRST_STAND_IN = 0xF0000


class Escaper:
    """Encodes single texts, taking nothing for a control token but what it is told to."""

    def __init__(self, encoder: Encoder, controls: Sequence[str]) -> None:
        self._stand_ins = {text: chr(_FIRST_STAND_IN + n) for n, text in enumerate(controls)}
        self._twin = encoder.renamed(self._stand_ins)
        size = max(self._twin.vocabulary_size, encoder.vocabulary_size)
        self._ids = np.arange(size, dtype=np.int32)
        for token in encoder.added:  # the twin may number all of them anew, not just the stand-ins
            self._ids[self._twin.id_of(self._stand_ins.get(token.content, token.content))] = token.id

    def encode(self, text: str, tokens: Sequence[tuple[int, str]]) -> tuple[Int32Array, Int64Array, Int64Array] | None:
        """Ids, starts and ends (in bytes) of `text`, in which nothing but `tokens` are control tokens.

        `tokens` are first bytes and texts, in order. None where the text itself holds one of the stand-ins.
        """
        if any(_FIRST_STAND_IN <= ord(c) < _FIRST_STAND_IN + len(self._stand_ins) for c in text if ord(c) > 0xFFFF):
            return None
        raw, parts, end = text.encode(), [], 0
        for start, token in tokens:
            parts += [raw[end:start], self._stand_ins[token].encode()]
            end = start + len(token.encode())
        encoded = self._twin.encode([b"".join([*parts, raw[end:]]).decode()])
        # Behind every stand-in (4 bytes) the text is longer or shorter by what the token has more or less.
        places = np.array([start for start, _ in tokens], np.int64)
        growth = np.array([len(token.encode()) - 4 for _, token in tokens], np.int64)
        shifts = np.concatenate(([0], np.cumsum(growth)))
        behind = places - shifts[:-1] + 4
        starts, ends = (found + shifts[np.searchsorted(behind, found, "right")] for found in encoded.places(0))
        return self._ids[encoded.ids], starts, ends
