"""Rows of every kind of source: over the partitions of a file, of any size, they are the file's rows, once each."""

import csv
import gzip
import io
import json
import random
from collections import Counter
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premask.errors import DataError
from premask.read import (
    Partition,
    Rejected,
    Rows,
    Source,
    columnar,
    count_rows,
    cut_into_lines,
    delimited,
    open_sources,
    parse,
    partitions,
    read_partition,
    read_source,
    union_note,
)
from premask.read import rows as read_rows
from premask.read.columnar import MAX_PARTS, Group, row_ranges


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


def open_one(path: Path | str) -> Source:
    (source,) = open_sources([str(path)])
    return source


def raws_of(part: Partition, columns: set[str] | None = None) -> list[bytes | dict[str, Any]]:
    return [raw for rows in read_partition(part, columns) for raw in rows.raws]


# --- columnar files

GROUPS = st.lists(st.builds(Group, st.integers(0, 300), st.integers(0, 2000)), max_size=12)


@given(GROUPS, st.integers(1, 700))
def test_row_ranges_hold_every_row_once(groups: list[Group], size: int) -> None:
    ranges = row_ranges(groups, size)
    assert [n for start, end in ranges for n in range(start, end)] == list(range(sum(group.rows for group in groups)))
    assert all(start < end for start, end in ranges)
    firsts = {sum(group.rows for group in groups[:n]): group for n, group in enumerate(groups)}
    for first, group in firsts.items():
        inside = [start for start, end in ranges if start < first + group.rows and end > first]
        assert len(inside) <= MAX_PARTS + 1
    assert row_ranges(groups, size) == ranges


def test_small_groups_share_a_range_and_a_large_one_is_parted() -> None:
    assert row_ranges([Group(5, 40), Group(5, 40), Group(5, 40)], 100) == [(0, 10), (10, 15)]
    assert row_ranges([Group(5, 40), Group(10, 200), Group(5, 40)], 100) == [(0, 5), (5, 10), (10, 15), (15, 20)]
    assert len(row_ranges([Group(1000, 10**9)], 100)) == MAX_PARTS
    assert row_ranges([], 100) == []


def table_of(count: int) -> pa.Table:
    return pa.table({"n": list(range(count)), "text": [f"text {n}" * (n % 7) for n in range(count)]})


def write_table(path: Path, table: pa.Table, kind: str, group: int) -> Source:
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=group)
    else:
        new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=group)
    return open_one(path)


@settings(deadline=None)  # the first Parquet file starts threads
@given(
    kind=st.sampled_from(["parquet", "file", "stream"]),
    count=st.integers(1, 200),
    group=st.integers(1, 80),
    size=st.integers(1, 3000),
    batch=st.integers(1, 50),
)
def test_partitions_of_tables(folder: Path, kind: str, count: int, group: int, size: int, batch: int) -> None:
    table = table_of(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columnar, "BATCH_ROWS", batch)
        patch.setattr(read_rows, "BATCH_ROWS", batch)
        source = write_table(folder / kind, table, kind, group)
        parts = partitions(source, size, index=4)
        assert all(part.source == 4 for part in parts)
        raws = [raws_of(part) for part in parts]
        assert [raw for part in raws for raw in part] == table.to_pylist() == list(read_source(source))
        for part, own in zip(parts, raws, strict=True):
            firsts = [0, *accumulate(len(rows.raws) for rows in read_partition(part))]
            assert firsts.pop() == len(own)
            assert [rows.number for rows in read_partition(part)] == firsts
            assert [rows.offset for rows in read_partition(part)] == [part.start + first for first in firsts]
        assert [count_rows(part, 3) for part in parts] == [min(len(part), 3) for part in raws]


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path, kind: str) -> None:
    (part,) = partitions(write_table(tmp_path / "t", table_of(3), kind, 2))
    assert raws_of(part, {"n", "other"}) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert raws_of(part, {"other"}) == table_of(3).to_pylist(), "none of them: all"


def test_partitions_are_json() -> None:
    part = Partition(1, "a/b.parquet", 3, 4, "parquet")
    assert Partition(**json.loads(json.dumps(asdict(part)))) == part


def test_rows_say_where_they_are() -> None:
    rows = Rows(0, 17, [b'{"a": 1}'])
    assert Partition(0, "a.jsonl", 0, 99).where(rows) == "a.jsonl: byte 17"
    assert Partition(0, "a.parquet", 0, 99, "parquet").where(rows) == "a.parquet: row 17"


