"""Shards: the packs of one plan slice, gathered from the stage files and written as one Arrow IPC stream.

A shard is what Hugging Face `datasets` memory-maps: uncompressed, one record batch, one row per pack (design: a list
column each for ids, labels, positions, lengths, source rows). `source_turns` and `loss_weights` are there only in a
dataset that needs them. The schema's metadata carries the features as `Sequence`, which every `datasets` reads.

Cost, a core: about 25 ns a token, half of it for writing and hashing 12 bytes a token.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from premask.dtypes import Int64Array
from premask.errors import DataError
from premask.pack.plan import PlanRows
from premask.store.atomic import atomic_write
from premask.store.gather import Gathered, Room, Stages, gather, labels, loss_weights, positions
from premask.store.lists import list_column

SHARD_COLUMNS = {
    "input_ids": pa.int32(),
    "labels": pa.int32(),
    "position_ids": pa.int32(),
    "seq_lengths": pa.int32(),
    "source_rows": pa.int64(),
    "source_turns": pa.int32(),
    "loss_weights": pa.float32(),
}
"""Every column's values, in order."""

OPTIONAL_COLUMNS = {"source_turns", "loss_weights"}
"""The columns that a dataset may lack."""

TOKEN_COLUMNS = ("input_ids", "labels", "position_ids", "loss_weights")
"""The columns with one value per token; the others have one per example."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """What the manifest says of one shard."""

    file: str
    """Name within the folder of its split."""

    packs: int
    examples: int
    tokens: int
    supervised_tokens: int

    bytes: int
    """Size of the file."""

    sha256: str
    """Hex digest of the file."""


def features(*, source_turns: bool, weights: bool) -> dict[str, dict[str, Any]]:
    """The features as datasets 2.19 writes them: newer versions read `Sequence` too, older ones know no `List`."""
    return {
        name: {"feature": {"dtype": str(_dtype(name)), "_type": "Value"}, "_type": "Sequence"}
        for name in _columns(source_turns, weights)
    }


def shard_schema(*, source_turns: bool, weights: bool) -> pa.Schema:
    """Arrow schema of a shard; `source_turns` and `weights` say which optional columns the dataset has."""
    info = {"info": {"features": features(source_turns=source_turns, weights=weights)}}
    columns = {name: pa.list_(SHARD_COLUMNS[name]) for name in _columns(source_turns, weights)}
    return pa.schema(columns, metadata={"huggingface": json.dumps(info)})


def write_shard(
    path: Path,
    stages: Stages,
    rows: PlanRows,
    *,
    source_turns: bool = False,
    weights: bool = False,
    room: Room | None = None,
) -> ShardEntry:
    """Gather the packs of `rows` from `stages` (by partition number) and write them to `path`, atomically; unflushed.

    `source_turns` and `weights` are the same for all shards of a dataset; `room` is used until it returns. DataError
    where the plan and the stages do not belong together.
    """
    room = room or Room()
    examples = gather(stages, rows.partition, rows.index, rows.length, room)
    _check(path, examples, rows)
    table = shard_batch(examples, rows, shard_schema(source_turns=source_turns, weights=weights), room)
    with atomic_write(path, durable=False) as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_batch(table)
    written = file.written(path)
    return ShardEntry(
        file=path.name,
        packs=len(table),
        examples=len(rows),
        tokens=len(examples.ids),
        supervised_tokens=int(rows.supervised.sum(dtype=np.int64)),
        bytes=written.size,
        sha256=written.sha256,
    )


def shard_batch(examples: Gathered, rows: PlanRows, schema: pa.Schema, room: Room) -> pa.RecordBatch:
    """The packs of `rows` as one record batch with the columns of `schema`, some of them in `room`."""
    ends = np.flatnonzero(np.diff(rows.pack, append=-1)) + 1
    by_example = np.concatenate([[0], ends])
    by_token = np.concatenate([[0], np.cumsum(examples.lengths, dtype=np.int64)])[by_example]
    columns = [
        list_column(by_token if name in TOKEN_COLUMNS else by_example, _values(name, examples, rows, room))
        for name in schema.names
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _values(name: str, examples: Gathered, rows: PlanRows, room: Room) -> NDArray[Any]:
    match name:
        case "input_ids":
            return examples.ids
        case "labels":
            return labels(examples, room)
        case "position_ids":
            return positions(examples.lengths, room)
        case "loss_weights":
            return loss_weights(examples)
        case "seq_lengths":
            return rows.length
        case "source_rows":
            return rows.source_row
        case "source_turns":
            return rows.source_turn
    raise AssertionError(f"bug in premask: no values for the column {name}")


def _check(path: Path, examples: Gathered, rows: PlanRows) -> None:
    """DataError unless lengths and supervised counts are what the plan says: `[E]` int compares, cheap."""
    sizes: Int64Array = np.concatenate([[0], np.cumsum(examples.spans[:, 1] - examples.spans[:, 0], dtype=np.int64)])
    supervised = np.diff(sizes[np.concatenate([[0], np.cumsum(examples.span_counts)])])
    bad = np.flatnonzero((examples.lengths != rows.length) | (supervised != rows.supervised))
    if len(bad):
        row = bad[0]
        raise DataError(
            f"{path}: source row {rows.source_row[row]}: expected {rows.length[row]} tokens, {rows.supervised[row]}"
            f" supervised, as planned; found {examples.lengths[row]}, {supervised[row]} supervised, in the stage file;"
            " run again with --fresh"
        )


def _columns(source_turns: bool, weights: bool) -> list[str]:
    asked = {"source_turns": source_turns, "loss_weights": weights}
    return [name for name in SHARD_COLUMNS if asked.get(name, True)]


def _dtype(name: str) -> str:
    """What datasets calls a column's values: Arrow's name, but for `float`."""
    return {"float": "float32"}.get(str(SHARD_COLUMNS[name]), str(SHARD_COLUMNS[name]))
