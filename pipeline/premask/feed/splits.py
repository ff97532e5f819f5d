"""Labels for whole datasets of Hugging Face: in memory or on disk, or streamed.

A dataset is masked as Arrow, without a Python object per row; it keeps its columns, types and format. What was found
of each row travels in columns that are taken away again, so that nothing is read twice. `datasets` is imported at the
first call.
"""

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from premask.dtypes import IGNORE_INDEX, Int64Array
from premask.errors import DataError, UsageError
from premask.feed.rows import Masking, NoResponse, mask_batch, mask_rows, named
from premask.mask.unsloth import UnslothMarkers

_FOUND = ("_premask_tokens", "_premask_trained", "_premask_doubtful")
"""Tokens, tokens to train and turns not believed of every row."""

_FIRST_ROWS = 16
"""Rows of a stream that are tried before it is trained on."""

_BATCH_ROWS = 1000


def masked_dataset(dataset: Any, name: str, masking: Masking, num_proc: int | None, no_response: NoResponse) -> Any:
    """A Dataset or IterableDataset with its labels masked. `name` is how messages call it.

    Raises UsageError where it is neither, DataError where its rows are not tokenized or have nothing to train.
    """
    from datasets import Dataset, IterableDataset

    if not isinstance(dataset, Dataset | IterableDataset):
        raise UsageError(
            f"{name}: expected a datasets.Dataset or IterableDataset, found {type(dataset).__name__}. "
            "Make one of it (`datasets.Dataset.from_list`), or mask batches: `premask.ResponseOnlyCollator`."
        )
    columns = dataset.column_names or list(next(iter(dataset), {"input_ids": None}))
    if "input_ids" not in columns:
        raise DataError(
            f"{name}: expected tokenized rows with a column input_ids, found {', '.join(columns)}. Tokenize the rows "
            "first (SFTTrainer does, unless `skip_prepare_dataset` is set)."
        )
    masked = _masked_table if isinstance(dataset, Dataset) else _masked_stream
    try:
        return masked(dataset, name, masking, num_proc, no_response)
    except DataError as error:
        raise error if str(error).startswith(name) else DataError(f"{name}: {error}") from None


def _masked_table(dataset: Any, name: str, masking: Masking, num_proc: int | None, no_response: NoResponse) -> Any:
    from datasets import Features, Value

    features = {**dataset.features, "labels": dataset.features.get("labels", dataset.features["input_ids"])}
    masked = dataset.with_format("arrow").map(
        partial(_with_labels, masking),
        batched=True,
        batch_size=_BATCH_ROWS,
        num_proc=num_proc if num_proc != 1 else None,  # one would be a process of its own
        features=Features({**features, **{column: Value("int64") for column in _FOUND}}),
        desc=f"Masking {name}",
    )
    lengths, trained, doubtful = (masked.data.column(column).to_numpy() for column in _FOUND)
    result = _formatted_as(dataset, masked.remove_columns(list(_FOUND)))
    _warn_of_doubt(name, doubtful)
    empty = np.flatnonzero(trained == 0)
    if not len(empty):
        return result
    if no_response == "error" or len(empty) == len(trained):
        raise DataError(_nothing_to_train(name, empty, lengths))
    warnings.warn(f"{name}: left out {named(empty)} of {len(trained):,}, with nothing to train.", stacklevel=4)
    return result.select(np.flatnonzero(trained))


def _formatted_as(dataset: Any, masked: Any) -> Any:
    """The masked dataset in the format of the original, labels included."""
    how = dataset.format
    columns = None if set(how["columns"]) == set(dataset.column_names) else [*how["columns"], "labels"]
    return masked.with_format(
        how["type"],
        columns=columns and list(dict.fromkeys(columns)),
        output_all_columns=how["output_all_columns"],
        **how["format_kwargs"],
    )


