"""manifest.json: what a prepared dataset holds, from what, and how to check it. Written last: no manifest, no dataset.

Its content is the caller's but for two keys, which the reader needs: `format_version`, and `splits`, which names every
split's shards (`split_entry`). Equal contents, equal bytes. It carries its own checksum, which every reader checks.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from premask.errors import DataError
from premask.store.atomic import Written
from premask.store.sealed import unseal, write_sealed
from premask.store.shards import ShardEntry

FORMAT_VERSION = 1

MANIFEST = "manifest.json"

_REMEDY = "rebuild it with `premask repair`"

_TOTALS = ("packs", "examples", "tokens", "supervised_tokens", "bytes")


def split_entry(shards: Sequence[ShardEntry]) -> dict[str, Any]:
    """What the manifest says of one split: the totals of its shards, and the shards in order."""
    totals = {name: sum(getattr(shard, name) for shard in shards) for name in _TOTALS}
    return {**totals, "shards": [asdict(shard) for shard in shards]}


def write_manifest(folder: Path, content: Mapping[str, Any]) -> Written:
    """Write the manifest of the dataset in `folder`, atomically. `format_version` and a checksum are added."""
    return write_sealed(folder / MANIFEST, {**content, "format_version": FORMAT_VERSION})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the dataset in `folder`.

    DataError where there is none (the run did not finish), it is damaged, or of another format version.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
        content = json.loads(data)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: expected a manifest, found none: not a prepared dataset, or its run did not finish;"
            " check the path, or run `premask prepare` again to finish it"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: expected JSON, found {error}; {_REMEDY}") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: expected format version {FORMAT_VERSION}, found {version!r};"
            " use the premask that wrote it, or prepare the data again"
        )
    try:
        return unseal(data)
    except ValueError as error:
        raise DataError(f"{path}: expected the manifest as it was written, found {error}; {_REMEDY}") from error


def split_shards(folder: Path, manifest: Mapping[str, Any]) -> dict[str, list[ShardEntry]]:
    """The shards of every split, as the manifest names them. DataError where it does not."""
    names = {field.name for field in fields(ShardEntry)}
    try:
        return {
            split: [ShardEntry(**{name: shard[name] for name in names}) for shard in entry["shards"]]
            for split, entry in manifest["splits"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder / MANIFEST}: expected splits with shards, found none or incomplete ones ({error!r}); {_REMEDY}"
        ) from error
