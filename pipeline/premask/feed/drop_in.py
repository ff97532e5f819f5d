"""Unsloth's `train_on_responses_only`, with the mask right: one call on a trainer whose rows are tokenized already.

Works on the trainers of Hugging Face and TRL, without a GPU: rows padded or packed, in memory, on disk or streamed,
with labels of their own or without. `mask="sampled"` is premask's definition, found from the ids alone;
`mask="unsloth"` gives the labels that Unsloth's function gives.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from premask.errors import UsageError
from premask.feed.collators import keeps_labels, padding_collator
from premask.feed.markers import Mask, inner, masking_for, parts_of
from premask.feed.rows import Masking, NoResponse, mask_batch
from premask.feed.splits import masked_dataset


def train_on_responses_only(
    trainer: Any,
    instruction_part: str | None = None,
    response_part: str | None = None,
    *,
    force_match: bool = True,
    tokenizer: Any = None,
    return_function: bool = False,
    num_proc: int | None = None,
    last_response_only: bool = False,
    mask_out_tokens: str | Sequence[str] | None = None,
    mask: Mask = "sampled",
    no_response: NoResponse = "error",
) -> Any:
    """Mask everything but the assistant's own words in a trainer's datasets, and return the trainer.

    `instruction_part` and `response_part` are what a user's and an assistant's turn begin with; without them they are
    found in the tokenizer's chat template. `tokenizer` is by default the trainer's. `last_response_only` trains the
    last turn of every row (of every example, where rows are packed and say where examples begin). `mask_out_tokens`
    are texts that are never trained. Labels that rows have already stay masked where they are -100. `num_proc` is the
    number of processes, by default one: masking is faster than copying rows between processes.

    `mask="sampled"` trains what the model has to emit: from behind an assistant's header to its terminator.
    `mask="unsloth"` gives the labels of Unsloth's function, to which alone `force_match` matters.

    Rows with nothing to train raise DataError, which names them; `no_response="drop"` leaves them out with a warning,
    as Unsloth's function does (so does `mask="unsloth"`). In a stream that happens when the row comes.

    With `return_function` nothing is touched (`trainer` may be None): a function is returned that takes a batch
    (`input_ids`, and `labels` where there are any; lists or tensors) and returns `{"labels": ...}` of the same kind.

    Raises UsageError where markers cannot be found, DataError where rows are not tokenized or have nothing to train.
    """
    tokenizer = tokenizer if tokenizer is not None else _tokenizer_of(trainer)
    masking = masking_for(
        tokenizer,
        parts_of(tokenizer, instruction_part, response_part),
        mask=mask,
        force_match=force_match,
        last_response_only=last_response_only,
        mask_out_tokens=mask_out_tokens,
        stops=_stops_of(trainer),
    )
    if return_function:
        return partial(mask_batch, masking)
    no_response = "drop" if mask == "unsloth" else no_response
    masked = {
        name: _masked_splits(getattr(trainer, name, None), name, masking, num_proc, no_response)
        for name in ("train_dataset", "eval_dataset")
    }
    for name, dataset in masked.items():  # only when all of it has worked
        if dataset is not None:
            setattr(trainer, name, dataset)
    _mend_collator(trainer, tokenizer)
    return trainer


def _tokenizer_of(trainer: Any) -> Any:
    found = getattr(trainer, "processing_class", None) or getattr(trainer, "tokenizer", None)
    if found is None:
        raise UsageError("The trainer has no tokenizer (`processing_class`): give one as `tokenizer`.")
    return found


def _stops_of(trainer: Any) -> list[int]:
    """The ids on which the trainer's model stops generating."""
    config = getattr(getattr(trainer, "model", None), "generation_config", None)
    stops = getattr(config, "eos_token_id", None)
    return [] if stops is None else [stops] if isinstance(stops, int) else list(stops)


def _masked_splits(dataset: Any, name: str, masking: Masking, num_proc: int | None, no_response: NoResponse) -> Any:
    """A dataset, or a dictionary of datasets, masked; None stays None."""
    if isinstance(dataset, dict):
        splits = {
            key: masked_dataset(split, f"{name}[{key!r}]", masking, num_proc, no_response)
            for key, split in dataset.items()
        }
        return type(dataset)(splits)
    return None if dataset is None else masked_dataset(dataset, name, masking, num_proc, no_response)


def _mend_collator(trainer: Any, tokenizer: Any) -> None:
    """Replace a collator that makes labels of its own by one that pads those of the rows."""
    collator, dataset = getattr(trainer, "data_collator", None), trainer.train_dataset
    if dataset is None:
        dataset = trainer.eval_dataset
        dataset = next(iter(dataset.values()), None) if isinstance(dataset, dict) else dataset
    rows = [] if dataset is None else list(islice(_model_inputs(trainer, dataset), 2))
    if collator is not None and rows and not keeps_labels(collator, rows):
        trainer.data_collator = padding_collator(inner(tokenizer), collator)


def _model_inputs(trainer: Any, dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows of a dataset as a trainer hands them to its collator."""
    columns = None
    if getattr(trainer.args, "remove_unused_columns", True) and hasattr(trainer, "_set_signature_columns_if_needed"):
        trainer._set_signature_columns_if_needed()
        columns = trainer._signature_columns
    for row in dataset:
        yield {name: value for name, value in row.items() if columns is None or name in columns}
