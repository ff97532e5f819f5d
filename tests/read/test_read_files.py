"""Files, partitions, lines and rows, on the disk and off it."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premask.errors import DataError, UsageError
from premask.read import (
    Conversation,
    Partition,
    Rejected,
    convert,
    digest_file,
    first_rows,
    open_sources,
    parse,
    partitions,
    read_partition,
)
from premask.read import lines as read_lines
from premask.read import rows as read_rows
from premask.read import sources as read_sources
from premask.read.sources import Source

BOM = b"\xef\xbb\xbf"
ROW = b'{"messages": [{"role": "assistant", "content": "a"}]}'


def source_of(folder: Path, content: bytes, name: str = "rows.jsonl") -> Source:
    path = folder / name
    path.write_bytes(content)
    return Source(str(path), path, "jsonl", len(content))


def lines_of(source: Source, size: int = 2**24) -> list[bytes | dict[str, Any]]:
    return [raw for partition in partitions(source, size) for rows in read_partition(partition) for raw in rows.raws]


def offsets_of(source: Source, size: int = 2**24) -> list[int]:
    """Of every line that begins a batch."""
    return [rows.offset for partition in partitions(source, size) for rows in read_partition(partition)]


def naive_lines(content: bytes) -> list[tuple[int, bytes]]:
    """The oracle: every line of the whole file, at once."""
    found, offset = [], 0
    for line in content.split(b"\n"):
        if line.replace(BOM, b"").strip() or (line.strip() and not line.startswith(BOM)):
            found.append((offset, line.rstrip(b"\r")))
        offset += len(line) + 1
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines")


BYTES = st.lists(st.sampled_from([b"\n", b"\r\n", b" ", b"\x00", BOM, b"\xff", b"ab", b"\t", ROW, b"\xe4"])).map(
    b"".join
)


@given(BYTES | st.binary(), st.integers(1, 200), st.integers(1, 300), st.integers(1, 5))
def test_partitions_hold_every_line_once(folder: Path, content: bytes, size: int, block: int, batch: int) -> None:
    expected = naive_lines(content)
    source = source_of(folder, content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_lines, "BLOCK", block)
        patch.setattr(read_rows, "BATCH_ROWS", batch)
        assert lines_of(source, size) == [line for _, line in expected]
        seen = 0
        for partition in partitions(source, size):
            before = seen
            for rows in read_partition(partition):
                assert rows.raws and rows.number == seen - before
                assert rows.offset == expected[seen][0]
                seen += len(rows.raws)
        assert seen == len(expected)
        patch.setattr(read_lines, "BLOCK", 1)  # every line is a block of its own
        patch.setattr(read_rows, "BATCH_ROWS", 1)
        assert offsets_of(source, size) == [offset for offset, _ in expected]


def test_batches_are_numbered_within_their_partition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_rows, "BATCH_ROWS", 2)
    monkeypatch.setattr(read_lines, "BLOCK", 1)
    (part,) = partitions(source_of(tmp_path, b"\n".join([ROW] * 5)))
    assert [(rows.number, len(rows.raws)) for rows in read_partition(part)] == [(0, 2), (2, 2), (4, 1)]
    monkeypatch.setattr(read_rows, "BATCH_BYTES", 1)
    assert [(rows.number, len(rows.raws)) for rows in read_partition(part)] == [(n, 1) for n in range(5)]


def test_a_line_belongs_to_the_range_in_which_it_starts(tmp_path: Path) -> None:
    source = source_of(tmp_path, b"aa\nbbbbbbbb\nc\nd")
    parts = partitions(source, size=3, index=5)
    assert parts[1] == Partition(5, source.path, 3, 6)
    assert [[raw for rows in read_partition(part) for raw in rows.raws] for part in parts] == [
        [b"aa"],
        [b"bbbbbbbb"],
        [],
        [],
        [b"c", b"d"],
    ][: len(parts)]


def test_partitions_of_an_array_are_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bug in premask"):
        partitions(Source("a", tmp_path / "a", "json-array", 3))


def test_line_ends(tmp_path: Path) -> None:
    content = BOM + BOM + ROW + b"\r\n\r\n   \n" + ROW + b"\n" + BOM + ROW + b"\n" + BOM + b"\n" + ROW
    lines = lines_of(source_of(tmp_path, content))
    assert len(lines) == 4, "blank lines and lone byte order marks are no rows"
    assert all(type(parse(line)) is dict for line in lines)
    assert lines[-1] == ROW, "the last line needs no newline"


def test_lines_beyond_the_limit_cost_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_lines, "MAX_ROW_BYTES", 100)
    monkeypatch.setattr(read_lines, "BUFFER", 16)
    monkeypatch.setattr(read_lines, "BLOCK", 64)
    long = b'"' + b"x" * 5000 + b'"'
    source = source_of(tmp_path, ROW + b"\n" + long + b"\n" + ROW + b"\n" + long)
    for size in (10, 64, 2000, 10**6):
        lines = lines_of(source, size)
        assert [len(line) for line in lines] == [53, 101, 53, 101]
    monkeypatch.setattr(read_rows, "BATCH_ROWS", 1)
    monkeypatch.setattr(read_lines, "BLOCK", 1)
    assert offsets_of(source) == [0, 54, 5057, 5111]
    rejected = parse(lines[1])
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "row_too_large"
    assert "expected at most 100 bytes, found more; split the row" in rejected.detail


def test_a_message_of_50_mb(tmp_path: Path) -> None:
    text = "größer " * (50 * 2**20 // 8)
    row = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Long."}]}
    source = source_of(tmp_path, ROW + b"\n" + json.dumps(row, ensure_ascii=False).encode() + b"\n" + ROW)
    began = time.perf_counter()
    lines = lines_of(source)
    rows = [parse(line) for line in lines]
    assert time.perf_counter() - began < 10
    assert len(rows) == 3
    assert rows[1] == row
    conversation = convert("messages", row)
    assert isinstance(conversation, Conversation)
    assert len(conversation.digest()) == 16


@pytest.mark.parametrize(
    ("raw", "reason", "found"),
    [
        (b'{"a": "\xff"}', "invalid_utf8", "found byte 0xff at byte 7; save the file as UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "invalid_utf8", "found byte 0xed at byte 7"),
        (b'{"a": ', "broken_json", "unexpected end of data"),
        (b"{'a': 1}", "broken_json", "near \"{'a': 1}\""),
        (b'{"a": NaN}', "broken_json", "null instead of NaN"),
        (b'{"a": 1e999}', "broken_json", "infinity"),
        (b'{"a": "x\x00"}', "broken_json", "control character"),
        (b"\x00\x00\x00", "broken_json", "at character 0"),
        (b'{"a": 1} {"b": 2}', "broken_json", "near"),
        (b'{"a": ' + b"[" * 2000 + b"]" * 2000 + b"}", "broken_json", "depth"),
        (rb'{"a": "\ud800"}', "lone_surrogate", "write the whole character, or drop the half of it"),
        (rb'{"a": "\ude00 x"}', "lone_surrogate", "surrogate in string at character 7"),
        (b"[1, 2]", "not_an_object", "row: expected a JSON object, found a list of 2; write each row as {...}"),
        (b"null", "not_an_object", "found null"),
        (b'"text"', "not_an_object", "found the text 'text'"),
        (b"7", "not_an_object", "found the number 7"),
        (b"[", "broken_json", "unexpected end"),
        (BOM + b"[]", "not_an_object", "a list of 0"),
        (BOM + BOM + b"{", "broken_json", "near '{'"),
    ],
)
def test_rows_that_do_not_parse(raw: bytes, reason: str, found: str) -> None:
    rejected = parse(raw)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == reason
    assert rejected.detail.startswith("row: expected ")
    assert found in rejected.detail
    assert len(rejected.detail) < 400
    rejected.detail.encode()


def test_rows_that_parse() -> None:
    assert parse(b'{"a": "\\u0000 \\ud83d\\ude00"}\r') == {"a": "\0 😀"}
    assert parse(BOM + BOM + b' {"a": 1}') == {"a": 1}


@given(st.binary() | st.text().map(str.encode) | st.from_regex(rb'\{"\w*": .*\}', fullmatch=True))
def test_parse_never_raises(raw: bytes) -> None:
    row = parse(raw)
    assert type(row) in (dict, Rejected)


def test_invalid_utf8_costs_one_row(tmp_path: Path) -> None:
    lines = lines_of(source_of(tmp_path, ROW + b'\n{"a": "\xc3("}\n' + ROW))
    assert [type(parse(line)) for line in lines] == [dict, Rejected, dict]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jsonl", ROW, "jsonl"),
        ("a.jsonl", b"[1]\n[2]\n", "jsonl"),
        ("a.NDJSON", b"[1]\n[2]\n", "jsonl"),
        ("a.json", b"[1]", "json-array"),
        ("a.json", BOM + BOM + b" \r\n\t[\n1]", "json-array"),
        ("a.txt", b" " * 2**20 + b"\n[1]", "json-array"),
        ("a", ROW + b"\n" + ROW, "jsonl"),
        ("a.json", ROW, "jsonl"),
        ("a.json", ROW + b"\n" + b'{"broken": ', "jsonl"),
        ("a.json", b'{"broken": \n' + ROW + b"\n", "jsonl"),
        ("a.jsonl", b'{\n"a": 1\n}\n', "jsonl"),
    ],
)
def test_kind_by_content(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(content)
    (source,) = open_sources([str(tmp_path / name)])
    assert source == Source(str(tmp_path / name), tmp_path / name, kind, len(content))  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b" \n\r\n\t", BOM, BOM + b"\n" + BOM])
def test_an_empty_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jsonl: expected rows, found an empty file; drop it"):
        open_sources([str(tmp_path / "a.jsonl")])


def test_one_object_over_several_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"messages": []}]}, indent=2))
    with pytest.raises(DataError, match="found one JSON object; write an array of rows"):
        open_sources([str(tmp_path / "a.json")])


@pytest.mark.parametrize(
    ("magic", "found"),
    [
        (b"BZh91AY", "bzip2; decompress it"),
        (b"\xfd7zXZ\0", "xz; decompress it"),
        (b"PK\x03\x04", "zip archive; unpack"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16; convert it to UTF-8"),
    ],
)
def test_what_is_not_json(tmp_path: Path, magic: bytes, found: str) -> None:
    (tmp_path / "a.json").write_bytes(magic + b"...")
    with pytest.raises(UsageError, match=rf"a\.json: expected JSON or CSV in UTF-8, Parquet or Arrow, found .*{found}"):
        open_sources([str(tmp_path / "a.json")])


def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UsageError, match=r"missing\.jsonl: expected a file, found nothing by that name; check the path"
    ):
        open_sources([str(tmp_path / "missing.jsonl")])
    with pytest.raises(UsageError, match="expected at least one file, found none; name a"):
        open_sources([])
    with pytest.raises(UsageError, match="expected a readable file, found an error"):
        open_sources(["nul\0byte"])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="found a pipe or device; write its content to a file first"):
        open_sources([str(tmp_path / "pipe")])

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(read_sources, "_read_head", refuse)
    with pytest.raises(UsageError, match=r"Permission denied.*; check path and rights"):
        open_sources([str(source_of(tmp_path, ROW).path)])


def test_a_folder_in_place_of_a_parent(tmp_path: Path) -> None:
    path = source_of(tmp_path, ROW).path
    with pytest.raises(UsageError, match="expected a readable file, found an error"):
        open_sources([str(path / "below.jsonl")])


def test_first_rows(tmp_path: Path) -> None:
    lines = source_of(tmp_path, b"broken\n" + b'{"n": 1}\n' * 5)
    assert first_rows(lines, 3) == [{"n": 1}] * 2
    (tmp_path / "a.json").write_text(json.dumps([{"n": i} for i in range(9)], indent=1))
    (array,) = open_sources([str(tmp_path / "a.json")])
    assert first_rows(array, 4) == [{"n": i} for i in range(4)]
    assert len(first_rows(array)) == 9


def test_digest_file(tmp_path: Path) -> None:
    assert digest_file(source_of(tmp_path, ROW).path) == hashlib.sha256(ROW).hexdigest()
