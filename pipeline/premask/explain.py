"""One source row through every stage: found in its source, read, rendered, masked, and why for every stretch."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from premask.encode.files import load_tokenizer_files
from premask.errors import UsageError
from premask.read import Partition, Rejected, convert, parse, read_partition
from premask.read.cut import cut_elements
from premask.recipe import Recipe
from premask.show.stages import render_stages
from premask.show.view import PackView, print_pack
from premask.steps import build_masker
from premask.store.manifest import read_manifest

if TYPE_CHECKING:
    from rich.console import Console


def explain(
    console: "Console", folder: Path, source_row: int, *, sources: Sequence[str] = (), tokenizer: str | None = None
) -> None:
    """Print what became of global row `source_row` of the dataset in `folder`.

    `sources` and `tokenizer` stand in for those that the manifest names, where they have moved. Raises UsageError where
    there is no such row, or its source is not found.
    """
    manifest = read_manifest(folder)
    name, number, format, raw = find_row(manifest, source_row, list(sources))
    where = f"source row {source_row}: row {number} of {name}"
    row = parse(raw)
    conversation = row if isinstance(row, Rejected) else convert(format, row)
    if isinstance(conversation, Rejected):
        console.print(f"{where}\nrejected: {conversation.reason}: {conversation.detail}", markup=False)
        return
    recipe = Recipe(**manifest["recipe"])
    masker = build_masker(recipe, load_tokenizer_files(tokenizer or recipe.tokenizer))
    explanation = masker.explain(conversation)
    console.print(render_stages(where, explanation, recipe.max_length))
    if len(explanation.ids):
        print_pack(
            PackView(
                ids=explanation.ids,
                labels=explanation.labels,
                seq_lengths=np.array([len(explanation.ids)], np.int32),
                source_rows=[source_row],
                token_bytes=lambda token: masker.encoder.spell([token]),
                special_ids={token.id for token in masker.encoder.added if token.special},
            ),
            console,
        )


def find_row(manifest: dict[str, Any], source_row: int, sources: list[str]) -> tuple[str, int, Any, bytes]:
    """Name of the source, number in it, format and bytes of a global row."""
    parts = [p for p in manifest["partitions"] if p["first_row"] <= source_row]
    if not parts or source_row >= manifest["rows"]["in"]:
        raise UsageError(f"--source-row {source_row}: expected a row from 0 to {manifest['rows']['in'] - 1}")
    part = parts[-1]
    source = part["source"]
    first = min(p["first_row"] for p in manifest["partitions"] if p["source"] == source)
    name = manifest["sources"][source]["name"]
    path = Path(sources[source] if sources else name)
    if not path.is_file():
        raise UsageError(f"{path}: expected the source of this row, found no file; name all sources with --source")
    rows = _rows(path, part, source_row - first)
    raw = next(rows, None)
    if raw is None:
        raise UsageError(f"{path}: expected row {source_row - first}, found fewer rows: the source has changed")
    return name, source_row - first, part["format"], raw


def _rows(path: Path, part: dict[str, Any], number: int) -> Any:
    """The rows of a source from row `number` of it on."""
    with path.open("rb") as file:
        is_array = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") and path.suffix != ".jsonl"
    if is_array:
        return islice(cut_elements(path), number, None)
    lines = read_partition(Partition(part["source"], path, 0, path.stat().st_size))
    return (line.raw for line in islice(lines, number, None))
