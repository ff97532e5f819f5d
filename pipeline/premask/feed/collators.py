"""Labels at batch time, and whether a collator keeps those that rows have. torch and transformers at the first call."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from premask.dtypes import IGNORE_INDEX
from premask.errors import DataError
from premask.feed.markers import Mask, inner, masking_for, parts_of
from premask.feed.rows import NoResponse, mask_batch, named

Collator = Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]]


class ResponseOnlyCollator:
    """`data_collator` that masks everything but the assistant's own words, then batches as another one does."""

    def __init__(
        self,
        tokenizer: Any,
        instruction_part: str | None = None,
        response_part: str | None = None,
        *,
        collator: Collator | None = None,
        last_response_only: bool = False,
        force_match: bool = True,
        mask_out_tokens: str | Sequence[str] | None = None,
        mask: Mask = "sampled",
        no_response: NoResponse = "error",
    ) -> None:
        """Find the markers, as `train_on_responses_only` does; its arguments mean the same.

        `collator` batches the masked rows (dictionaries of lists); by default they are padded.
        """
        self.masking = masking_for(
            tokenizer,
            parts_of(tokenizer, instruction_part, response_part),
            mask=mask,
            force_match=force_match,
            last_response_only=last_response_only,
            mask_out_tokens=mask_out_tokens,
        )
        self.collator = collator or padding_collator(inner(tokenizer))
        self.no_response = no_response

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Mask and batch rows with `input_ids`. Raises DataError where one has nothing to train, or all of them."""
        columns = {name: [feature[name] for feature in features] for name in features[0]}
        labels = mask_batch(self.masking, columns)["labels"]
        rows = [{**feature, "labels": row} for feature, row in zip(features, labels, strict=True)]
        empty = [n for n, row in enumerate(labels) if all(label == IGNORE_INDEX for label in row)]
        if empty and (self.no_response == "error" or len(empty) == len(rows)):
            raise DataError(
                f"{named(empty)} of the batch would train on nothing: no response was found. Check response_part or "
                'the chat template, remove such rows, or leave them out with no_response="drop".'
            )
        if empty:
            warnings.warn(f"left out {named(empty)} of a batch, with nothing to train.", stacklevel=2)
        return self.collator([row for n, row in enumerate(rows) if n not in empty])


def padding_collator(tokenizer: Any, like: Any = None) -> Collator:
    """A collator of transformers that pads ids and labels, as far as `like` says."""
    from transformers import DataCollatorForSeq2Seq

    options = {name: getattr(like, name) for name in ("pad_to_multiple_of", "max_length") if hasattr(like, name)}
    if isinstance(getattr(like, "padding", None), bool | str):
        options["padding"] = like.padding
    collator: Collator = DataCollatorForSeq2Seq(tokenizer=tokenizer, **options)
    return collator


def keeps_labels(collator: Collator, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a collator gives the labels to train of these rows as they are, by trying it."""
    wanted = np.concatenate([_trained(row["labels"]) for row in rows])
    try:
        found = _trained(collator([dict(row) for row in rows])["labels"])
    except Exception:  # it cannot pad labels, or wants other columns
        return False
    return np.array_equal(wanted, found)


def _trained(labels: Any) -> Any:
    flat = np.asarray(labels).ravel()
    return flat[flat != IGNORE_INDEX]
