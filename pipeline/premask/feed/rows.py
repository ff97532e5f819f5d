"""Tokenized rows as Arrow has them, and their labels: padded or packed, with labels of their own or without.

Which stretches of a row belong together follows from what the row has: `seq_lengths` (TRL's packing, premask's packs)
or `position_ids` that restart; what `attention_mask` leaves out is padding. Arrow in, Arrow out: nothing becomes a
Python object.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from premask.dtypes import IGNORE_INDEX, Int32Array, Int64Array, offsets_of
from premask.errors import DataError
from premask.mask.responses import Markers, mask_responses, trained_per_row
from premask.mask.unsloth import UnslothMarkers, find_sequences

NoResponse = Literal["error", "drop"]
"""What becomes of rows with nothing to train."""

COLUMNS = ("input_ids", "labels", "attention_mask", "seq_lengths", "position_ids")
"""The columns that are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Masking:
    """How rows are masked; travels to other processes as it is."""

    markers: Markers
    last_response_only: bool = False
    keep_labels: bool = True
    """Labels that rows have already stay masked where they are -100."""
    pad: int | None = None
    """The id of padding that no attention mask tells; only where it means nothing else."""
    masked_out: tuple[tuple[int, ...], ...] = ()
    """Sequences of ids that are not trained wherever they stand."""


@dataclass(frozen=True, slots=True)
class Masked:
    """Labels of N rows."""

    labels: pa.Array
    """List of the type of the rows' labels, or else of their ids."""
    tokens: Int64Array
    """`[N]` tokens."""
    trained: Int64Array
    """`[N]` tokens to train."""
    doubtful: Int64Array
    """`[N]` turns that were not believed: they have a header, and another one before any terminator."""


def mask_rows(table: pa.Table, masking: Masking) -> Masked:
    """The labels of the rows of a table with `input_ids`. Raises DataError where its columns do not fit together."""
    ids, lengths = _flat(table, "input_ids")
    offsets = offsets_of(lengths)
    given = None
    if "labels" in table.column_names and masking.keep_labels:
        given = _like(table, "labels", lengths)
    whole = isinstance(masking.markers, UnslothMarkers)  # which knows no padding and no packing
    labels, doubtful = (
        _labels(ids, offsets, given, masking) if whole else _by_parts(table, ids, offsets, given, masking)
    )
    for sequence, places in zip(masking.masked_out, find_sequences(ids, offsets, masking.masked_out), strict=True):
        labels[places[:, None] + np.arange(len(sequence))] = IGNORE_INDEX
    kind = table.schema.field("labels" if given is not None else "input_ids").type
    rows = np.searchsorted(offsets, doubtful, "right") - 1
    return Masked(
        labels=_lists(labels, offsets, kind),
        tokens=lengths,
        trained=trained_per_row(labels, offsets),
        doubtful=np.bincount(rows, minlength=len(lengths)).astype(np.int64),
    )


def _labels(
    ids: Int32Array, offsets: Int64Array, given: Int32Array | None, masking: Masking
) -> tuple[Int32Array, Int64Array]:
    turns = masking.markers.turns(ids, offsets)
    labels = mask_responses(
        ids, offsets, masking.markers, last_response_only=masking.last_response_only, given=given, turns=turns
    )
    return labels, np.minimum(turns.doubtful, max(len(ids) - 1, 0))


def _by_parts(
    table: pa.Table, ids: Int32Array, offsets: Int64Array, given: Int32Array | None, masking: Masking
) -> tuple[Int32Array, Int64Array]:
    """As `_labels`, with padding left out and every part of a packed row on its own."""
    borders = _borders(table, ids, offsets)
    kept = _not_padding(table, ids, offsets, masking.pad)
    if kept is None:
        return _labels(ids, borders, given, masking)
    place = np.flatnonzero(kept)
    inner = np.searchsorted(place, borders)
    labels = np.full(len(ids), IGNORE_INDEX, np.int32)
    labels[place], doubtful = _labels(ids[place], inner, None if given is None else given[place], masking)
    return labels, place[doubtful]


