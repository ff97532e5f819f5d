"""A rendered batch as columns: what a path knows by piece, as places in bytes, for all rows of the batch at once.

A path counts the pieces of its leaf; rows lie behind each other in the batch, so a row's first piece is added, and
`Rendered.borders` tells the byte. One gathering for each kind of piece, whatever the number of paths.
"""

from collections.abc import Sequence

import numpy as np

from premask.dtypes import Float32Array, Int64Array, offsets_of, ranges
from premask.mask.choices import Path
from premask.mask.controls import Places
from premask.mask.search import Intervals
from premask.mask.spans import ByteSpans
from premask.read import Conversation, Conversations
from premask.render.program import Rendered


class Columns:
    """The places of a rendered batch. Bytes are counted over the batch."""

    def __init__(self, rendered: Rendered[Path]) -> None:
        self.paths = rendered.paths
        self.which = rendered.which
        self._first = rendered.first[:-1]
        self._borders = rendered.borders
        self.bases: Int64Array = self._borders[rendered.first]
        """`[N + 1]` where every text begins."""

    def per_row(self, values: Sequence[int]) -> Int64Array:
        """`[N]` of every row the value of its path, 0 for rows without one."""
        found: Int64Array = np.array([*values, 0], np.int64)[self.which]
        return found

    def controls(self) -> Places:
        """Where the template itself writes control tokens."""
        rows, at = self._spread([len(path.control_pieces) for path in self.paths])
        pieces = _joined([path.control_pieces for path in self.paths])[at] + self._first[rows]
        return Places(rows, self._borders[pieces] + _joined([path.control_bytes for path in self.paths])[at])

    def control_texts(self, row: int) -> list[str]:
        """Which those of one row are, in order."""
        texts: list[str] = self.paths[self.which[row]].control_texts
        return texts

    def texts(self) -> Intervals:
        """Where the conversations' own texts lie."""
        rows, at = self._spread([len(path.texts) for path in self.paths])
        pieces = _joined([path.texts for path in self.paths])[at] + self._first[rows]
        starts, ends = self._borders[pieces], self._borders[pieces + 1]
        filled = starts < ends
        return Intervals(starts[filled], ends[filled])

    def turns(self) -> tuple[Places, Int64Array]:
        """The stretches that the model emits: their places and ends."""
        return self._stretches([path.turn_starts for path in self.paths])

    def words(self) -> tuple[Places, Int64Array]:
        """The same, from the first of the assistant's own words, which may begin within the generation prompt."""
        return self._stretches([path.word_starts for path in self.paths])

    def _stretches(self, starts: Sequence[Int64Array]) -> tuple[Places, Int64Array]:
        """Places and ends of the stretches of every path from pieces `starts` to the ends of its turns."""
        rows, at = self._spread(list(map(len, starts)))
        first = self._first[rows]
        ends = self._borders[_joined([path.turn_ends for path in self.paths])[at] + first]
        return Places(rows, self._borders[_joined(starts)[at] + first]), ends

    def spans(self, conversations: Sequence[Conversation]) -> tuple[ByteSpans, Float32Array]:
        """The trained spans of every row with their weights; spans of weight 0 are left out."""
        paths = self.paths
        rows, at = self._spread([len(path.starts) for path in paths])
        messages = _joined([path.messages for path in paths])[at]
        weights = np.concatenate([np.zeros(0, bool), *(path.default for path in paths)])[at].astype(np.float32)
        for row, conversation in Conversations.of(conversations).others.items():
            if conversation.weights is not None:
                own = slice(*np.searchsorted(rows, (row, row + 1)))
                weights[own] = _stated(conversation.weights, messages[own], weights[own])
        kept = weights != 0
        rows, at, weights = rows[kept], at[kept], weights[kept]
        first = self._first[rows]
        starts, ends = (_joined(pieces)[at] + first for pieces in ([p.starts for p in paths], [p.ends for p in paths]))
        return ByteSpans(rows, self._borders[starts], self._borders[ends], messages[kept].astype(np.int32)), weights

    def _spread(self, counts: Sequence[int]) -> tuple[Int64Array, Int64Array]:
        """The rows, each as often as its path has entries of a kind, and which entry of all paths' it is."""
        per_path = np.array([*counts, 0], np.int64)
        per_row = per_path[self.which]
        return np.repeat(np.arange(len(per_row)), per_row), ranges(offsets_of(per_path)[:-1][self.which], per_row)


def _stated(weights: Sequence[float | None], messages: Int64Array, default: Float32Array) -> Float32Array:
    """`[s]` the weight of every span of a row: its message's own, or else the recipe's."""
    own = np.array([np.nan if weight is None else weight for weight in weights], np.float32)[messages]
    return np.where(np.isnan(own), default, own)


def _joined(arrays: Sequence[Int64Array]) -> Int64Array:
    return np.concatenate([np.zeros(0, np.int64), *arrays])
