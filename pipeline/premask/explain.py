"""One source row through every stage: found in its source, read, rendered, masked, and why for every stretch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from premask.encode.files import load_tokenizer_files
from premask.errors import UsageError
from premask.intake import Input, input_of
from premask.maskers import build_masker
from premask.origin import read_record
from premask.read import Rejected, convert, expand, open_sources, parse, place_of, read_source, size_of, stamp_of
from premask.recipe import Recipe
from premask.rejected import REJECTED, rejected_rows
from premask.show.stages import render_stages
from premask.show.view import PackView, print_pack
from premask.store.manifest import read_manifest
from premask.store.plan_file import PLAN, read_plan

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True)
class Found:
    """A source row, found again."""

    input: Input
    number: int
    """Within its source."""
    raw: bytes | dict[str, Any]


def explain(
    console: "Console", folder: Path, source_row: int, *, sources: Sequence[str] = (), tokenizer: str | None = None
) -> None:
    """Print what became of global row `source_row` of the dataset in `folder`.

    `sources` and `tokenizer` stand in for those that the manifest names, where they have moved. Raises UsageError where
    there is no such row, or its source is not found.
    """
    manifest = read_manifest(folder)
    recipe = Recipe(**manifest["recipe"])
    found = find_row(folder, manifest, recipe, source_row, sources)
    where = f"source row {source_row}: row {found.number} of {found.input.source.name}"
    row = parse(found.raw)
    conversation = row if isinstance(row, Rejected) else convert(found.input.format, row, found.input.shape)
    if isinstance(conversation, Rejected):
        console.print(f"{where}\nrejected: {conversation.reason}: {conversation.detail}", markup=False)
        return
    masking = recipe.masking(found.input.source.argument)
    masker = build_masker(masking, load_tokenizer_files(tokenizer or recipe.tokenizer))
    explanation = masker.explain(conversation)
    known = rejected_rows(folder / REJECTED, manifest, read_plan(folder / PLAN)).get(source_row)
    if known is not None:
        explanation = replace(explanation, rejected=": ".join(known))
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


def find_row(
    folder: Path, manifest: Mapping[str, Any], recipe: Recipe, source_row: int, sources: Sequence[str]
) -> Found:
    """Find a row by its global number, in the source that the manifest names or in one of `sources`."""
    parts = [part for part in manifest["partitions"] if part["first_row"] <= source_row]
    if not parts or source_row >= manifest["rows"]["in"]:
        raise UsageError(f"--source-row {source_row}: expected a row from 0 to {manifest['rows']['in'] - 1}")
    number = parts[-1]["source"]
    entry = manifest["sources"][number]
    first = min(part["first_row"] for part in parts if part["source"] == number)
    (source,) = open_sources([_place(folder, number, entry, sources)])
    found = input_of(recipe, replace(source, name=entry["name"], argument=entry["entry"]))
    raw = next(islice(read_source(found.source), source_row - first, None), None)
    if raw is None:
        raise UsageError(f"{source.path}: expected row {source_row - first}, found fewer: the source has changed")
    return Found(found, source_row - first, raw)


def _place(folder: Path, number: int, entry: Mapping[str, Any], sources: Sequence[str]) -> str:
    """Where a source of the dataset is now: a file of its size."""
    recorded = (read_record(folder) or {}).get("sources", [])
    given = [str(found.place) for argument in sources for found in expand(argument)]
    places = given or [entry["name"], *recorded[number : number + 1]]
    alike = [place for place in places if stamp_of(place_of(place)) and size_of(place_of(place)) == entry["size"]]
    if not alike:
        raise UsageError(
            f"{entry['name']}: expected the source of this row, a file of {entry['size']:,} bytes, found none at "
            f"{', '.join(dict.fromkeys(places))}; say where it is now with --source"
        )
    same_name = [place for place in alike if Path(place).name == Path(entry["name"]).name]
    return (same_name or alike)[0]
