"""plan.arrow: which example went where, for every split. An Arrow IPC file, one record batch per shard.

The driver writes it shard by shard and a work item maps only the batch of its own shard, so nobody holds it whole.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa

from premask.errors import DataError
from premask.pack.plan import Plan, PlanRows
from premask.store.atomic import Written, atomic_write
from premask.store.lists import column_of, view

PLAN = "plan.arrow"

PLAN_COLUMNS = {
    "partition": pa.int32(),
    "index": pa.int32(),
    "source_row": pa.int64(),
    "source_turn": pa.int32(),
    "length": pa.int32(),
    "supervised": pa.int32(),
    "pack": pa.int64(),
    "shard": pa.int32(),
    "split": pa.int8(),
}
"""The fields of PlanRows, and the number of the split in the metadata's `splits`."""


def write_plan(path: Path, plans: Mapping[str, Plan]) -> Written:
    """Write the plans of all splits (name -> plan, in this order). Flushed to the disk with the shards made by them."""
    counts = [[split, plan.shards] for split, plan in plans.items()]
    schema = pa.schema(PLAN_COLUMNS, metadata={"splits": json.dumps(counts)})
    with atomic_write(path, durable=False) as file, pa.ipc.new_file(file, schema) as writer:
        for number, plan in enumerate(plans.values()):
            for shard in range(plan.shards):
                writer.write_batch(_to_batch(plan.shard(shard), number, schema))
    return file.written(path)


def read_plan(path: Path) -> "StoredPlan":
    """Memory-map a plan. DataError where it is missing, cut short, or none."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        splits = dict(json.loads(reader.schema.metadata[b"splits"]))
    except (OSError, pa.ArrowInvalid, TypeError, KeyError, ValueError) as error:
        raise DataError(f"{path}: expected a plan, found: {error!r}; run again to make a new one") from error
    if dict(zip(reader.schema.names, reader.schema.types, strict=True)) != PLAN_COLUMNS:
        raise DataError(
            f"{path}: expected a plan of this version, found the columns {reader.schema.names}; run again with --fresh"
        )
    return StoredPlan(reader, splits)


class StoredPlan:
    """The plans of all splits, memory-mapped."""

    def __init__(self, reader: pa.RecordBatchFileReader, shards: dict[str, int]) -> None:
        self._reader = reader
        self.shards = shards
        """Number of shards of every split, by name, in order."""

    def shard(self, split: str, number: int) -> PlanRows:
        """The rows of one shard, as read-only views."""
        if not 0 <= number < self.shards[split]:
            raise IndexError(f"{split}: expected a shard from 0 to {self.shards[split] - 1}, found {number}")
        names = list(self.shards)
        before = sum(self.shards[name] for name in names[: names.index(split)])
        batch = self._reader.get_batch(before + number)
        return PlanRows(**{field.name: view(batch.column(field.name)) for field in fields(PlanRows)})

    def rows(self, split: str) -> Iterator[PlanRows]:
        """The rows of every shard of a split, in order."""
        return (self.shard(split, number) for number in range(self.shards[split]))


def _to_batch(rows: PlanRows, split: int, schema: pa.Schema) -> pa.RecordBatch:
    columns = [column_of(getattr(rows, name)) for name in PLAN_COLUMNS if name != "split"]
    return pa.RecordBatch.from_arrays([*columns, column_of(np.full(len(rows), split, np.int8))], schema=schema)