def test_every_partition_of_a_url(tmp_path: Path) -> None:
    lines = b"".join(b'{"n": %d}\n' % n for n in range(300))
    fs = fsspec.filesystem("memory")
    fs.pipe("/here/a.jsonl", lines)
    for kind in ("parquet", "file", "stream"):
        write_table(tmp_path / kind, table_of(50), kind, 20)
        fs.put(str(tmp_path / kind), f"/here/{kind}")
    source = open_one("memory://here/a.jsonl")
    assert [raw for part in partitions(source, 100) for raw in raws_of(part)] == lines.splitlines()
    for kind in ("parquet", "file", "stream"):
        source = open_one(f"memory://here/{kind}")
        rows = [raw for part in partitions(source, 500) for raw in raws_of(part)]
        assert rows == table_of(50).to_pylist()
    fs.store.clear()


# --- damage


def test_damaged_tables(tmp_path: Path) -> None:
    random.seed(0)
    table = pa.table({"n": range(30_000), "text": [random.randbytes(8).hex() for _ in range(30_000)]})
    for kind, words in (
        (
            "parquet",
            "parquet: row group 1, from row 10000 of the file on: expected columns that can be read, found damage",
        ),
        ("file", "file: record batch 1: expected columns that can be read, found damage: .*; write the file again"),
    ):
        path = tmp_path / kind
        source = write_table(path, table, kind, 10_000)
        data = bytearray(path.read_bytes())
        if kind == "parquet":
            start = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
            data[start : start + 2000] = bytes(2000)
        else:
            data[data.index(b"\xff\xff\xff\xff", len(data) // 3) + 4 :][:4] = b""
            middle = data.index(b"\xff\xff\xff\xff", len(data) // 3)
            data[middle + 8 : middle + 100] = bytes(92)
        path.write_bytes(data)
        with pytest.raises(DataError, match=words):
            list(read_source(source))


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_tables_cut_short(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    write_table(path, table_of(5000), kind, 1000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    where = {"parquet": "its directory", "file": "its start", "stream": r"record batch \d"}[kind]
    with pytest.raises(DataError, match=f"{kind}: {where}: expected columns that can be read, found damage: .*; write"):
        partitions(open_one(path))


def test_an_error_of_the_disk_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        partitions(Source("gone", tmp_path / "gone", "parquet", 5))


# --- what is cut into lines first


def cut(source: Source, size: int) -> list[bytes]:
    pieces: list[bytes] = []

    def write(number: int, data: bytes) -> None:
        assert number == len(pieces)
        pieces.append(data)

    assert cut_into_lines(source, write, size) == len(pieces)
    assert all(len(piece) >= size for piece in pieces[:-1])
    assert all(piece.endswith(b"\n") for piece in pieces)
    return [line for piece in pieces for line in piece[:-1].split(b"\n")]


def pack(data: bytes, codec: str) -> bytes:
    if codec == "gzip":
        half = len(data) // 2
        return gzip.compress(data[:half]) + gzip.compress(data[half:])  # members, as `cat a.gz b.gz` leaves them
    packed: bytes = pa.compress(data, "zstd", asbytes=True)
    return packed


CELL = st.text(st.sampled_from('ab",;\n\r\t é😀'), max_size=8)
NAMES = st.lists(st.sampled_from(["a", "b c", "größe", 'q"', "x,y"]), unique=True, min_size=1, max_size=4)


@given(st.data(), st.sampled_from([",", ";", "\t"]), st.sampled_from(["\n", "\r\n"]), st.integers(1, 60))
def test_csv_rows_are_what_was_written(folder: Path, data: st.DataObject, separator: str, end: str, size: int) -> None:
    names = data.draw(NAMES)
    rows = data.draw(st.lists(st.lists(CELL, min_size=len(names), max_size=len(names)), min_size=1, max_size=6))
    text = io.StringIO()
    # several columns say what separates them; names that hold a comma would say another thing
    names = [name.replace(",", "") for name in names] + ["y", "z"]
    rows = [[*row, "1", ""] for row in rows]
    quoting = data.draw(st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
    csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting).writerows([names, *rows])
    path = folder / "rows.csv"
    path.write_bytes(data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text.getvalue().encode())
    source = open_one(path)
    expected = [dict(zip(names, (cell or None for cell in row), strict=True)) for row in rows]
    lines = cut(source, size)
    assert [parse(line) for line in lines] == expected
    assert lines == list(read_source(source))


@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=3), min_size=1, max_size=8),
    st.sampled_from(["gzip", "zstd"]),
    st.sampled_from(["jsonl", "json-array"]),
    st.integers(1, 60),
)
def test_packed_rows(folder: Path, rows: list[dict[str, str]], codec: str, kind: str, size: int) -> None:
    lines = [json.dumps(row).encode() for row in rows]
    content = b"\n\n".join(lines) if kind == "jsonl" else b"[" + b" ,\n".join(lines) + b"]"
    path = folder / f"packed.{'jsonl' if kind == 'jsonl' else 'json'}.{codec}"
    path.write_bytes(pack(content, codec))
    source = Source(str(path), path, kind, path.stat().st_size, packed=True)  # type: ignore[arg-type]
    assert cut(source, size) == lines == list(read_source(source))


def test_broken_csv_costs_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'p,c\n1,2\n3\n\n4,5,6\n\xff,7\n"8\n8",9\n')
    rows = [parse(line) for line in cut(open_one(path), 1)]
    assert [row for row in rows if isinstance(row, dict)] == [{"p": "1", "c": "2"}, {"p": "8\n8", "c": "9"}]
    remedy = "put quotes around cells that hold the separator, quotes or line ends"
    assert [row for row in rows if isinstance(row, Rejected)] == [
        Rejected("broken_csv", f"row: expected 2 cells as in the header, found 1 at line 3; {remedy}"),
        Rejected("broken_csv", f"row: expected 2 cells as in the header, found 3 at line 5; {remedy}"),
        Rejected(
            "invalid_utf8",
            "row: expected UTF-8, found other bytes in the row that ends at line 6; save the file as UTF-8",
        ),
    ]


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    before = csv.field_size_limit(100)
    try:
        path.write_bytes(b'p,c\n1,2\n"3,' + b"x\n" * 80 + b"4,5\n")
        delimited_limit, delimited.MAX_CELL = delimited.MAX_CELL, 100
        rows = [parse(line) for line in read_source(open_one(path))]
    finally:
        delimited.MAX_CELL = delimited_limit
        csv.field_size_limit(before)
    assert rows[0] == {"p": "1", "c": "2"}
    assert rows[-1] == {"p": "4", "c": "5"}
    assert isinstance(rows[1], Rejected)
    found = "field larger than field limit (100) at line"
    assert rows[1].detail.startswith(f"row: expected cells that end, found {found}")
    assert rows[1].detail.endswith("; close the quotes")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (
            b"a,b,a\n1,2,3\n",
            "a.csv: expected a first line of distinct column names, found 'a' twice; rename the columns",
        ),
        (b"a,,\n1,2,3\n", "a.csv: expected a first line of distinct column names, found several without a name"),
    ],
)
def test_headers_of_no_use(tmp_path: Path, header: bytes, words: str) -> None:
    (tmp_path / "a.csv").write_bytes(header)
    with pytest.raises(DataError, match=words):
        list(read_source(open_one(tmp_path / "a.csv")))


