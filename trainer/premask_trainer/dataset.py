"""What a run has to know of its dataset beside the packs: its identity, its sources, its tokenizer and template."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from premask.dtypes import Int64Array
from premask.errors import UsageError
from premask.origin import find_templating
from premask.render.named import resolve_templates
from premask.store.layout import fingerprint
from premask.store.reader import Prepared


def identity(prepared: Prepared) -> dict[str, Any]:
    """What must be the same for a run to go on: JSON types, each by a name that people understand."""
    manifest = prepared.manifest
    return {
        "template": manifest["template"],
        "tokenizer": manifest["tokenizer"]["tokenizer.json"],
        "recipe": manifest["recipe"],
        **{f"{name} split": fingerprint(prepared[name].shards) for name in prepared},
    }


def require_same(saved: dict[str, Any], found: dict[str, Any], where: Path) -> None:
    """UsageError where a checkpoint belongs to another dataset."""
    changed = [name for name in sorted(saved.keys() | found.keys()) if saved.get(name) != found.get(name)]
    if changed:
        raise UsageError(
            f"{where}: expected the dataset that this run began with, found another one (other: {', '.join(changed)}); "
            "give the first one, begin anew with another --out, or go on all the same with --other-data"
        )


def load_tokenizer(prepared: Prepared, folder: str | None) -> Any:
    """The tokenizer of transformers with the chat template that the dataset was rendered with.

    UsageError where either is no longer what it was.
    """
    recipe, files = find_templating(prepared.path, prepared.manifest, folder)
    tokenizer = AutoTokenizer.from_pretrained(files.folder)
    tokenizer.chat_template = resolve_templates(recipe.template, files.templates).as_transformers()
    return tokenizer


@dataclass(frozen=True, slots=True)
class Sources:
    """Which source a source row comes from."""

    names: list[str]
    first_rows: Int64Array
    """`[P]` first global row of every partition, rising."""

    source: Int64Array
    """`[P]` the source of every partition."""

    def of(self, rows: Int64Array) -> Int64Array:
        """The sources `[N]` of source rows `[N]`, as places in `names`."""
        return self.source[np.searchsorted(self.first_rows, rows, side="right") - 1]


def sources_of(prepared: Prepared) -> Sources:
    """The sources of a dataset."""
    partitions = prepared.manifest["partitions"]
    return Sources(
        [source["name"] for source in prepared.manifest["sources"]],
        np.array([partition["first_row"] for partition in partitions], np.int64),
        np.array([partition["source"] for partition in partitions], np.int64),
    )
