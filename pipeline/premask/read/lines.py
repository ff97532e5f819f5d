"""Lines of text files, and the JSON row of each.

A JSONL file is cut into fixed byte ranges, whoever reads them: a line belongs to the range in which it starts. Lines
end at a newline byte alone; blank lines are no rows. Memory: the longest line, and `MAX_ROW_BYTES` at most.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import orjson

from premask.read.conversation import Rejected
from premask.read.cut import BOM, MAX_ROW_BYTES, is_blank
from premask.read.faults import describe, noted, reject
from premask.read.places import BUFFER, Place, open_file

BLOCK = 2**18
"""Bytes that are read and split at a time: what stays in a core's cache, and less than a row may have."""


def read_range(place: Place, start: int, end: int) -> Iterator[tuple[int, list[bytes]]]:
    """Read the lines of a file that start in the bytes `[start, end)`, block by block, as `blocks_of` does."""
    with open_file(place) as file:
        if start:
            file.seek(start - 1)
            start += _skip_line(file, end - start + 1) - 1
        yield from blocks_of(file, start, end)


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """Read the lines of a file that are not blank, without their ends."""
    for _, lines in blocks_of(file):
        yield from not_blank(lines)


def not_blank(lines: list[bytes]) -> list[bytes]:
    """Those of a block's lines that are not blank, without their ends."""
    return [line.rstrip(b"\r") for line in lines if line.startswith(b"{") or not is_blank(line)]


def blocks_of(file: BinaryIO, start: int = 0, end: float = float("inf")) -> Iterator[tuple[int, list[bytes]]]:
    """Read lines from a file that stands at `start`, up to those at `end`, many at a time.

    Yields the offset of the first and the lines: split at newlines and no further, blank ones among them. Of a line
    beyond `MAX_ROW_BYTES` only that much and a byte more is kept, which `parse` rejects.
    """
    held = b""  # of a line that begins at `start`
    while start + len(held) < end and (data := file.read(int(min(BLOCK, end - start - len(held))))):
        whole, newline, rest = data.rpartition(b"\n")
        if newline:
            yield start, (held + whole).split(b"\n")
            start, held = start + len(held) + len(whole) + 1, rest
        else:
            size, line = _rest_of_line(file, held + data)
            yield start, [line]
            start, held = start + size, b""
    if held:
        yield start, [_rest_of_line(file, held)[1]]


def _rest_of_line(file: BinaryIO, begun: bytes) -> tuple[int, bytes]:
    """A line that is begun, read to its end: how many bytes it has there, and the line itself."""
    line = begun + file.readline(max(0, MAX_ROW_BYTES + 1 - len(begun)))
    if line.endswith(b"\n"):
        return len(line), line[:-1]
    return len(line) + (_skip_line(file) if len(line) > MAX_ROW_BYTES else 0), line[: MAX_ROW_BYTES + 1]


def _skip_line(file: BinaryIO, limit: float = float("inf")) -> int:
    """Skip the rest of a line, or `limit` bytes of it and a few more; returns how many they were."""
    skipped = 0
    while skipped < limit and (part := file.readline(BUFFER)):
        skipped += len(part)
        if part[-1:] == b"\n":
            break
    return skipped


def parse(raw: bytes | dict[str, Any]) -> dict[str, Any] | Rejected:
    """Parse one row; all text in it can be encoded as UTF-8. Byte order marks before it are ignored.

    A row of a columnar file is a dict already, and stays.
    """
    if isinstance(raw, dict):
        return raw
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if raw.startswith(BOM):
            return parse(_without_bom(raw))
        return noted(raw) or _broken(raw, error)
    if type(row) is dict:
        return row
    return reject("not_an_object", "row", "a JSON object", describe(row), "write each row as {...}")


def parse_all(raws: Sequence[bytes | dict[str, Any]]) -> list[dict[str, Any] | Rejected]:
    """Parse many rows, each as `parse` does."""
    load: Callable[[Any], Any] = orjson.loads  # which refuses what is parsed already
    try:
        rows = list(map(load, raws))
    except orjson.JSONDecodeError:
        return [parse(raw) for raw in raws]
    return rows if set(map(type, rows)) <= {dict} else [parse(raw) for raw in raws]


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