def test_a_header_alone_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"prompt;completion\n")
    assert list(read_source(open_one(tmp_path / "a.csv"))) == []


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_packed_files_that_are_damaged(tmp_path: Path, codec: str) -> None:
    random.seed(1)
    lines = b"".join(b'{"n": "%s"}\n' % random.randbytes(20).hex().encode() for _ in range(100_000))
    packed = gzip.compress(lines) if codec == "gzip" else pack(lines, codec)
    path = tmp_path / "a.jsonl.packed"
    path.write_bytes(packed[: len(packed) * 3 // 4])
    with pytest.raises(
        DataError, match=r"a.jsonl.packed: after [1-9]\d+ rows: expected packed text, found damage: Trunc.*; pack"
    ):
        cut(open_one(path), 2**16)


@pytest.mark.parametrize("line", [b"!", b"!{}", b'!["a"]', b'!["no_reason", "x"]', b'!["broken_csv", 5]', b"!5"])
def test_lines_that_only_look_like_notes_of_rejection(line: bytes) -> None:
    row = parse(line)
    assert isinstance(row, Rejected)
    assert row.reason == "broken_json"


# --- the union of structs


def test_union_note(tmp_path: Path) -> None:
    call = {"name": "f", "args": {"a": 1}}
    rows = [{"messages": [{"role": "user", "call": None}, {"role": "assistant", "call": call}]}] * 3
    rows += [{"messages": [{"role": "assistant", "call": {"name": "g", "args": {"b": 2}}}]}]
    source = write_table(tmp_path / "t.parquet", pa.Table.from_pylist(rows), "parquet", 2)
    note = union_note(source)
    assert note is not None
    assert note.startswith(
        f"{source.name}: the first 4 rows hold null under messages[].call (3), messages[].call.args.b (3), "
        "messages[].call.args.a (1): structs in a table have one set of keys"
    )
    assert note.endswith(
        "drop_nulls leaves such keys out, and with them nulls that were written on purpose, which look the same"
    )
    counts: Counter[str] = Counter()
    for part in partitions(source):
        list(read_partition(part, counts=counts))
    assert counts == {"null_keys": 7}
    assert union_note(write_table(tmp_path / "plain.parquet", table_of(5), "parquet", 2)) is None
    (tmp_path / "a.jsonl").write_bytes(b'{"a": {"b": null}}\n')
    assert union_note(open_one(tmp_path / "a.jsonl")) is None
