"""Stage files: what phase 1 leaves of one partition, an Arrow IPC file of examples in few record batches.

Read through a memory map: the columns that the plan needs (length, supervised, turns, digest ...) lie in buffers of
their own, so reading them never touches the ids. A stage file is temporary, hence not flushed to the disk: its receipt
carries its checksum, and a torn one is made again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from premask.dtypes import Examples, Float32Array, Int32Array, Int64Array, concatenated, ranges
from premask.dtypes import offsets_of as running
from premask.errors import DataError
from premask.store.atomic import Written, atomic_write
from premask.store.lists import (
    bytes_column,
    bytes_of,
    column_of,
    large_list_column,
    offsets_of,
    pair_column,
    pairs_of,
    values_of,
    view,
)

Places: TypeAlias = NDArray[np.intp] | slice

DIGEST_BYTES = 16

BATCH_TOKENS = 2**22
"""Tokens of a record batch, the last one aside: every shard opens every stage file, and each batch takes its time."""

_COLUMNS = {
    "input_ids": pa.large_list(pa.int32()),
    "spans": pa.large_list(pa.list_(pa.int32(), 2)),
    "span_weights": pa.large_list(pa.float32()),
    "row": pa.int64(),
    "turns": pa.int32(),
    "source_turn": pa.int32(),
    "length": pa.int32(),
    "supervised": pa.int32(),
}
STAGE_SCHEMA = pa.schema(_COLUMNS)
HASHED_SCHEMA = pa.schema({**_COLUMNS, "digest": pa.binary(DIGEST_BYTES)})
"""Where the recipe compares conversations."""


def write_stage(path: Path, batches: Iterable[Examples], *, hashed: bool = True) -> Written:
    """Write the batches, in order, as they come; `hashed` says whether they have digests.

    Those of `BATCH_TOKENS` are held and written as one.
    """
    schema = HASHED_SCHEMA if hashed else STAGE_SCHEMA
    with atomic_write(path, durable=False) as file, pa.ipc.new_file(file, schema) as writer:
        held: list[Examples] = []
        for examples in batches:
            held.append(examples)
            if sum(len(each.ids) for each in held) >= BATCH_TOKENS:
                writer.write_batch(_to_batch(concatenated(held), schema))
                held = []
        if held:
            writer.write_batch(_to_batch(concatenated(held), schema))
    return file.written(path)


def read_stage(path: Path) -> "Stage":
    """Memory-map a stage file. DataError where it is missing, cut short, or none."""
    try:
        whole = pa.memory_map(str(path)).read_buffer()
        reader = pa.ipc.open_file(whole)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: expected a whole stage file, found: {error}; run again to rebuild it") from error
    if reader.schema not in (STAGE_SCHEMA, HASHED_SCHEMA):
        raise DataError(
            f"{path}: expected a stage file of this version, found the columns {reader.schema.names};"
            " run again with --fresh"
        )
    return Stage(path, whole, batches)


@dataclass(frozen=True, slots=True)
class StageFiles:
    """Stage files by number: each is opened when it is asked for, and closed when nobody holds it any more."""

    paths: Sequence[str | Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> "Stage":
        return read_stage(Path(self.paths[number]))

    def __iter__(self) -> "Iterator[Stage]":
        return (self[number] for number in range(len(self)))


class Stage:
    """The N examples of one partition, memory-mapped."""

    def __init__(self, path: Path, whole: pa.Buffer, batches: list[pa.RecordBatch]) -> None:
        self.path = path
        self._whole = whole
        self._batches = batches

    def __len__(self) -> int:
        return sum(map(len, self._batches))

    @property
    def lengths(self) -> Int32Array:
        """`[N]` tokens of every example."""
        return self._column("length", np.int32)

    @property
    def supervised(self) -> Int32Array:
        """`[N]` trained tokens of every example."""
        return self._column("supervised", np.int32)

    @property
    def turns(self) -> Int32Array:
        """`[N]` assistant turns of every example."""
        return self._column("turns", np.int32)

    @property
    def source_turns(self) -> Int32Array:
        """`[N]` which turn every example was made for; -1 where it holds them all."""
        return self._column("source_turn", np.int32)

    @property
    def rows(self) -> Int64Array:
        """`[N]` source row of every example, counted within the partition."""
        return self._column("row", np.int64)

    @property
    def digests(self) -> NDArray[np.uint8]:
        """`[N, 16]` hash of every example's conversation. KeyError where they were written without."""
        parts = [bytes_of(batch.column("digest")) for batch in self._batches]
        return np.concatenate([np.zeros((0, DIGEST_BYTES), np.uint8), *parts])

    @property
    def weighted(self) -> bool:
        """Whether any span has a weight other than 1."""
        return any(bool((values_of(batch.column("span_weights")) != 1).any()) for batch in self._batches)

    def parts(self, index: Int32Array) -> "Iterator[tuple[Part, Places, Int32Array]]":
        """By record batch, which of the examples `index` `[E]` it holds (places in `index`), and their places in it.

        DataError for an example that is not there.
        """
        self._require(index)
        if len(self._batches) == 1:
            yield Part(self._batches[0], self._whole), slice(None), index
            return
        firsts = running(np.array([*map(len, self._batches)], np.int64))
        held = np.searchsorted(firsts, index, "right") - 1
        for number in np.flatnonzero(np.bincount(held)).tolist():
            places = np.flatnonzero(held == number)
            own = (index[places] - firsts[number]).astype(np.int32)
            yield Part(self._batches[number], self._whole), places, own

    def _require(self, index: Int32Array) -> None:
        """DataError for an index that is not there."""
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise DataError(
                f"{self.path}: expected example {index.max()}, found {len(self)} examples;"
                " the plan belongs to another run: run again with --fresh"
            )

    def _column(self, name: str, dtype: type[np.generic]) -> NDArray[Any]:
        return _joined([view(batch.column(name)) for batch in self._batches], dtype)


