"""The rows of a source, whatever its kind: its partitions, the rows of one, the first ones, all in order.

JSON lines are sliced by bytes, Parquet and Arrow files by rows. JSON arrays, CSV files and what is packed cannot be
sliced: one sequential pass, `cut_into_lines`, makes files of JSON lines of them.
"""

import io
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from premask.errors import DataError
from premask.read.columnar import groups_of, read_batches, row_ranges
from premask.read.columns import RowMaker, null_keys
from premask.read.conversation import Rejected
from premask.read.cut import cut_elements, is_blank
from premask.read.delimited import csv_lines
from premask.read.lines import lines_of, not_blank, parse, read_range
from premask.read.places import Place, open_stream
from premask.read.sources import Source

PARTITION_BYTES = 8 * 2**20
"""Size of a partition: a fraction of a second of work, and small enough to be shared out evenly."""

BATCH_ROWS = 2048
BATCH_BYTES = 4 * 2**20
"""Rows that are read, rendered, encoded and masked at a time: about so many, or so many bytes of them."""

NOTE_ROWS = 1000
"""So many rows, at most, `union_note` looks at."""


@dataclass(frozen=True, slots=True)
class Partition:
    """The lines of a JSONL file that start in the bytes `[start, end)`; the rows `[start, end)` of a columnar one."""

    source: int
    """Index of the source among the run's sources."""

    path: Place

    start: int

    end: int

    kind: Literal["jsonl", "parquet", "arrow"] = "jsonl"

    def where(self, rows: "Rows") -> str:
        """Name the place of the first of some rows, for messages."""
        return f"{self.path}: {'byte' if self.kind == 'jsonl' else 'row'} {rows.offset}"


Raw: TypeAlias = bytes | dict[str, Any]
"""A row for `parse`: JSON text without the line end, or a columnar file's row."""


class Rows(NamedTuple):
    """Neighbouring rows of a partition, at least one, not parsed yet where they are text."""

    number: int
    """Of the first, within the partition, from 0."""

    offset: int
    """Of the first in the file: the byte at which it starts, or its row number in a columnar file."""

    raws: Sequence[Raw]


def partitions(source: Source, size: int = PARTITION_BYTES, index: int = 0) -> list[Partition]:
    """Cut a source into partitions of about `size` bytes; `index` is the source's number among the run's sources.

    The same for the same file and size, always. DataError where a columnar file is damaged.
    """
    if not source.sliceable:
        raise ValueError(f"bug in premask: {source.name} is cut into lines first")
    if source.kind == "parquet" or source.kind == "arrow":
        ranges = row_ranges(groups_of(source.path, source.kind), size)
        return [Partition(index, source.path, start, end, source.kind) for start, end in ranges]
    starts = range(0, source.size, size)
    return [Partition(index, source.path, start, min(start + size, source.size)) for start in starts]


def read_partition(
    partition: Partition, columns: Collection[str] | None = None, counts: Counter[str] | None = None
) -> Iterator[Rows]:
    """Read the rows of a partition, in order, some thousand at a time, with bounded memory.

    Args:
        partition: see `partitions`.
        columns: of a columnar file only these are read, such as `columns_of(shape)`.
        counts: gets the number of null values inside structs under `null_keys` (see `premask.read.columns`).

    Raises DataError, with file and row group or record batch, where a columnar file is damaged.

    """
    number, offset, size, held = 0, 0, 0, list[Raw]()
    kind = partition.kind
    blocks = _lines(partition) if kind == "jsonl" else _records(partition, kind, columns, counts)
    for start, raws, bytes_of_them in blocks:
        offset = offset if held else start
        held += raws
        size += bytes_of_them
        if len(held) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield Rows(number, offset, held)
            number, size, held = number + len(held), 0, []
    if held:
        yield Rows(number, offset, held)


def _lines(partition: Partition) -> Iterator[tuple[int, Sequence[Raw], int]]:
    """The lines of a partition that are not blank: the offset of the first, and the bytes of them all."""
    for start, lines in read_range(partition.path, partition.start, partition.end):
        kept = not_blank(lines)
        if kept:
            first = next(n for n, line in enumerate(lines) if not is_blank(line))
            yield start + sum(len(line) + 1 for line in lines[:first]), kept, sum(map(len, kept))


