"""Files on disk: what they are, their partitions, their lines, their rows.

A JSONL file is cut into fixed byte ranges, whoever reads them: a line belongs to the range in which it starts.
Lines end at a newline byte alone; blank lines are no rows. Memory is bounded by the longest line, and that by
`MAX_ROW_BYTES`. A JSON array is first cut into lines (`premask.read.cut`).
"""

import hashlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import orjson

from premask.errors import DataError, UsageError
from premask.read.conversation import Rejected
from premask.read.cut import BOM, MAX_ROW_BYTES, cut_elements, is_blank
from premask.read.faults import describe, reject

PARTITION_BYTES = 16 * 2**20
"""Size of a JSONL partition: a second or so of work, and small enough that a few GB make hundreds of items."""

_BUFFER = 2**20
_HEAD = 2**20
_JSONL_SUFFIXES = (".jsonl", ".ndjson")
_MAGIC = {
    b"\x1f\x8b": ("gzip", "decompress it (gunzip)"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "decompress it (unzstd)"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"PAR1": ("Parquet", "convert it to JSONL"),
    b"ARROW1": ("an Arrow file", "convert it to JSONL"),
    b"\xff\xfe": ("UTF-16", "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    b"\xfe\xff": ("UTF-16", "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
}


@dataclass(frozen=True, slots=True)
class Source:
    """One input file."""

    name: str
    """As it was given."""

    path: Path
    kind: Literal["jsonl", "json-array"]
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Partition:
    """The lines of a JSONL file that start in the bytes `[start, end)`."""

    source: int
    """Index of the source among the run's sources."""

    path: Path
    start: int
    end: int


class Line(NamedTuple):
    """One line that is not blank."""

    offset: int
    """Where it starts in its file, in bytes."""

    raw: bytes
    """Without the line end; of a line beyond `MAX_ROW_BYTES` only that much and a byte more, which `parse` rejects."""


def open_sources(arguments: list[str]) -> list[Source]:
    """Look at every file that was named: is it there, readable, not empty, and of which kind.

    Raises:
        UsageError: a file is missing, a folder, unreadable, or of a kind that is not read.
        DataError: a file is empty, or holds a single JSON object over several lines.

    """
    if not arguments:
        raise UsageError("sources: expected at least one file, found none; name a .jsonl or .json file")
    return [_open_source(argument) for argument in arguments]


def _open_source(name: str) -> Source:
    path = Path(name)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{name}: expected a file, found a folder; name the files in it, such as {name}/*.jsonl")
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{name}: expected a file, found a pipe or device; write its content to a file first")
        head = _read_head(path)
    except FileNotFoundError:
        raise UsageError(f"{name}: expected a file, found nothing by that name; check the path") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}: expected a readable file, found an error: {error}; check path and rights") from None
    for magic, (found, remedy) in _MAGIC.items():
        if head.startswith(magic):
            raise UsageError(f"{name}: expected JSONL or a JSON array in UTF-8, found {found}; {remedy}")
    text = head.replace(BOM, b"").lstrip()
    if not text:
        raise DataError(f"{name}: expected rows, found an empty file; drop it from the sources")
    is_lines = path.suffix.lower() in _JSONL_SUFFIXES
    if not is_lines and text.startswith(b"{") and _is_one_object(text):
        remedy = "write an array of rows ([{...}, {...}]), or one row per line"
        raise DataError(f"{name}: expected an array of rows or one row per line, found one JSON object; {remedy}")
    is_array = not is_lines and text.startswith(b"[")
    return Source(name, path, "json-array" if is_array else "jsonl", status.st_size)


def _read_head(path: Path) -> bytes:
    """Read the first bytes that are not all blank."""
    with path.open("rb") as file:
        while (head := file.read(_HEAD)) and is_blank(head):
            pass
        return head


def _is_one_object(head: bytes) -> bool:
    """Tell a pretty-printed object from JSONL: no whole line of it is an object by itself."""
    lines = [line for line in head.split(b"\n")[:-1] if not is_blank(line)][:20]
    return len(lines) > 1 and not any(type(parse(line)) is dict for line in lines)


def partitions(source: Source, size: int = PARTITION_BYTES, index: int = 0) -> list[Partition]:
    """Cut a JSONL source into ranges of `size` bytes; `index` is the source's number among the run's sources."""
    if source.kind != "jsonl":
        raise ValueError(f"bug in premask: {source.name} is cut into lines first")
    starts = range(0, source.size, size)
    return [Partition(index, source.path, start, min(start + size, source.size)) for start in starts]


def read_partition(partition: Partition) -> Iterator[Line]:
    """Read the lines that start in a partition, in order."""
    with partition.path.open("rb", buffering=_BUFFER) as file:
        offset = _first_line(file, partition)
        while offset < partition.end and (raw := file.readline(MAX_ROW_BYTES + 1)):
            start, offset = offset, offset + len(raw)
            if len(raw) > MAX_ROW_BYTES and raw[-1:] != b"\n":
                _skip_line(file)
                offset = file.tell()
            if not is_blank(raw):
                yield Line(start, raw.rstrip(b"\r\n"))


def _first_line(file: BinaryIO, partition: Partition) -> int:
    """Go to the first line that starts in the partition; beyond its end, anywhere, if there is none."""
    if partition.start:
        file.seek(partition.start - 1)
        _skip_line(file, partition.end)
    return file.tell()


def _skip_line(file: BinaryIO, end: float = float("inf")) -> None:
    while (part := file.readline(_BUFFER)) and part[-1:] != b"\n" and file.tell() < end:
        pass


def parse(raw: bytes) -> dict[str, Any] | Rejected:
    """Parse one row; all text in it can be encoded as UTF-8. Byte order marks before it are ignored."""
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if raw.startswith(BOM):
            return parse(_without_bom(raw))
        return _broken(raw, error)
    if type(row) is dict:
        return row
    return reject("not_an_object", "row", "a JSON object", describe(row), "write each row as {...}")


def _without_bom(raw: bytes) -> bytes:
    start = 0
    while raw.startswith(BOM, start):
        start += len(BOM)
    return raw[start:]


def _broken(raw: bytes, error: orjson.JSONDecodeError) -> Rejected:
    if len(raw) > MAX_ROW_BYTES:
        expected = f"at most {MAX_ROW_BYTES} bytes"
        remedy = "split the row; or a line end, quote or bracket is missing near its start"
        return reject("row_too_large", "row", expected, "more", remedy)
    try:
        text = raw.decode()
    except UnicodeDecodeError as fault:
        found, remedy = f"byte 0x{raw[fault.start]:02x} at byte {fault.start}", "save the file as UTF-8"
        return reject("invalid_utf8", "row", "UTF-8", found, remedy)
    found = f"{error.msg} at character {error.pos}, near {text[max(error.pos - 20, 0) : error.pos + 20]!r}"
    if "surrogate" in error.msg:
        remedy = "write the whole character, or drop the half of it"
        return reject("lone_surrogate", "row", "escapes that form whole characters", found, remedy)
    remedy = "write one complete JSON value per row (null instead of NaN, control characters escaped)"
    return reject("broken_json", "row", "JSON", found, remedy)


def first_rows(source: Source, count: int = 100) -> list[dict[str, Any]]:
    """Read the rows that parse among a source's first `count`, for `detect`."""
    if source.kind == "json-array":
        raws = cut_elements(source.path)
    else:
        raws = (line.raw for line in read_partition(Partition(0, source.path, 0, source.size)))
    rows = (parse(raw) for raw in islice(raws, count))
    return [row for row in rows if not isinstance(row, Rejected)]


def digest_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; bounded memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
