"""One forward pass: packs end to end as torch tensors, with all that a masked loss and varlen attention want to know.

No copy but the one that puts packs end to end. What a model wants besides (int64 ids, positions, labels) is made when
it is asked for, on the device where the batch is by then: 4 bytes a token travel there instead of 24.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from premask.dtypes import IGNORE_INDEX, Int64Array
from premask.errors import DataError
from premask.store.reader import Split
from premask.store.shards import TOKEN_COLUMNS

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Packs end to end: T tokens in E examples, M of them trained."""

    ids: "torch.Tensor"
    """`[T]` int32: token ids."""

    rows: "torch.Tensor"
    """`[M]` int64: the places whose hidden states predict a trained token, which is the one behind each of them."""

    cu_seqlens: "torch.Tensor"
    """`[E + 1]` int32: where examples begin, and the last one ends."""

    max_seqlen: int
    """Tokens of the longest example."""

    token_weights: "torch.Tensor | None"
    """`[T]` float32: loss weights, in a dataset that has any; 0 where not trained."""

    source_rows: Int64Array
    """`[E]` global numbers of the source rows; stays on the host."""

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def input_ids(self) -> "torch.Tensor":
        """`[1, T]` int64."""
        return self.ids.long()[None]

    @property
    def position_ids(self) -> "torch.Tensor":
        """`[1, T]` int64, from 0 in every example."""
        import torch

        starts, ends = self.cu_seqlens[:-1], self.cu_seqlens[1:]
        first = torch.repeat_interleave(starts, ends - starts, output_size=len(self))  # the size given: nothing waits
        return (torch.arange(len(self), device=first.device) - first)[None]

    @property
    def targets(self) -> "torch.Tensor":
        """`[M]` int64: the trained tokens."""
        return self.ids[self.rows + 1].long()

    @property
    def weights(self) -> "torch.Tensor | None":
        """`[M]` float32: the weights of the targets; None in a dataset without weights."""
        return None if self.token_weights is None else self.token_weights[self.rows + 1]

    @property
    def labels(self) -> "torch.Tensor":
        """`[1, T]` int64, -100 where not trained, not shifted: for a model that computes its own loss."""
        labels = self.rows.new_full((1, len(self)), IGNORE_INDEX)
        labels[0, self.rows + 1] = self.targets
        return labels

    def to(self, device: "str | torch.device") -> Self:
        """The same batch on a device; the copy does not wait where the memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory."""
        return self._each(lambda tensor: tensor.pin_memory())

    @property
    def tensors(self) -> "list[torch.Tensor]":
        """All tensors of the batch."""
        found = [self.ids, self.rows, self.cu_seqlens, self.token_weights]
        return [tensor for tensor in found if tensor is not None]

    def _each(self, change: Any) -> Self:
        names = ("ids", "rows", "cu_seqlens") + (("token_weights",) if self.token_weights is not None else ())
        return replace(self, **{name: change(getattr(self, name)) for name in names})


def make_batch(split: Split, packs: Sequence[int], trained: int) -> Batch:
    """The packs of these numbers end to end, with `trained` tokens in all. DataError where it is another number."""
    import torch

    parts = _slices(split, packs)
    lengths = np.concatenate(parts["seq_lengths"])
    cu_seqlens = np.zeros(len(lengths) + 1, np.int32)
    lengths.cumsum(out=cu_seqlens[1:])
    mask = np.concatenate(parts["labels"])[1:] != IGNORE_INDEX  # the first token is never trained
    (rows,) = mask.nonzero()  # on booleans three times as fast as flatnonzero()
    if len(rows) != trained:
        raise DataError(
            f"{split.path}: packs {', '.join(map(str, packs))}: expected {trained} trained tokens, as planned, found "
            f"{len(rows)}; run `premask verify` to see what is damaged"
        )
    return Batch(
        ids=torch.from_numpy(np.concatenate(parts["input_ids"])),
        rows=torch.from_numpy(rows),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        max_seqlen=int(lengths.max()),
        token_weights=torch.from_numpy(np.concatenate(parts["loss_weights"])) if "loss_weights" in parts else None,
        source_rows=np.concatenate(parts["source_rows"]),
    )


def _slices(split: Split, packs: Sequence[int]) -> dict[str, list[NDArray[Any]]]:
    """Views of the columns that a batch is made of, pack by pack; a third of the cost of as many `Pack` objects."""
    places = [split.place(pack) for pack in packs]
    names = {*_COLUMNS, "loss_weights"} & places[0][0].columns.keys()
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for shard, place in places:
        tokens, examples = shard.bounds(place)
        for name, part in parts.items():
            part.append(shard.columns[name][tokens if name in TOKEN_COLUMNS else examples])
    return parts


_COLUMNS = ("input_ids", "labels", "seq_lengths", "source_rows")