@dataclass(frozen=True, slots=True)
class Part:
    """One record batch of a stage file: views of it, so that little is read but what is asked for."""

    batch: pa.RecordBatch
    whole: pa.Buffer
    """The file, whose memory the batch's columns lie in."""

    def lengths(self, index: Int32Array) -> Int32Array:
        """`[E]` tokens of the examples `index` `[E]`."""
        lengths: Int32Array = view(self.batch.column("length"))[index]
        return lengths

    def copy_ids(self, index: Int32Array, lengths: Int32Array, out: Int32Array, at: Int64Array) -> None:
        """Copy the ids of the examples `index`, of `lengths` (both `[E]`), to the places `at` `[E]` of `out` `[T]`."""
        column = self.batch.column("input_ids")
        values = column.values.buffers()[1]  # none where there are no ids
        base = (values.address - self.whole.address) // 4 if values else 0  # Arrow aligns to 8 bytes
        starts = offsets_of(column)[index] + base
        memory = memoryview(self.whole)
        source, target = memory[: len(memory) // 4 * 4].cast("i"), out.data
        bounds = (at, at + lengths, starts, starts + lengths)
        for first, last, start, end in zip(*(bound.tolist() for bound in bounds), strict=True):
            target[first:last] = source[start:end]

    def spans_of(self, index: Int32Array) -> tuple[Int64Array, Int32Array, Float32Array]:
        """How many spans the examples `index` `[E]` have, the spans `[S, 2]` and their weights `[S]`, in order."""
        spans, weights = self.batch.column("spans"), self.batch.column("span_weights")
        offsets = offsets_of(spans)
        counts = offsets[index + 1] - offsets[index]
        which = ranges(offsets[index], counts)
        return counts, pairs_of(spans)[which], values_of(weights)[which]


def _joined(parts: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    """The arrays behind each other; no copy of a single one, which is nearly always all there is."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _to_batch(examples: Examples, schema: pa.Schema) -> pa.RecordBatch:
    columns: list[NDArray[Any] | pa.Array] = [
        large_list_column(examples.offsets, examples.ids),
        large_list_column(examples.span_offsets, pair_column(examples.spans)),
        large_list_column(examples.span_offsets, examples.span_weights),
        examples.rows,
        examples.turns,
        examples.source_turns,
        examples.lengths,
        examples.supervised,
    ]
    if schema == HASHED_SCHEMA:
        columns.append(bytes_column(examples.digests))
    return pa.RecordBatch.from_arrays([column_of(column) for column in columns], schema=schema)
