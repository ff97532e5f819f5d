"""Labels for whole datasets of Hugging Face: in memory or on disk, or streamed.

A dataset is masked as Arrow, without a Python object per row; it keeps its columns, types and format. What was found
of each row travels in columns that are taken away again, so that nothing is read twice. `datasets` is imported at the
first call.
"""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from premask.dtypes import IGNORE_INDEX, Int64Array
from premask.errors import DataError, UsageError
from premask.feed.rows import Masking, NoResponse, mask_batch, mask_rows, named

FOUND = {"_premask_tokens": "int64", "_premask_trained": "bool", "_premask_quoted": "int64"}
"""Columns for what `Masked` says of every row."""

FIRST_ROWS = 16
"""Rows of a stream that are tried before it is trained on."""

BATCH_ROWS = 1000


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
    if isinstance(dataset, Dataset) and not len(dataset):
        raise DataError(f"{name}: expected rows, found none. Check how they were loaded or filtered.")
    columns = dataset.column_names or list(next(iter(dataset), {"input_ids": None}))
    if "input_ids" not in columns:
        raise DataError(
            f"{name}: expected tokenized rows with a column input_ids, found {', '.join(columns)}. Tokenize the rows "
            "first (SFTTrainer does, unless `skip_prepare_dataset` is set)."
        )
    try:
        if isinstance(dataset, IterableDataset):
            return _masked_stream(dataset, name, masking, no_response)
        return _masked_table(dataset, name, masking, num_proc, no_response)
    except DataError as error:
        raise error if str(error).startswith(name) else DataError(f"{name}: {error}") from None


def _masked_table(dataset: Any, name: str, masking: Masking, num_proc: int | None, no_response: NoResponse) -> Any:
    from datasets import Features, Value, concatenate_datasets

    labels = dataset.features.get("labels", dataset.features["input_ids"])
    masked = dataset.with_format("arrow").map(
        partial(_labels_and_findings, masking),
        batched=True,
        with_indices=True,
        batch_size=BATCH_ROWS,
        remove_columns=dataset.column_names,  # what is not changed need not be written again
        num_proc=num_proc if num_proc != 1 else None,  # one would be a process of its own
        features=Features({"labels": labels, **{column: Value(kind) for column, kind in FOUND.items()}}),
        desc=f"Masking {name}",
    )
    tokens, trained, quoted = (masked.data.column(column).to_numpy() for column in FOUND)
    how = dataset.format
    chosen = (
        None if set(how["columns"]) == set(dataset.column_names) else [*{**dict.fromkeys(how["columns"]), "labels": 0}]
    )
    others = dataset.remove_columns("labels") if "labels" in dataset.column_names else dataset
    masked = concatenate_datasets([others, masked.remove_columns(list(FOUND))], axis=1, split=dataset.split)
    if others is not dataset:
        masked = masked.select_columns(dataset.column_names)  # in their order
    masked = masked.with_format(
        how["type"], columns=chosen, output_all_columns=how["output_all_columns"], **how["format_kwargs"]
    )
    if quoted.any():
        warnings.warn(f"{name}: {quotations(quoted)}", stacklevel=4)
    empty = np.flatnonzero(~trained)
    if not len(empty):
        return masked
    if no_response == "error" or len(empty) == len(trained):
        raise DataError(f"{name}: {nothing_to_train(empty, tokens)}")
    warnings.warn(f"{name}: left out {named(empty)} of {len(trained):,}, with nothing to train.", stacklevel=4)
    return masked.select(np.flatnonzero(trained))


def _labels_and_findings(masking: Masking, table: pa.Table, rows: Sequence[int]) -> pa.Table:
    masked = mask_rows(table, masking, rows[0])
    found = (pa.array(values) for values in (masked.tokens, masked.trained, masked.quoted))
    return pa.table([masked.labels, *found], names=["labels", *FOUND])


def quotations(quoted: Int64Array) -> str:
    """What to say of rows with headers that were taken for quotations."""
    return (
        f"{quoted.sum():,} headers of the assistant stand where the chat template writes none; they were taken for "
        f"quotations, and no turn begins there ({named(np.flatnonzero(quoted))}). If they are none, the rows "
        "were rendered by another template: give instruction_part and response_part."
    )


def nothing_to_train(rows: Int64Array, tokens: Int64Array) -> str:
    """What to say of `rows` with nothing to train, of rows with so many `tokens`."""
    found = f"{named(rows)} of {len(tokens):,} would train on nothing: no response was found in them."
    if len(rows) == len(tokens):
        return f"{found} Check that response_part, or the tokenizer's chat template, is what the rows were made with."
    if (tokens[rows] == tokens.max()).mean() >= 0.9:
        many = "They are" if len(rows) > 1 else "It is"
        found += f" {many} {tokens.max():,} tokens long, as long as any: the response may be cut off (max_length)."
    return f'{found} Remove them, or leave them out with no_response="drop".'


def _masked_stream(dataset: Any, name: str, masking: Masking, no_response: NoResponse) -> Any:
    """A stream whose rows are masked as they come; the first ones are tried at once."""
    from datasets import Features

    known = dataset.features
    features = None
    if known is not None and "input_ids" in known:
        features = Features({**known, "labels": known.get("labels", known["input_ids"])})

    def mask(rows: Any) -> Any:
        return rows.map(
            partial(_stream_batch, masking, name, no_response),
            batched=True,
            batch_size=BATCH_ROWS,
            with_indices=True,
            features=features,
        )

    first = list(mask(dataset.take(FIRST_ROWS)))
    if not any(label != IGNORE_INDEX for row in first for label in row["labels"]):
        found = f"{name}: no response was found in the first {FIRST_ROWS} rows of the stream."
        warnings.warn(f"{found} Check response_part, or the tokenizer's chat template.", stacklevel=4)
    return mask(dataset)


def _stream_batch(
    masking: Masking, name: str, no_response: NoResponse, batch: dict[str, Any], indices: Sequence[int]
) -> dict[str, Any]:
    labels = mask_batch(masking, batch, indices[0])["labels"]
    kept = [n for n, row in enumerate(labels) if any(label != IGNORE_INDEX for label in row)]
    if len(kept) == len(labels) or masking.like_unsloth:  # whose function leaves streams whole
        return {**batch, "labels": labels}
    where = f"{name}: {named([indices[n] for n in sorted({*range(len(labels))} - {*kept})])} of the stream"
    if no_response == "error":
        raise DataError(f'{where}: no response to train was found. Remove them, or pass no_response="drop".')
    warnings.warn(f"{where}: left out, with nothing to train.", stacklevel=2)
    return {column: [values[n] for n in kept] for column, values in {**batch, "labels": labels}.items()}
