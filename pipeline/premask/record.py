"""What a run leaves on record: what the bytes depend on, what came out (the manifest), how it was made, the summary.

The description and the manifest are deterministic: equal inputs, equal bytes. Whatever may differ between two runs that
give the same dataset (hosts, times, absolute paths) is said in run.json alone.
"""

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from premask.encode.files import TokenizerFiles
from premask.intake import Sliced
from premask.mask.masker import MASK_RULES
from premask.read import Source, digest_file
from premask.recipe import Recipe
from premask.steps import templating_of
from premask.store.layout import layout_names
from premask.store.manifest import split_entry
from premask.store.shards import ShardEntry

RUN = "run.json"

DESCRIBED = ("recipe", "sources", "template", "tokenizer", "sizes", "mask_rules", "libraries")
"""The keys of a description."""

SHAPING = ("jinja2", "numpy", "orjson", "premask", "pyarrow", "tokenizers")
"""Libraries that may shape bytes."""


def describe(
    recipe: Recipe,
    sources: Sequence[Source],
    digests: Sequence[Mapping[str, Any]],
    files: TokenizerFiles,
    sizes: Mapping[str, int],
) -> dict[str, Any]:
    """All that the bytes of a dataset depend on; equal descriptions, equal datasets.

    `sizes` are those of partitions and shards.
    """
    return {
        "recipe": recipe.resolved(),
        "sources": [{"name": s.name, **d} for s, d in zip(sources, digests, strict=True)],
        **templating_of(recipe, files),
        "sizes": dict(sizes),
        **shaping(),
    }


def shaping() -> dict[str, Any]:
    """The versions of all code that may shape bytes."""
    return {
        "mask_rules": MASK_RULES,
        "libraries": {name: importlib.metadata.version(name) for name in SHAPING},
    }


def manifest_of(
    description: Mapping[str, Any],
    slices: Sequence[Sliced],
    offsets: Sequence[int],
    results: Sequence[Mapping[str, Any]],
    rejected: Counter[str],
    shards: Mapping[str, Sequence[ShardEntry]],
    columns: Sequence[str],
    folder: Path,
) -> dict[str, Any]:
    """The manifest of a dataset whose other files are all in `folder`."""
    counts: Counter[str] = sum((Counter(result["counts"]) for result in results), Counter())
    rows = offsets[-1]
    return {
        **description,
        "rows": {"in": rows, "kept": rows - rejected.total(), "rejected": dict(rejected)},
        "counts": {name: count for name, count in sorted(counts.items()) if name not in ("rows", "examples")},
        "partitions": [
            {
                "source": s.partition.source,
                "start": s.partition.start,
                "end": s.partition.end,
                "first_row": first,
                "format": s.format,
            }
            for s, first in zip(slices, offsets, strict=False)
        ],
        "columns": list(columns),
        "splits": {split: split_entry(entries) for split, entries in shards.items()},
        "files": {name: digest_file(folder / name) for name in ("plan.arrow", "rejected.jsonl", *layout_names(shards))},
    }


def how_made(
    description: Mapping[str, Any],
    sources: Sequence[Source],
    files: TokenizerFiles,
    workers: int,
    began: float,
    seconds: float,
) -> dict[str, Any]:
    """How it was made: what may differ between two runs that give the same dataset.

    And a copy of the description: should the manifest be lost, it can be made again from this.
    """
    template = description["recipe"]["template"]
    return {
        "began": began,
        "seconds": round(seconds, 3),
        "description": dict(description),
        "template": str(Path(template).expanduser().resolve()) if template else None,
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "workers": workers,
        "sources": [str(Path(s.path).resolve()) for s in sources],
        "tokenizer": str(files.folder.resolve()),
        "encoder": {"backend": "tokenizers", "version": importlib.metadata.version("tokenizers")},
    }


def summary_of(manifest: Mapping[str, Any], folder: Path, seconds: float) -> dict[str, Any]:
    """What the caller of `prepare` gets to know."""
    rows = manifest["rows"]
    keys = {"examples": "examples", "packs": "packs", "tokens": "tokens", "supervised": "supervised_tokens"}
    return {
        "rows": rows["in"],
        "kept": rows["kept"],
        "rejected": rows["rejected"],
        "splits": {
            split: {name: entry[key] for name, key in keys.items()} for split, entry in manifest["splits"].items()
        },
        "max_length": manifest["recipe"]["max_length"],
        "counts": manifest["counts"],
        "seconds": seconds,
        "out": str(folder),
    }
