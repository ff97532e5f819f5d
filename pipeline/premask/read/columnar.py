"""Parquet and Arrow files: the row ranges they are read in, and the rows of one range, batch by batch.

    Parquet     row groups       | g0 | g1 |       g2        |     small groups together, a large one in equal parts
    Arrow       record batches   [  range 0 )[ r 1 )[  r 2   )

A row group is decoded from its start, whoever reads the end of it: at most `MAX_PARTS` ranges share one, so that what
is decoded twice costs little beside the masking. Memory: a page of every column and one batch, whatever the size of a
row group; Arrow files on a local disk are mapped, and only a compressed record batch must fit in memory.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeAlias

import pyarrow as pa

from premask.errors import DataError
from premask.read.places import BUFFER, Place, is_url, open_file, size_of

BATCH_BYTES = 2 * 2**20
BATCH_ROWS = 1024
"""Rows made at a time: at most so many, or about so many bytes of them."""

MAX_PARTS = 16
_ARROW_FILE = b"ARROW1"

Kind: TypeAlias = Literal["parquet", "arrow"]


class Group(NamedTuple):
    """A row group or record batch."""

    rows: int

    size: int
    """Bytes, unpacked."""


class Batch(NamedTuple):
    """Some rows of a file."""

    start: int
    """Number of the first one within the file."""

    data: pa.RecordBatch

    row_bytes: int
    """Bytes of a row, on average."""


def row_ranges(groups: Iterable[Group], size: int) -> list[tuple[int, int]]:
    """Cut the rows of a file into ranges of about `size` bytes, which do not depend on who reads them."""
    ranges: list[tuple[int, int]] = []
    begin, end, held = 0, 0, 0
    for rows, length in (group for group in groups if group.rows):
        if held and held + length > size:
            ranges.append((begin, end))
            begin, held = end, 0
        parts = max(1, min(-(-length // size), MAX_PARTS, rows))
        for part in range(1, parts):
            cut = end + rows * part // parts
            ranges.append((begin, cut))
            begin = cut
        end, held = end + rows, held + length // parts
    return [*ranges, (begin, end)] if end > begin else ranges


def groups_of(place: Place, kind: Kind) -> list[Group]:
    """List the row groups of a Parquet file, or the record batches of an Arrow file. DataError where it is damaged."""
    with _damage(place, "its directory"):
        if kind == "parquet":
            with _open_parquet(place) as file:
                groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
                return [Group(group.num_rows, group.total_byte_size) for group in groups]
    rows = [batch.num_rows for batch in _record_batches(place)]
    row_bytes = size_of(place) / max(sum(rows), 1)
    return [Group(count, int(count * row_bytes)) for count in rows]


def read_batches(
    place: Place, kind: Kind, start: int, end: int, columns: Collection[str] | None = None
) -> Iterator[Batch]:
    """Read the rows `[start, end)` of a file, in order.

    Of its columns those named in `columns` are read: all of them where that is None or names none there is. DataError
    with file and row group where the data is damaged.
    """
    batches = _parquet_batches if kind == "parquet" else _arrow_batches
    for at, data, row_bytes in batches(place, start, end, columns):
        first, last = max(start, at), min(end, at + data.num_rows)
        if first < last:
            yield Batch(first, data.slice(first - at, last - first), row_bytes)


def _parquet_batches(place: Place, start: int, end: int, columns: Collection[str] | None) -> Iterator[Batch]:
    with _damage(place, "its directory"), _open_parquet(place) as file:
        names = _chosen(file.schema_arrow, columns)
        at = 0
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            row_bytes = group.total_byte_size // max(group.num_rows, 1)
            if at < end and start < at + group.num_rows:
                rows = _batch_rows(row_bytes)
                batches = file.iter_batches(batch_size=rows, row_groups=[number], columns=names, use_threads=False)
                offset = at
                with _damage(place, f"row group {number}, from row {at} of the file on"):
                    for data in batches:
                        if offset >= end:
                            break
                        yield Batch(offset, data, row_bytes)
                        offset += data.num_rows
            at += group.num_rows


def _arrow_batches(place: Place, start: int, end: int, columns: Collection[str] | None) -> Iterator[Batch]:
    at = 0
    for batch in _record_batches(place):
        if at >= end:
            return
        if start < at + batch.num_rows:
            chosen = batch.select(_chosen(batch.schema, columns))
            row_bytes = chosen.nbytes // batch.num_rows
            step = _batch_rows(row_bytes)
            for offset in range(0, batch.num_rows, step):
                yield Batch(at + offset, chosen.slice(offset, step), row_bytes)
        at += batch.num_rows


def _record_batches(place: Place) -> Iterator[pa.RecordBatch]:
    """All record batches of an Arrow file or stream, mapped where it is local: what is passed over costs nothing."""
    where = "its start"
    try:
        with _open_arrow(place) as reader:
            for number, batch in enumerate(reader):
                yield batch
                where = f"record batch {number + 1}"
    except (pa.ArrowException, OSError) as error:
        raise _damaged(place, where, error) from None


@contextmanager
def _open_parquet(place: Place) -> Iterator[Any]:
    """A Parquet file that is read a page at a time: without the buffer size, whole column chunks are."""
    import pyarrow.parquet as pq

    with open_file(place) as file, pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False) as parquet:
        yield parquet


@contextmanager
def _open_arrow(place: Place) -> Iterator[Iterator[pa.RecordBatch]]:
    """The record batches of an Arrow file or stream."""
    with pa.PythonFile(open_file(place), "r") if is_url(place) else pa.memory_map(str(place)) as source:
        is_file = source.read(len(_ARROW_FILE)) == _ARROW_FILE
        source.seek(0)
        if is_file:
            reader = pa.ipc.open_file(source)
            yield (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            yield iter(pa.ipc.open_stream(source))


def _batch_rows(row_bytes: int) -> int:
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(row_bytes, 1)))


def _chosen(schema: pa.Schema, columns: Collection[str] | None) -> list[str]:
    return [name for name in schema.names if columns is not None and name in columns] or schema.names


@contextmanager
def _damage(place: Place, part: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise _damaged(place, part, error) from None


def _damaged(place: Place, part: str, error: Exception) -> Exception:
    """The DataError of damage that Arrow found; an error of the disk stays what it is."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    found = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"{place}: {part}: expected columns that can be read, found damage: {found}; write the file again")
