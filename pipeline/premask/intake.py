"""The sources of a run before any row is masked: how each is read, its slices, and whether it stays as it is."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from premask.errors import DataError, UsageError
from premask.read import (
    Format,
    Partition,
    Shape,
    Source,
    count_rows,
    detect,
    first_rows,
    open_sources,
    partitions,
    stamp_of,
)
from premask.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Input:
    """One file of the run, and how its rows are read."""

    source: Source
    """Its `argument` is the entry of the recipe's sources that it belongs to."""
    shape: Shape
    format: Format
    stamp: tuple[Any, ...] | None
    """What changes when it is written to or replaced; None where it is gone."""


@dataclass(frozen=True, slots=True)
class Sliced:
    """One partition of the run."""

    partition: Partition
    """Its `source` is the number of an input."""
    format: Format
    limit: int | None
    """Only the first so many rows of it."""
    rows: tuple[int, ...] | None = None
    """Only these of them: verification samples."""


def inputs_of(recipe: Recipe) -> list[Input]:
    """Every file that the recipe's sources stand for, looked at.

    UsageError where a source cannot be had, has a name that no JSON can hold, or fits no format, or several; DataError
    where it is empty or damaged.
    """
    sources = open_sources([recipe.source(entry).path for entry in range(len(recipe.sources))])
    for source in sources:
        if not source.name.isascii() and any("\ud800" <= c <= "\udfff" for c in source.name):
            raise UsageError(f"{source.name!r}: expected a file name in UTF-8, found other bytes; rename the file")
    return [input_of(recipe, source) for source in sources]


def input_of(recipe: Recipe, source: Source) -> Input:
    """How a file is read: as its entry of the recipe says, its format found out where that does not."""
    options = recipe.source(source.argument)
    stamp = stamp_of(source.path)
    shape = Shape(
        columns=options.columns or {},
        message_keys=options.message_keys or {},
        role_map=options.role_map or {},
        drop_nulls=bool(options.drop_nulls),
    )
    known = None if options.format == "auto" else options.format
    return Input(source, shape, known or detect(first_rows(source), source.name, shape), stamp)


def in_order(
    recipe: Recipe, inputs: Sequence[Input], digests: Sequence[Mapping[str, Any]]
) -> tuple[Recipe, list[Input], list[Mapping[str, Any]]]:
    """The recipe, inputs and digests in the order in which rows are numbered.

    That is the order in which they are listed or, where that does not matter, the order of their content: of the
    SHA-256 of the file, then of the options of its entry, then of its name.
    """
    if recipe.sources_order == "matters":
        return recipe, list(inputs), list(digests)
    options = [
        json.dumps(recipe.source(entry).model_dump(mode="json", exclude={"path"}), sort_keys=True)
        for entry in range(len(recipe.sources))
    ]
    keys = [
        (digest["sha256"], options[each.source.argument], each.source.name)
        for each, digest in zip(inputs, digests, strict=True)
    ]
    order = sorted(range(len(inputs)), key=keys.__getitem__)
    entries = list(dict.fromkeys(inputs[n].source.argument for n in order))
    moved = [
        replace(inputs[n], source=replace(inputs[n].source, argument=entries.index(inputs[n].source.argument)))
        for n in order
    ]
    return recipe.with_sources(entries), moved, [digests[n] for n in order]


def slices_of(
    recipe: Recipe, inputs: Sequence[Input], pieces: Mapping[int, Sequence[tuple[str, int]]], size: int
) -> list[Sliced]:
    """The partitions of all inputs, in order, each of about `size` bytes; of each entry no more rows than its limit.

    `pieces` has the path and size of what an input was cut into, by its number.
    """
    left = {entry: recipe.source(entry).limit for entry in range(len(recipe.sources))}
    slices: list[Sliced] = []
    for n, each in enumerate(inputs):
        if n in pieces:
            parts = [Partition(n, Path(path), 0, length) for path, length in pieces[n]]
        else:
            parts = partitions(each.source, size, index=n)
        slices += [Sliced(part, each.format, rows) for part, rows in _limited(parts, left, each.source.argument)]
    return slices


def _limited(
    parts: Sequence[Partition], left: dict[int, int | None], entry: int
) -> Iterator[tuple[Partition, int | None]]:
    """As many partitions as hold the rows that are `left` of an entry, each with how many of its rows count."""
    for part in parts:
        rows = left[entry]
        if rows == 0:
            return
        yield part, rows
        if rows is not None:
            left[entry] = rows - count_rows(part, rows)


def identity_with(description: Mapping[str, Any], inputs: Sequence[Input]) -> str:
    """The identity of a run: a SHA-256 of what it depends on, and of the stamps of its sources.

    What was made of a source that changed and was put back must not be used, though the checksum is as it was.
    """
    text = json.dumps([dict(description), [each.stamp for each in inputs]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def require_unchanged(inputs: Sequence[Input]) -> None:
    """DataError unless the sources are as they were when they were looked at, before their checksums were taken."""
    for each in inputs:
        if each.stamp is None or each.stamp[0] != each.source.size or stamp_of(each.source.path) != each.stamp:
            raise DataError(
                f"{each.source.name}: expected a source that stays as it is while it is read, found that it changed; "
                "run again when nothing writes to it"
            )
