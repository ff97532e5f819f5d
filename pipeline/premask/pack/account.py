"""The account of a selection: what went in is what is used and what is not, by source and by reason.

in = train + validation + (a reason of LOST) + ...          and the split `train` holds train + repeated
"""

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np

from premask.dtypes import Int32Array, Int64Array
from premask.pack.pool import Pool
from premask.pack.selection import LOST, TRAIN, VALIDATION, Selection, per_row

Entry: TypeAlias = dict[str, int]
"""Counts by measure: rows, examples, tokens, supervised_tokens, turns."""

_FATES = ("train", "validation", *LOST)


def account(pool: Pool, selection: Selection, uses: Int32Array | Int64Array, sources: int) -> list[dict[str, Entry]]:
    """What became of the examples of every source, by fate; fates that nothing met are left out.

    `uses` `[N]` is how often each example stands in the split `train`; what goes beyond once is `repeated`. A source
    row counts as used where any of its examples is.
    """
    sums = np.zeros((sources, len(_FATES) + 1, 5), np.int64)
    for source, part in pool.parts():
        fate = selection.fate[part]
        begins = np.flatnonzero(pool.begins_row(part))
        of_rows = np.minimum.reduceat(fate, begins)
        sums[source, :-1, 0] += np.bincount(of_rows, minlength=len(_FATES))
        columns = (np.ones(len(fate), np.int32), pool.length[part], pool.supervised[part], pool.turns[part])
        again = np.where(fate == TRAIN, uses[part].astype(np.int64) - 1, 0)
        for measure, values in enumerate(columns, 1):
            sums[source, :-1, measure] += np.bincount(fate, values, len(_FATES)).astype(np.int64)
            sums[source, -1, measure] += int((values * again).sum())
    return [
        {name: _entry(row) for name, row in zip((*_FATES, "repeated"), each, strict=True) if row.any()} for each in sums
    ]


def _entry(row: Int64Array) -> Entry:
    measures = ("rows", "examples", "tokens", "supervised_tokens", "turns")
    return dict(zip(measures, row.tolist(), strict=True))


class Lost(NamedTuple):
    """A source row of which no example is used."""

    row: int
    """Counted within its partition."""
    reason: str
    """One of `LOST`."""
    turns: int
    tokens: int


def lost_rows(pool: Pool, selection: Selection, partition: int) -> Iterator[Lost]:
    """The source rows of a partition of which no example is used, in order."""
    part = slice(*pool.starts[partition : partition + 2].tolist())
    begins = np.flatnonzero(pool.begins_row(part))
    if not len(begins):
        return
    fates = np.minimum.reduceat(selection.fate[part], begins)
    turns, tokens = per_row(pool.turns[part], begins), per_row(pool.length[part], begins)
    for place in np.flatnonzero(fates > VALIDATION):
        row = int(pool.row[part][begins[place]])
        yield Lost(row, LOST[fates[place] - 2], int(turns[place]), int(tokens[place]))