def _not_padding(
    table: pa.Table, ids: Int32Array, offsets: Int64Array, pad: int | None
) -> "np.ndarray[Any, np.dtype[np.bool_]] | None":
    """`[T]` which tokens are no padding, by the attention mask or else at the ends of rows; None where all are."""
    if "attention_mask" in table.column_names:
        kept = _like(table, "attention_mask", np.diff(offsets)) != 0
    elif pad is not None:
        ink = np.flatnonzero(ids != pad)
        first, behind = np.searchsorted(ink, offsets[:-1]), np.searchsorted(ink, offsets[1:])
        filled = first < behind
        steps = np.zeros(len(ids) + 1, np.int8)
        steps[ink[first[filled]]] = 1
        steps[ink[behind[filled] - 1] + 1] -= 1
        kept = np.cumsum(steps[:-1], dtype=np.int8) > 0
    else:
        return None
    return None if kept.all() else kept


def _borders(table: pa.Table, ids: Int32Array, offsets: Int64Array) -> Int64Array:
    """Where every example begins, in rows that are packed, and where the last ends."""
    if "seq_lengths" in table.column_names:
        parts, counts = _flat(table, "seq_lengths")
        sums = np.add.reduceat(np.append(parts, 0), offsets_of(counts)[:-1]) * (counts > 0) if len(counts) else counts
        bad = np.flatnonzero(sums != np.diff(offsets))
        if len(bad):
            raise DataError(
                f"row {bad[0]}: expected seq_lengths that add up to its {offsets[bad[0] + 1] - offsets[bad[0]]} "
                f"tokens, found {sums[bad[0]]}. Remove or mend the column."
            )
        return offsets_of(parts.astype(np.int64))
    if "position_ids" in table.column_names:
        starts = np.flatnonzero(_like(table, "position_ids", np.diff(offsets)) == 0)
        return np.unique(np.concatenate([offsets, starts]))
    return offsets


def _flat(table: pa.Table, name: str) -> tuple[Int32Array, Int64Array]:
    """A column of lists as int32 values and the lengths of the rows."""
    if name not in table.column_names:
        raise DataError(f"expected a column {name}, found {', '.join(table.column_names) or 'none'}.")
    column = table.column(name)
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise DataError(f"{name}: expected lists of integers, found {kind}. Tokenize the rows first.")
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(f"row {row}: {name}: expected a list, found null. Remove the row or fill it in.")
    values = pc.list_flatten(column)
    if not pa.types.is_integer(values.type) or values.null_count:
        raise DataError(
            f"{name}: expected lists of integers, found {kind}" + (" with nulls." if values.null_count else ".")
        )
    lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
    return values.to_numpy().astype(np.int32, copy=False), lengths


def _like(table: pa.Table, name: str, lengths: Int64Array) -> Int32Array:
    """The values of a column with one value for every id."""
    values, own = _flat(table, name)
    bad = np.flatnonzero(own != lengths)
    if len(bad):
        raise DataError(
            f"row {bad[0]}: expected as many {name} as input_ids ({lengths[bad[0]]}), found {own[bad[0]]}. "
            "Mend or remove the column."
        )
    return values


def _lists(values: Int32Array, offsets: Int64Array, kind: pa.DataType) -> pa.Array:
    """Rows of values as an array of the given type of list."""
    flat = pa.array(values).cast(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    if pa.types.is_large_list(kind):
        return pa.LargeListArray.from_arrays(pa.array(offsets), flat, type=kind)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), flat, type=kind)


def mask_batch(masking: Masking, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The labels of a batch as `datasets` or a collator has it: lists of lists, or one tensor or array a column."""
    columns = {name: batch[name] for name in COLUMNS if batch.get(name) is not None}
    listed = {name: c.tolist() if hasattr(c, "tolist") else list(c) for name, c in columns.items()}
    labels = mask_rows(pa.table({n: pa.array(c, pa.list_(pa.int64())) for n, c in listed.items()}), masking).labels
    ids = batch["input_ids"]
    if hasattr(ids, "new_tensor"):
        return {"labels": ids.new_tensor(labels.to_pylist())}
    return {"labels": np.array(labels.to_pylist()) if isinstance(ids, np.ndarray) else labels.to_pylist()}


def named(rows: Sequence[int] | Int64Array, most: int = 10) -> str:
    """Row numbers (from 0) for a message."""
    shown = ", ".join(str(row) for row in rows[:most])
    return f"row{'s' if len(rows) > 1 else ''} {shown}{', ...' if len(rows) > most else ''}"
