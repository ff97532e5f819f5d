"""Reading a prepared dataset: packs as read-only numpy views of the memory-mapped shards, nothing copied.

prepared = open_prepared(folder)
pack = prepared["train"][0]       # about 3 µs
pack.input_ids, pack.labels       # [T] int32 each
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from premask.dtypes import Float32Array, Int32Array, Int64Array
from premask.errors import DataError
from premask.store.lists import offsets_of, values_of
from premask.store.manifest import read_manifest, split_shards
from premask.store.shards import OPTIONAL_COLUMNS, SHARD_COLUMNS, TOKEN_COLUMNS, ShardEntry

if TYPE_CHECKING:
    from premask.feed.loader import Loader


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """One row of the dataset: E examples with T tokens, one after the other. Read-only views."""

    input_ids: Int32Array
    """`[T]` token ids."""

    labels: Int32Array
    """`[T]` the id where a token is trained, -100 elsewhere; not shifted."""

    position_ids: Int32Array
    """`[T]` place of every token in its example."""

    seq_lengths: Int32Array
    """`[E]` tokens of every example."""

    source_rows: Int64Array
    """`[E]` global number of the source row behind every example."""

    source_turns: Int32Array | None
    """`[E]` which of its turns comes first, -1 where all do; None where no row may become several examples."""

    loss_weights: Float32Array | None
    """`[T]` loss weight of every token, in a dataset that has weights."""


def open_prepared(folder: str | Path) -> "Prepared":
    """Open the dataset in `folder`.

    DataError where it has no manifest (an unfinished run), or one of another format version.
    """
    return Prepared(Path(folder))


class Prepared:
    """A prepared dataset: its manifest and its splits."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.manifest: dict[str, Any] = read_manifest(folder)
        self.splits: dict[str, Split] = {
            name: Split(folder / name, shards) for name, shards in split_shards(folder, self.manifest).items()
        }

    def __getitem__(self, split: str) -> "Split":
        if split not in self.splits:
            raise KeyError(f"{self.path}: expected one of the splits {', '.join(self.splits)}, found {split!r}")
        return self.splits[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self.splits)

    def __len__(self) -> int:
        return len(self.splits)

    def find(self, source_row: int) -> list[tuple[str, int, int]]:
        """Where the examples of a source row are: (split, pack, place in the pack), in order."""
        return [(name, *place) for name, split in self.splits.items() for place in split.find(source_row)]

    def loader(self, split: str = "train", **options: Any) -> "Loader":
        """Batches of torch tensors for any training loop; the options are those of `premask.feed.loader.Loader`."""
        from premask.feed.loader import Loader  # a room further down, which needs torch

        return Loader(self, split, **options)


class Split(Sequence[Pack]):
    """The packs of one split. A shard is mapped when first touched; pickles as its paths."""

    def __init__(self, folder: Path, shards: Sequence[ShardEntry]) -> None:
        self.path = folder
        self.shards = list(shards)
        self._ends = list(accumulate(shard.packs for shard in shards))
        self._open: dict[int, _Shard] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Pack: ...

    @overload
    def __getitem__(self, index: slice) -> list[Pack]: ...

    def __getitem__(self, index: int | slice) -> Pack | list[Pack]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        shard, place = self.place(index)
        return shard.pack(place)

    def place(self, index: int) -> "tuple[_Shard, int]":
        """The shard that holds a pack, and its place there. IndexError where there is no such pack."""
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"{self.path}: expected a pack from 0 to {len(self) - 1}, found {index}")
        number = bisect_right(self._ends, place)
        return self.shard(number), place - self.first_pack(number)

    def find(self, source_row: int) -> list[tuple[int, int]]:
        """Where the examples of a source row are: (pack, place in the pack), in order. Scans 8 bytes an example."""
        places = []
        for number in range(len(self.shards)):
            first = self.first_pack(number)
            places += [(first + pack, piece) for pack, piece in self.shard(number).find(source_row)]
        return places

    def first_pack(self, number: int) -> int:
        """The first pack of a shard."""
        return self._ends[number] - self.shards[number].packs

    def shard(self, number: int) -> "_Shard":
        """A shard, mapped. DataError where it is missing, cut short, or not what the manifest says."""
        if number not in self._open:
            self._open[number] = _open_shard(self.path / self.shards[number].file, self.shards[number])
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}


@dataclass(frozen=True, slots=True)
class _Shard:
    tokens: list[int]
    """`[P + 1]` first token of every pack; lists, because they are indexed one by one."""

    examples: list[int]
    """`[P + 1]` first example of every pack."""

    columns: dict[str, NDArray[Any]]
    """Every column's values, flat."""

    def bounds(self, number: int) -> tuple[slice, slice]:
        """Where the tokens and the examples of a pack are in the columns."""
        return (
            slice(self.tokens[number], self.tokens[number + 1]),
            slice(self.examples[number], self.examples[number + 1]),
        )

    def pack(self, number: int) -> Pack:
        of_token, of_example = self.bounds(number)
        columns = self.columns
        return Pack(
            input_ids=columns["input_ids"][of_token],
            labels=columns["labels"][of_token],
            position_ids=columns["position_ids"][of_token],
            seq_lengths=columns["seq_lengths"][of_example],
            source_rows=columns["source_rows"][of_example],
            source_turns=columns["source_turns"][of_example] if "source_turns" in columns else None,
            loss_weights=columns["loss_weights"][of_token] if "loss_weights" in columns else None,
        )

    def find(self, source_row: int) -> list[tuple[int, int]]:
        found = np.flatnonzero(self.columns["source_rows"] == source_row)
        packs = [bisect_right(self.examples, place) - 1 for place in found.tolist()]
        return [(pack, place - self.examples[pack]) for pack, place in zip(packs, found.tolist(), strict=True)]


def _open_shard(path: Path, entry: ShardEntry) -> _Shard:
    remedy = "run `premask verify` to see what is damaged and `premask repair` to rebuild it"
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            raise DataError(f"{path}: expected {entry.bytes} bytes, found {size}; {remedy}")
        (batch,) = pa.ipc.open_stream(pa.memory_map(str(path)))
        bounds = {name: offsets_of(batch.column(name)) for name in batch.schema.names}
        shard = _Shard(
            tokens=bounds["input_ids"].tolist(),
            examples=bounds["source_rows"].tolist(),
            columns={name: values_of(batch.column(name)) for name in batch.schema.names},
        )
    except (OSError, pa.ArrowInvalid, AttributeError, ValueError, KeyError) as error:
        raise DataError(f"{path}: expected a shard with one record batch, found: {error!r}; {remedy}") from error
    consistent = all(
        np.array_equal(offsets, bounds["input_ids" if name in TOKEN_COLUMNS else "source_rows"])
        for name, offsets in bounds.items()
    )
    complete = bounds.keys() >= SHARD_COLUMNS.keys() - OPTIONAL_COLUMNS
    if not (consistent and complete and len(batch) == entry.packs):
        raise DataError(
            f"{path}: expected {entry.packs} packs, lists of equal lengths in each, found another shard; {remedy}"
        )
    return shard