def _records(
    partition: Partition,
    kind: Literal["parquet", "arrow"],
    columns: Collection[str] | None,
    counts: Counter[str] | None,
) -> Iterator[tuple[int, Sequence[Raw], int]]:
    """The rows of a columnar partition: the number of the first, and the bytes of them all, about."""
    maker: RowMaker | None = None
    for batch in read_batches(partition.path, kind, partition.start, partition.end, columns):
        maker = maker or RowMaker(batch.data.schema)
        if counts is not None:
            counts["null_keys"] += null_keys(batch.data).total()
        rows: Sequence[Raw] = list(maker.rows(batch.data))
        yield batch.start, rows, batch.row_bytes * len(rows)


def count_rows(partition: Partition, at_most: int) -> int:
    """Number of rows of a partition, counted no further than `at_most`."""
    if partition.kind != "jsonl":
        return min(partition.end - partition.start, at_most)
    count = 0
    for rows in read_partition(partition):
        count += len(rows.raws)
        if count >= at_most:
            break
    return min(count, at_most)


def read_source(source: Source) -> Iterator[bytes | dict[str, Any]]:
    """Read all rows of a source in order, for `parse`; sequentially, with bounded memory.

    DataError, with the file, where it is damaged.
    """
    if not source.sliceable:
        yield from _cut_lines(source)
    elif source.kind == "jsonl":
        for _, lines in read_range(source.path, 0, source.size):
            yield from not_blank(lines)
    else:
        for partition in partitions(source):
            for rows in read_partition(partition):
                yield from rows.raws


def first_rows(source: Source, count: int = 100) -> list[dict[str, Any]]:
    """Read the rows that parse among a source's first `count`, for `detect`."""
    rows = [parse(raw) for raw in itertools.islice(read_source(source), count)]
    return [row for row in rows if not isinstance(row, Rejected)]


def union_note(source: Source) -> str | None:
    """Say that a columnar source has nulls where rows may have had no key; None where its first rows have none."""
    if source.kind != "parquet" and source.kind != "arrow":
        return None
    counts: Counter[str] = Counter()
    seen = 0
    for batch in read_batches(source.path, source.kind, 0, NOTE_ROWS):
        counts += null_keys(batch.data)
        seen += batch.data.num_rows
    if not counts:
        return None
    shown = ", ".join(f"{path} ({count})" for path, count in counts.most_common(5))
    more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
    return (
        f"{source.name}: the first {seen} rows hold null under {shown}{more}: structs in a table have one set of keys, "
        "and a row that lacked one has it as null, which templates may show; drop_nulls leaves such keys out, and "
        "with them nulls that were written on purpose, which look the same"
    )


def cut_into_lines(source: Source, write_piece: Callable[[int, bytes], None], piece_bytes: int) -> int:
    """Write the rows of a source that cannot be sliced as JSON lines into pieces; returns their number, the pieces'.

    Args:
        source: an array, a CSV file, or one that is packed.
        write_piece: takes each piece's number, from 0, and its bytes: whole lines, each ended by a newline.
        piece_bytes: a piece ends with the line that brings it to this size.

    DataError, with the file, where it cannot be unpacked. In an array an unclosed string or bracket costs the row it is
    in and all that it swallows up to the end of the file; that row, text after the array, and an array that is never
    closed are lines that `parse` rejects.

    """
    number, piece = 0, io.BytesIO()
    for row in _cut_lines(source):
        piece.write(row)
        piece.write(b"\n")
        if piece.tell() >= piece_bytes:
            write_piece(number, piece.getvalue())
            number, piece = number + 1, io.BytesIO()
    if piece.tell():
        write_piece(number, piece.getvalue())
        number += 1
    return number


def _cut_lines(source: Source) -> Iterator[bytes]:
    """The rows of a source that cannot be sliced, as lines."""
    done = 0
    try:
        with open_stream(source.path) as file:
            if source.kind == "json-array":
                lines = cut_elements(file)
            elif source.kind == "csv":
                lines = csv_lines(file, source.name)
            else:
                lines = lines_of(file)
            for line in lines:
                yield line
                done += 1
    except OSError as error:
        if error.errno is not None or not source.packed:
            raise
        remedy = "pack it again, or unpack what can be saved of it by hand"
        raise DataError(
            f"{source.name}: after {done} rows: expected packed text, found damage: {error}; {remedy}"
        ) from None
