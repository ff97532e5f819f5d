"""The sources of a run before any row is masked: their formats, their slices, and whether they stay as they are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from premask.errors import DataError, UsageError
from premask.read import Format, Partition, Source, detect, first_rows, open_sources, partitions, read_partition
from premask.recipe import Recipe

UNSUPPORTED = (
    "sources_order",
    "columns",
    "message_keys",
    "role_map",
    "drop_nulls",
    "overflow",
    "duplicates",
    "filters",
    "validation",
    "order",
    "curriculum",
)
"""Options that recipes know already, but preparation does not carry out yet."""

KINDS = ("jsonl", "json-array")
"""Kinds of files that preparation reads yet."""


@dataclass(frozen=True, slots=True)
class Sliced:
    """One partition of the run."""

    partition: Partition
    format: Format
    limit: int | None
    """Only the first so many rows of it."""
    rows: tuple[int, ...] | None = None
    """Only these of them: verification samples."""


def sources_of(recipe: Recipe) -> list[Source]:
    """Open the sources of a recipe. UsageError also for whatever would be accepted but not done."""
    default = Recipe(sources=["-"], tokenizer="-")
    asked = [name for name in UNSUPPORTED if getattr(recipe, name) != getattr(default, name)]
    names = [source for source in recipe.sources if isinstance(source, str)]
    asked += ["options of single sources"] if len(names) < len(recipe.sources) else []
    if asked:
        raise UsageError(f"not supported yet: {', '.join(asked)}; leave this out")
    sources = open_sources(names)
    for source in sources:
        if not isinstance(source.path, Path):
            raise UsageError(f"{source.name}: expected a file of this machine, found a URL, not supported yet")
        if source.packed or source.kind not in KINDS:
            kind = f"{source.kind}, compressed" if source.packed else source.kind
            raise UsageError(f"{source.name}: expected JSON Lines or a JSON array, found {kind}, not supported yet")
    return sources


def formats_of(recipe: Recipe, sources: Sequence[Source]) -> list[Format]:
    """The format of every source: as the recipe says, or found out. UsageError where a source fits none, or several."""
    given = None if recipe.format == "auto" else recipe.format
    formats = [given or detect(first_rows(source), source.name) for source in sources]
    for source, format in zip(sources, formats, strict=True):
        if format == "text":
            raise UsageError(f"{source.name}: expected conversations, found rows of bare text, not supported yet")
    return formats


def slices_of(
    sources: Sequence[Source],
    formats: Sequence[Format],
    pieces: Mapping[int, Sequence[tuple[str, int]]],
    limit: int | None,
    size: int,
) -> list[Sliced]:
    """The partitions of all sources, in order, each of about `size` bytes; `limit` rows of every source.

    `pieces` has the path and size of what a source was cut into, by its number.
    """
    slices: list[Sliced] = []
    for n, (source, format) in enumerate(zip(sources, formats, strict=True)):
        if n in pieces:
            parts = [Partition(n, Path(path), 0, length) for path, length in pieces[n]]
        else:
            parts = partitions(source, size, index=n)
        slices += [Sliced(part, format, rows) for part, rows in _limited(parts, limit)]
    return slices


def _limited(parts: Sequence[Partition], limit: int | None) -> Iterator[tuple[Partition, int | None]]:
    """As many partitions as hold the first `limit` rows, each with how many rows of it count."""
    left = limit
    for part in parts:
        if left is None:
            yield part, None
            continue
        if left <= 0:
            return
        rows = sum(1 for _ in islice(read_partition(part), left))
        yield part, left
        left -= rows


Stamp = tuple[int, int, int, int] | None
"""What changes when a file is written to or replaced: size, inode and times, of which nobody can set the second."""


def stamp(source: Source) -> Stamp:
    """The source's stamp now; None where it is gone."""
    try:
        status = Path(source.path).stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def require_unchanged(sources: Sequence[Source], stamps: Sequence[Stamp]) -> None:
    """DataError unless the sources are as they were when the stamps were taken, before their checksums."""
    for source, before in zip(sources, stamps, strict=True):
        if before is None or before[0] != source.size or stamp(source) != before:
            raise DataError(
                f"{source.name}: expected a source that stays as it is while it is read, found that it changed; "
                "run again when nothing writes to it"
            )
