"""Packs to the batch that Hugging Face style trainers take: one flattened sequence, positions, never an attention mask.

transformers keeps the examples of a pack apart by `position_ids` alone (they restart at 0 with every example), but only
where no attention mask and no cache are given: an all-ones mask, or `use_cache=True` outside `Trainer`, makes SDPA
ignore the positions, and examples see each other without any error. Hence one row of all packs end to end: nothing is
padded, so nothing has to be masked, and FlashAttention's varlen kernels want a batch of one row anyway.

Cost: one copy per column, which upcasts int32 to the int64 that torch's embedding and loss want. torch is imported at
the first call.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from premask.dtypes import Int64Array

if TYPE_CHECKING:
    import torch


class PackCollator:
    """`data_collator` for `transformers.Trainer` and for a plain `DataLoader`; it has no options and no state."""

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> "dict[str, torch.Tensor]":
        """Flatten B packs of T_b tokens to `input_ids`, `labels`, `position_ids`, each `[1, sum(T_b)]` int64.

        A feature holds `input_ids` and `labels` (lists, numpy or torch, not shifted), and `position_ids` or
        `seq_lengths`; other columns are left out. Raises ValueError where the columns of a pack do not fit together.
        """
        import torch

        columns = {
            "input_ids": [np.asarray(feature["input_ids"]) for feature in features],
            "labels": [np.asarray(feature["labels"]) for feature in features],
            "position_ids": [_positions(feature, number) for number, feature in enumerate(features)],
        }
        for number, lengths in enumerate(zip(*[map(len, column) for column in columns.values()], strict=True)):
            if len(set(lengths)) > 1:
                found = ", ".join(f"{name} {length}" for name, length in zip(columns, lengths, strict=True))
                raise ValueError(f"Pack {number} of the batch: expected columns of one length, found {found}.")
        return {
            name: torch.from_numpy(np.concatenate(column, dtype=np.int64)[None]) for name, column in columns.items()
        }


def _positions(feature: Mapping[str, Any], number: int) -> Int64Array:
    """`[T]` int64 positions of one pack: its own, or counted from the lengths of its examples."""
    if feature.get("position_ids") is not None:
        return np.asarray(feature["position_ids"], np.int64)
    if feature.get("seq_lengths") is None:
        raise ValueError(
            f"Pack {number} of the batch has neither position_ids nor seq_lengths: "
            "nothing would keep its examples apart. Keep one of the two columns "
            "(`remove_unused_columns=False` keeps both where a model's forward names neither)."
        )
    lengths = np.asarray(feature["seq_lengths"], np.int64)
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
