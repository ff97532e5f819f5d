"""A rendered batch as columns: where pieces begin, in bytes, for all rows of a path at once."""

from collections.abc import Sequence

import numpy as np

from premask.dtypes import Float32Array, Int32Array, Int64Array
from premask.mask.choices import Path
from premask.mask.controls import Places
from premask.mask.search import Intervals
from premask.mask.spans import ByteSpans
from premask.read import Conversation
from premask.render.program import Group, Rendered


class Columns:
    """The byte positions of a rendered batch, group by group."""

    def __init__(self, rendered: Rendered[Path]) -> None:
        self.groups = rendered.groups
        self.borders = [_borders(g.lengths) for g in self.groups]
        self.sizes = np.zeros(len(rendered.texts), np.int64)
        self.turn_counts = np.zeros(len(rendered.texts), np.int32)
        for group, borders in zip(self.groups, self.borders, strict=True):
            self.sizes[group.rows] = borders[:, -1]
            self.turn_counts[group.rows] = group.analysis.turns

    def controls(self) -> Places:
        """Where the template itself writes control tokens."""
        rows = [np.repeat(g.rows, len(g.analysis.control_pieces)) for g in self.groups]
        starts = [
            (b[:, g.analysis.control_pieces] + g.analysis.control_bytes).ravel()
            for g, b in zip(self.groups, self.borders, strict=True)
        ]
        all_rows, all_starts = _joined(rows), _joined(starts)
        order = np.argsort(all_rows, kind="stable")
        return Places(all_rows[order], all_starts[order])

    def control_texts(self, row: int) -> list[str]:
        """Which those of one row are, in order."""
        return next((g.analysis.control_texts for g in self.groups if (g.rows == row).any()), [])

    def texts(self, bases: Int64Array) -> tuple[Intervals, Int64Array]:
        """Where the conversations' own texts lie, the batch laid out at `bases`; and the row of each."""
        pairs = list(zip(self.groups, self.borders, strict=True))
        rows = _joined([np.repeat(g.rows, len(g.analysis.texts)) for g, _ in pairs])
        starts = bases[rows] + _joined([b[:, g.analysis.texts].ravel() for g, b in pairs])
        ends = bases[rows] + _joined([b[:, g.analysis.texts + 1].ravel() for g, b in pairs])
        order = np.lexsort((ends, starts))
        order = order[starts[order] < ends[order]]
        return Intervals(starts[order], ends[order]), rows[order]

    def turns(self) -> tuple[Places, Int64Array]:
        """The stretches that the model emits: their places and ends."""
        return self._stretches([g.analysis.turn_starts for g in self.groups])

    def words(self) -> tuple[Places, Int64Array]:
        """The same, from the first of the assistant's own words, which may begin within the generation prompt."""
        return self._stretches([g.analysis.word_starts for g in self.groups])

    def _stretches(self, first: list[Int64Array]) -> tuple[Places, Int64Array]:
        """Places and ends of the stretches of every group from pieces `first` to the ends of its turns."""
        rows = [np.repeat(g.rows, len(f)) for g, f in zip(self.groups, first, strict=True)]
        starts = _joined([b[:, f].ravel() for b, f in zip(self.borders, first, strict=True)])
        ends = _joined([b[:, g.analysis.turn_ends].ravel() for g, b in zip(self.groups, self.borders, strict=True)])
        all_rows = _joined(rows)
        order = np.argsort(all_rows, kind="stable")
        return Places(all_rows[order], starts[order]), ends[order]

    def spans(self, conversations: Sequence[Conversation]) -> tuple[ByteSpans, Float32Array]:
        """The trained spans of every row with their weights; spans of weight 0 are left out."""
        rows, starts, ends, messages, weights = [], [], [], [], []
        for group, borders in zip(self.groups, self.borders, strict=True):
            path = group.analysis
            rows.append(np.repeat(group.rows, len(path.starts)))
            starts.append(borders[:, path.starts].ravel())
            ends.append(borders[:, path.ends].ravel())
            messages.append(np.tile(path.messages, len(group.rows)))
            weights.append(_weights(group, conversations).ravel())
        all_rows, weight = _joined(rows), np.concatenate([np.zeros(0, np.float32), *weights])
        order = np.argsort(all_rows, kind="stable")
        order = order[weight[order] != 0]
        spans = ByteSpans(
            all_rows[order], _joined(starts)[order], _joined(ends)[order], _joined(messages)[order].astype(np.int32)
        )
        return spans, weight[order]


def _borders(lengths: Int32Array) -> Int64Array:
    """`[n, p + 1]` where every piece starts, from the lengths `[n, p]`."""
    borders = np.zeros((lengths.shape[0], lengths.shape[1] + 1), np.int64)
    np.cumsum(lengths, axis=1, out=borders[:, 1:])
    return borders


def _weights(group: Group[Path], conversations: Sequence[Conversation]) -> Float32Array:
    """`[n, s]` float32, the weight of every span of a group: the message's own, or the recipe's default."""
    path = group.analysis
    weights = np.tile(path.default.astype(np.float32), (len(group.rows), 1))
    for n, row in enumerate(group.rows):
        stated = conversations[row].weights
        if stated is not None:
            own = np.array([np.nan if w is None else w for w in stated], np.float32)[path.messages]
            weights[n] = np.where(np.isnan(own), weights[n], own)
    return weights


def _joined(arrays: Sequence[Int64Array]) -> Int64Array:
    return np.concatenate([np.zeros(0, np.int64), *arrays])
