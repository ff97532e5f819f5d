"""CSV files to JSON lines, row by row: the header's names are the keys, every cell is text, an empty one null.

    prompt,completion
    "What is 2+2?",4            {"prompt": "What is 2+2?", "completion": "4"}

Comma, semicolon or tab separate the cells, whichever the header has most of. Quotes may hold line ends. A row that has
another number of cells than the header, or text that is not UTF-8, is a line that `parse` rejects. A quote that is
never closed costs the rows it swallows, `MAX_CELL` characters of them at most. Memory for one row.
"""

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import orjson

from premask.errors import DataError
from premask.read.faults import reject, rejection_line

MAX_CELL = 64 * 2**20
"""Characters of the longest cell, and of the longest line: the parser takes 4 bytes for each."""

_SEPARATORS = ",;\t"
_QUOTE = "put quotes around cells that hold the separator, quotes or line ends"


def csv_lines(file: BinaryIO, where: str) -> Iterator[bytes]:
    """Yield every row of a CSV file as a line of JSON. DataError, naming `where`, for a header that is of no use."""
    with io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="") as text:
        lines = iter(lambda: text.readline(MAX_CELL), "")
        first = next((line for line in lines if line.strip()), "")
        separator = max(_SEPARATORS, key=first.count)
        csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
        cells = csv.reader(itertools.chain([first], lines), delimiter=separator)
        names = _header(cells, where)
        while True:
            try:
                row = next(cells)
            except StopIteration:
                return
            except csv.Error as error:
                yield _rejected(cells.line_num, "cells that end", str(error), "close the quotes")
                continue
            if row:
                yield _line(names, row, cells.line_num)


def _header(cells: Iterator[list[str]], where: str) -> list[str]:
    try:
        names = [name.strip() for name in next(cells)]
    except csv.Error as error:
        raise DataError(f"{where}: expected a first line of column names, found {error}; {_QUOTE}") from None
    twice = next((name for n, name in enumerate(names) if name in names[:n]), None)
    if twice is not None:
        found = f"{twice!r} twice" if twice else "several without a name"
        raise DataError(f"{where}: expected a first line of distinct column names, found {found}; rename the columns")
    return names


def _line(names: Sequence[str], row: Sequence[str], line: int) -> bytes:
    if len(row) != len(names):
        return _rejected(line, f"{len(names)} cells as in the header", str(len(row)), _QUOTE)
    try:
        return orjson.dumps({name: cell or None for name, cell in zip(names, row, strict=True)})
    except TypeError:  # a surrogate, which stands for a byte that is not UTF-8
        found, remedy = f"other bytes in the row that ends at line {line}", "save the file as UTF-8"
        return rejection_line(reject("invalid_utf8", "row", "UTF-8", found, remedy))


def _rejected(line: int, expected: str, found: str, remedy: str) -> bytes:
    return rejection_line(reject("broken_csv", "row", expected, f"{found} at line {line}", remedy))
