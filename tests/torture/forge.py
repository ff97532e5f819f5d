"""Datasets that are wrong although every checksum fits: what a bug, not a broken disk, would leave."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from premask.store.layout import write_layout
from premask.store.manifest import read_manifest, split_entry, split_shards, write_manifest
from premask.store.shards import ShardEntry

Arrays = dict[str, NDArray[Any]]


def columns(path: Path) -> Arrays:
    """The flat values of every column of a shard, as copies; under `tokens` and `examples` the bounds of its packs."""
    with pa.OSFile(str(path)) as file:
        table = pa.ipc.open_stream(file).read_all().combine_chunks()
    batch = table.to_batches()[0]
    arrays = {name: batch.column(name).values.to_numpy().copy() for name in batch.schema.names}
    bounds = {"tokens": "input_ids", "examples": "seq_lengths"}
    return arrays | {key: batch.column(name).offsets.to_numpy().copy() for key, name in bounds.items()}


def batch_of(arrays: Arrays, schema: pa.Schema) -> pa.RecordBatch:
    """A shard's record batch from its flat values."""
    lists = []
    for field in schema:
        bounds = arrays["examples" if field.name in ("seq_lengths", "source_rows", "source_turns") else "tokens"]
        values = pa.array(arrays[field.name], field.type.value_type)
        lists.append(pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), values))
    return pa.RecordBatch.from_arrays(lists, schema=schema)


def schema_of(path: Path) -> pa.Schema:
    """The schema of a shard."""
    with pa.OSFile(str(path)) as file:
        return pa.ipc.open_stream(file).schema


def shard(folder: Path, change: Callable[[Arrays], None], split: str = "train", number: int = 0) -> Path:
    """Change the values of a shard; what the manifest counts of it stays."""
    entry = split_shards(folder, read_manifest(folder))[split][number]
    path = folder / split / entry.file
    arrays, schema = columns(path), schema_of(path)
    change(arrays)
    batch = batch_of(arrays, schema)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)
    seal(folder)
    return path


def manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, and seal it again."""
    content = read_manifest(folder)
    change(content)
    write_manifest(folder, {key: value for key, value in content.items() if key != "format_version"})


def seal(folder: Path) -> None:
    """Make the checksums of the manifest those of the files as they are now."""

    def change(content: dict[str, Any]) -> None:
        shards = {
            split: [_sealed(folder / split, entry) for entry in entries]
            for split, entries in split_shards(folder, content).items()
        }
        optional = {"source_turns": "source_turns", "loss_weights": "weights"}
        write_layout(folder, shards, **{key: name in content["columns"] for name, key in optional.items()})
        content["splits"] = {name: {**content["splits"][name], **split_entry(own)} for name, own in shards.items()}
        content["files"] = {name: _sha256(folder / name) for name in content["files"]}

    manifest(folder, change)


def _sealed(folder: Path, entry: ShardEntry) -> ShardEntry:
    path = folder / entry.file
    counts = {n: getattr(entry, n) for n in ("packs", "examples", "tokens", "supervised_tokens")}
    return ShardEntry(file=entry.file, **counts, bytes=path.stat().st_size, sha256=_sha256(path))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
