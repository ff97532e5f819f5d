"""Tokenized rows as Arrow has them, and their labels: padded or packed, with labels of their own or without.

A row may hold several examples: `seq_lengths` (TRL's packing, premask's packs) or `position_ids` that begin anew say
where. What `attention_mask` leaves out is not trained. Arrow in, Arrow out: nothing becomes a Python object.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from premask.dtypes import IGNORE_INDEX, BoolArray, Int32Array, Int64Array, offsets_of
from premask.errors import DataError
from premask.mask.responses import ResponseFinder, mask_responses
from premask.mask.unsloth import UnslothMarkers, find_sequences

NoResponse = Literal["error", "drop"]
"""What becomes of rows with nothing to train."""

COLUMNS = ("input_ids", "labels", "attention_mask", "seq_lengths", "position_ids")
"""The columns that are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Masking:
    """How rows are masked; travels to other processes as it is."""

    markers: ResponseFinder
    vocabulary_size: int
    """Ids are below it."""
    last_response_only: bool = False
    masked_out: tuple[tuple[int, ...], ...] = ()
    """Sequences of ids that are not trained wherever they stand."""

    @property
    def like_unsloth(self) -> bool:
        """Whether everything is to be as Unsloth's function does it."""
        return isinstance(self.markers, UnslothMarkers)


@dataclass(frozen=True, slots=True)
class Masked:
    """Labels of N rows."""

    labels: pa.Array
    """Lists, of the type of the rows' own labels or else of their ids."""
    tokens: Int64Array
    """`[N]` tokens."""
    trained: BoolArray
    """`[N]` whether any label is not -100."""
    trained_tokens: int
    """Labels of all rows that are not -100."""
    quoted: Int64Array
    """`[N]` headers that were taken for quotations."""


def mask_rows(table: pa.Table, masking: Masking, first: int = 0) -> Masked:
    """The labels of the N rows of a table with `input_ids`. Labels that rows have already stay masked where they are.

    Raises DataError, which names the row (counted from `first`), where the table's columns do not fit together.
    """
    try:
        return _mask_rows(table, masking)
    except _Misfit as misfit:
        raise DataError(f"row {first + misfit.row:,}: {misfit}") from None


