"""Cutting JSON arrays into lines: whatever the layout and the chunks, the same values in the same order."""

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premask.read import Rejected, Source, cut_into_lines, parse
from premask.read import cut as read_cut
from premask.read.cut import cut_elements

TEXT = st.text(st.sampled_from('"\\[]{},: \n\r\tä€😀a')) | st.text()
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=8)
LAYOUTS = st.fixed_dictionaries(
    {
        "indent": st.none() | st.integers(0, 3) | st.just("\t"),
        "separators": st.sampled_from([None, (",", ":"), (" ,\r\n ", " :\n ")]),
        "ensure_ascii": st.booleans(),
    }
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cut") / "rows.json"


def array(path: Path) -> Source:
    return Source(str(path), path, "json-array", path.stat().st_size)


def pieces_of(path: Path, piece_bytes: int) -> list[bytes]:
    pieces: list[bytes] = []

    def write(number: int, data: bytes) -> None:
        assert number == len(pieces)
        pieces.append(data)

    assert cut_into_lines(array(path), write, piece_bytes) == len(pieces)
    return pieces


@given(st.lists(VALUES), LAYOUTS, st.sampled_from(["", " ", "\r\n", "\ufeff", "\ufeff\ufeff\n"]), st.integers(1, 40))
def test_the_same_values_in_order(
    path: Path, values: list[Any], layout: dict[str, Any], before: str, chunk: int
) -> None:
    path.write_bytes((before + json.dumps(values, **layout) + before.replace("\ufeff", " ")).encode())
    whole = list(cut_elements(path))
    assert [json.loads(line) for line in whole] == values
    assert list(cut_elements(path, chunk)) == whole, "chunks do not show"
    for piece_bytes in (1, chunk, 10**9):
        pieces = pieces_of(path, piece_bytes)
        assert b"".join(pieces) == b"".join(line + b"\n" for line in whole)
        assert all(piece.endswith(b"\n") for piece in pieces)
        assert all(len(piece) >= piece_bytes for piece in pieces[:-1])
        assert [line for piece in pieces for line in piece.splitlines()] == whole, "one element, one line"


@given(st.text(st.sampled_from('"\\[]{},: \n1a')).map(str.encode) | st.binary(), st.integers(1, 9))
def test_any_bytes_are_cut_alike_and_never_lost(path: Path, content: bytes, chunk: int) -> None:
    path.write_bytes(b"[" + content)
    whole = list(cut_elements(path))
    assert list(cut_elements(path, chunk)) == whole
    kept = set("".join(map(chr, range(33, 127)))) - set("[]{},")
    letters = [byte for byte in content if chr(byte) in kept]
    assert [byte for line in whole for byte in line if chr(byte) in kept] == letters
    assert not any(b"\n" in line for line in whole)


def rows_of(path: Path, text: str) -> list[Any]:
    """Rows as parsed; of rejected ones the reason."""
    path.write_text(text)
    return [row.reason if isinstance(row := parse(raw), Rejected) else row for raw in cut_elements(path)]


A, B = {"a": 1}, {"b": [2, {"c": "}]"}]}
ONE, TWO = json.dumps(A), json.dumps(B, indent=2)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("[]", []),
        (" [ \n ] \n", []),
        (f"[{ONE}, {TWO}]", [A, B]),
        (f"[{ONE}, {TWO}, ]", [A, B]),
        (f"[{ONE},, {TWO}]", [A, B]),
        (f"[{ONE}]\n[{TWO}]", [A, B]),
        (f"[{ONE}, {TWO}] trailing", [A, B, "broken_json"]),
        (f"[{ONE}, {TWO}", [A, B, "broken_json"]),
        (f"[{ONE},", [A, "broken_json"]),
        (f"[{ONE}, {TWO[:-3]}", [A, "broken_json"]),
        (f'[{ONE}, {{"open', [A, "broken_json"]),
        (f"[{ONE}, {TWO}]]", [A, B, "broken_json"]),
        (f'[{ONE}, {{"a": [1}}, {TWO}]', [A, "broken_json", "broken_json"]),
        (f'[{ONE}, {{"a" 1}}, {TWO}]', [A, "broken_json", B]),
        (f'[{ONE}, {{"a": "raw\nline end, [{{"}}, {TWO}]', [A, "broken_json", B]),
        (f"[{ONE}, 5, {TWO}]", [A, "not_an_object", B]),
    ],
)
def test_broken_arrays_cost_the_row_they_are_broken_in(path: Path, text: str, rows: list[Any]) -> None:
    assert rows_of(path, text) == rows


def test_a_row_beyond_the_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_cut, "MAX_ROW_BYTES", 50)
    path.write_text(json.dumps([A, "x" * 1000, A]))
    for chunk in (7, 100, 10**6):
        lines = list(cut_elements(path, chunk))
        assert [len(line) for line in lines] == [8, 51, 8]


def test_memory_is_bounded(path: Path) -> None:
    row = json.dumps({"instruction": "i" * 500, "output": "[" * 500}).encode()
    with path.open("wb") as file:
        file.write(b"[" + b",".join([row] * 20_000) + b"]")
    tracemalloc.start()
    assert cut_into_lines(array(path), lambda number, data: None, 2**20) == 20
    assert tracemalloc.get_traced_memory()[1] < 12 * 2**20
    tracemalloc.stop()


def test_long_runs_of_backslashes(path: Path) -> None:
    rng = random.Random(3)
    values = ["\\" * rng.randrange(40) + '"' * rng.randrange(3) + "," for _ in range(300)]
    path.write_text(json.dumps(values))
    for chunk in (1, 2, 3, 5, 64, 4096):
        assert [json.loads(line) for line in cut_elements(path, chunk)] == values