def _with_labels(masking: Masking, table: pa.Table) -> pa.Table:
    """A table of rows with their labels, and what was found of each."""
    masked = mask_rows(table, masking)
    if "labels" in table.column_names:
        table = table.set_column(table.column_names.index("labels"), "labels", masked.labels)
    else:
        table = table.append_column("labels", masked.labels)
    for column, values in zip(_FOUND, (masked.tokens, masked.trained, masked.doubtful), strict=True):
        table = table.append_column(column, pa.array(values))
    return table


def _warn_of_doubt(name: str, doubtful: Int64Array) -> None:
    rows = np.flatnonzero(doubtful)
    if len(rows):
        warnings.warn(
            f"{name}: {doubtful.sum():,} turns begin like the assistant's, but another one begins before any "
            f"terminator; they are not trained ({named(rows)}). The rows may have been rendered by another chat "
            "template than the tokenizer's, or hold text that spells its markers.",
            stacklevel=5,
        )


def _nothing_to_train(name: str, rows: Int64Array, lengths: Int64Array) -> str:
    found = f"{name}: {named(rows)} of {len(lengths):,} would train on nothing: no response was found in them."
    if (lengths[rows] == lengths.max()).mean() >= 0.9 and len(rows) < len(lengths):
        found += f" They are {lengths.max():,} tokens long, like no other: their responses may be cut off (max_length)."
    if len(rows) == len(lengths):
        return f"{found} Check that response_part, or the tokenizer's chat template, is what the rows were made with."
    return f'{found} Remove them, or leave them out with no_response="drop".'


def _masked_stream(dataset: Any, name: str, masking: Masking, _: int | None, no_response: NoResponse) -> Any:
    """A stream whose rows are masked as they come; the first ones are tried at once."""
    from datasets import Features

    known = dataset.features
    features = None
    if known is not None and "input_ids" in known:
        features = Features({**known, "labels": known.get("labels", known["input_ids"])})

    def mask(rows: Any) -> Any:
        return rows.map(
            partial(_with_labels_in_stream, masking, name, no_response),
            batched=True,
            batch_size=_BATCH_ROWS,
            with_indices=True,
            features=features,
        )

    first = list(mask(dataset.take(_FIRST_ROWS)))
    if not any(label != IGNORE_INDEX for row in first for label in row["labels"]):
        found = f"{name}: no response was found in the first {_FIRST_ROWS} rows of the stream. "
        warnings.warn(f"{found}Check response_part, or the tokenizer's chat template.", stacklevel=4)
    return mask(dataset)


def _with_labels_in_stream(
    masking: Masking, name: str, no_response: NoResponse, batch: dict[str, Any], indices: Sequence[int]
) -> dict[str, Any]:
    labels = mask_batch(masking, batch)["labels"]
    rows = [row if isinstance(row, list) else row.tolist() for row in labels]
    kept = [n for n, row in enumerate(rows) if any(label != IGNORE_INDEX for label in row)]
    if len(kept) == len(rows) or isinstance(masking.markers, UnslothMarkers):  # whose function leaves streams whole
        return {**batch, "labels": labels}
    empty = sorted(set(range(len(rows))) - set(kept))
    where = f"{name}: {named([indices[n] for n in empty])} of the stream"
    if no_response == "error":
        raise DataError(f'{where}: no response to train was found. Remove them, or pass no_response="drop".')
    warnings.warn(f"{where}: left out, with nothing to train.", stacklevel=2)
    return {column: [values[n] for n in kept] for column, values in {**batch, "labels": rows}.items()}


def model_inputs(trainer: Any, dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows of a dataset as a trainer hands them to its collator."""
    columns = None
    if getattr(trainer.args, "remove_unused_columns", True) and hasattr(trainer, "_set_signature_columns_if_needed"):
        trainer._set_signature_columns_if_needed()
        columns = trainer._signature_columns
    for row in dataset:
        yield {name: value for name, value in row.items() if columns is None or name in columns}
