"""The files around the shards that make a folder a Hugging Face `DatasetDict`: `datasets.load_from_disk(folder)`.

Written as datasets 2.19 writes them, but deterministic: the fingerprint is a hash of the shards' hashes.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from premask.store.atomic import write_json
from premask.store.shards import ShardEntry, features


def shard_name(number: int, count: int) -> str:
    """File name of shard `number` (from 0) of `count`: data-00000-of-00008.arrow."""
    return f"data-{number:05d}-of-{count:05d}.arrow"


def shard_path(folder: Path, split: str, number: int, count: int) -> Path:
    """Where shard `number` of `count` of a split lies in the dataset `folder`."""
    return folder / split / shard_name(number, count)


def layout_names(splits: Iterable[str]) -> list[str]:
    """The files that `write_layout` writes, relative to the dataset's folder."""
    own = ("dataset_info.json", "state.json")
    return ["dataset_dict.json", *(f"{split}/{name}" for split in splits for name in own)]


def write_layout(
    folder: Path, splits: Mapping[str, Sequence[ShardEntry]], *, source_turns: bool = False, weights: bool = False
) -> None:
    """Write dataset_dict.json, and dataset_info.json and state.json of every split (name -> its shards, in order)."""
    for split, shards in splits.items():
        info = {
            "citation": "",
            "description": "",
            "features": features(source_turns=source_turns, weights=weights),
            "homepage": "",
            "license": "",
        }
        # The order of the features is that of the columns: keys must not be sorted.
        write_json(folder / split / "dataset_info.json", info, sort_keys=False)
        state: dict[str, Any] = {
            "_data_files": [{"filename": shard.file} for shard in shards],
            "_fingerprint": fingerprint(shards),
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        write_json(folder / split / "state.json", state)
    write_json(folder / "dataset_dict.json", {"splits": list(splits)})


def fingerprint(shards: Sequence[ShardEntry]) -> str:
    """16 hex digits, by which datasets names its caches: equal for equal shards in equal order."""
    return hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()[:16]