class _Misfit(Exception):
    """A row of a table that does not fit together."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


def _mask_rows(table: pa.Table, masking: Masking) -> Masked:
    raw, lengths = _flat(table, "input_ids")
    offsets = offsets_of(lengths)
    wanted = f"ids from 0 to {masking.vocabulary_size - 1:,}", "Was the row made with this tokenizer?"
    ids = _within(raw, 0, masking.vocabulary_size, offsets, *wanted)
    given = None
    if "labels" in table.column_names:
        wanted = f"labels that are ids, or {IGNORE_INDEX} where nothing is trained", "Mend or remove the column."
        given = _within(_alongside(table, "labels", lengths), IGNORE_INDEX, 2**31, offsets, *wanted)
    examples = offsets if masking.like_unsloth else _examples(table, offsets)  # whose function knows no packing
    labels, quoted = mask_responses(
        ids, examples, masking.markers, last_response_only=masking.last_response_only, given=given
    )
    if "attention_mask" in table.column_names and not masking.like_unsloth:
        padding = _alongside(table, "attention_mask", lengths) == 0
        if padding.any():
            labels[padding] = IGNORE_INDEX
    found = find_sequences(ids, offsets, masking.masked_out) if masking.masked_out else ()
    for sequence, places in zip(masking.masked_out, found, strict=True):
        labels[places[:, None] + np.arange(len(sequence))] = IGNORE_INDEX
    trained, filled = labels != IGNORE_INDEX, lengths > 0
    some = np.zeros(len(lengths), bool)
    some[filled] = np.logical_or.reduceat(trained, offsets[:-1][filled])  # stops at the first; sums take far longer
    kind = table.schema.field("labels" if given is not None else "input_ids").type
    return Masked(
        labels=_lists(labels, offsets, kind),
        tokens=lengths,
        trained=some,
        trained_tokens=int(np.count_nonzero(trained)),
        quoted=_summed(quoted, np.searchsorted(examples[:-1], offsets)),
    )


def _within(
    values: NDArray[np.integer[Any]], least: int, limit: int, offsets: Int64Array, expected: str, remedy: str
) -> Int32Array:
    """Values of rows as int32, if they lie between `least` and `limit`."""
    if len(values) and not least <= int(values.min()) <= int(values.max()) < limit:
        at = int(np.flatnonzero((values < least) | (values >= limit))[0])
        row = int(np.searchsorted(offsets, at, "right")) - 1
        raise _Misfit(row, f"expected {expected}, found {values[at]}. {remedy}")
    return values.astype(np.int32, copy=False)


def _examples(table: pa.Table, offsets: Int64Array) -> Int64Array:
    """Where every example begins, in rows that may be packed, and where the last ends; no row is without one."""
    lengths = np.diff(offsets)
    if "seq_lengths" in table.column_names:
        parts, counts = _flat(table, "seq_lengths")
        sums = _summed(parts, offsets_of(counts))
        bad = np.flatnonzero(sums != lengths)
        if len(bad):
            raise _Misfit(
                bad[0],
                f"expected seq_lengths that add up to its {lengths[bad[0]]} tokens, found {sums[bad[0]]}. Remove or "
                "mend the column.",
            )
        starts = offsets_of(parts.astype(np.int64))
    elif "position_ids" in table.column_names:
        starts = np.flatnonzero(_alongside(table, "position_ids", lengths) == 0)
    else:
        return offsets
    return np.unique(np.concatenate([offsets, starts]))


def _summed(values: Any, offsets: Int64Array) -> Int64Array:
    """`[N]` int64 sums of the stretches of `values` that begin at `offsets` `[N + 1]`."""
    sums, filled = np.zeros(len(offsets) - 1, np.int64), offsets[1:] > offsets[:-1]
    sums[filled] = np.add.reduceat(values, offsets[:-1][filled], dtype=np.int64)  # which reads on where one is empty
    return sums


def _flat(table: pa.Table, name: str) -> tuple[NDArray[np.integer[Any]], Int64Array]:
    """A column of lists as values, of their own type, and the lengths of the rows."""
    if name not in table.column_names:
        raise DataError(f"expected a column {name}, found {', '.join(table.column_names) or 'none'}.")
    column, kind = table.column(name), table.schema.field(name).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_integer(kind.value_type):
        raise DataError(f"{name}: expected lists of integers, found {kind}. Tokenize the rows first.")
    values = pc.list_flatten(column)
    if column.null_count or values.null_count:
        holes = [row is None or None in row for row in column.to_pylist()]
        raise _Misfit(holes.index(True), f"{name}: expected a list of integers, found null. Remove the row.")
    lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
    return values.to_numpy(), lengths


def _alongside(table: pa.Table, name: str, lengths: Int64Array) -> NDArray[np.integer[Any]]:
    """The values of a column with one value for every id."""
    values, own = _flat(table, name)
    bad = np.flatnonzero(own != lengths)
    if len(bad):
        raise _Misfit(
            bad[0],
            f"expected as many {name} as input_ids ({lengths[bad[0]]}), found {own[bad[0]]}. Mend or remove "
            "the column.",
        )
    return values


def with_labels(table: pa.Table, masked: Masked) -> pa.Table:
    """A table of rows with their labels, in the place of those that it had."""
    if "labels" in table.column_names:
        return table.set_column(table.column_names.index("labels"), "labels", masked.labels)
    return table.append_column("labels", masked.labels)


def _lists(values: Int32Array, offsets: Int64Array, kind: pa.DataType) -> pa.Array:
    """Rows of values as an array of the given type of list."""
    flat = pa.array(values).cast(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    if pa.types.is_large_list(kind):
        return pa.LargeListArray.from_arrays(pa.array(offsets), flat, type=kind)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), flat, type=kind)


def mask_batch(masking: Masking, batch: Mapping[str, Any], first: int = 0) -> dict[str, Any]:
    """The labels of a batch as `datasets` or a collator has it: lists of lists, or one tensor or array a column."""
    columns = {name: batch[name] for name in COLUMNS if batch.get(name) is not None}
    listed = {name: c.tolist() if hasattr(c, "tolist") else list(c) for name, c in columns.items()}
    table = pa.table({name: pa.array(rows, pa.list_(pa.int64())) for name, rows in listed.items()})
    labels, ids = mask_rows(table, masking, first).labels.to_pylist(), batch["input_ids"]
    if hasattr(ids, "new_tensor"):
        return {"labels": ids.new_tensor(labels)}
    return {"labels": np.array(labels) if isinstance(ids, np.ndarray) else labels}


def named(rows: Sequence[int] | Int64Array, most: int = 10) -> str:
    """Row numbers (from 0) for a message."""
    shown = ", ".join(str(row) for row in rows[:most])
    return f"row{'s' if len(rows) > 1 else ''} {shown}{', ...' if len(rows) > most else ''}"
