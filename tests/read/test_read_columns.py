"""Arrow columns of every type to rows as JSON has them; structs whose keys are the union of the rows' keys."""

import datetime
import decimal
import json
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from premask.read import Conversation, Rejected, convert, parse
from premask.read.columns import RowMaker, null_keys

DAY = datetime.date(2024, 5, 6)


def rows_of(**columns: pa.Array) -> list[dict[str, Any] | bytes]:
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    return RowMaker(batch.schema).rows(batch)


KEYS = st.text("abc.é", min_size=1, max_size=3)
TYPES = st.recursive(
    st.sampled_from([pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.large_string()]),
    lambda inner: (
        inner.map(pa.list_)
        | inner.map(pa.large_list)
        | st.dictionaries(KEYS, inner, min_size=1, max_size=3).map(lambda fields: pa.struct(list(fields.items())))
    ),
    max_leaves=5,
)


def values(type: Any) -> st.SearchStrategy[Any]:
    """JSON values of an Arrow type, structs with all their keys."""
    plain = {
        pa.string(): st.text(),
        pa.large_string(): st.text(),
        pa.int64(): st.integers(-(2**63), 2**63 - 1),
        pa.float64(): st.floats(allow_nan=False, allow_infinity=False),
        pa.bool_(): st.booleans(),
    }
    if type in plain:
        return st.none() | plain[type]
    if pa.types.is_struct(type):
        return st.none() | st.fixed_dictionaries({field.name: values(field.type) for field in type})
    return st.none() | st.lists(values(type.value_type), max_size=3)


@given(st.data())
def test_rows_are_what_json_gives(data: st.DataObject) -> None:
    types = data.draw(st.dictionaries(KEYS, TYPES, min_size=1, max_size=3))
    rows = data.draw(st.lists(st.fixed_dictionaries({name: values(type) for name, type in types.items()}), max_size=5))
    batch = pa.RecordBatch.from_pylist(rows, pa.schema(list(types.items())))
    found = RowMaker(batch.schema).rows(batch)
    assert found == [json.loads(json.dumps(row)) for row in rows]
    start = data.draw(st.integers(0, len(rows)))
    assert RowMaker(batch.schema).rows(batch.slice(start)) == found[start:]
    assert null_keys(batch) == naive_null_keys(rows)


def naive_null_keys(rows: list[dict[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}

    def look(value: Any, path: str) -> None:
        for item in value if isinstance(value, list) else ():
            look(item, f"{path}[]")
        for key, inner in value.items() if isinstance(value, dict) else ():
            if inner is None:
                counts[f"{path}.{key}"] = counts.get(f"{path}.{key}", 0) + 1
            look(inner, f"{path}.{key}")

    for row in rows:
        for name, value in row.items():
            look(value, name)
    return counts


def json_array(*texts: str | None) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (pa.array([DAY]), "2024-05-06"),
        (pa.array([datetime.datetime(2024, 5, 6, 7, 8)], pa.timestamp("ms")), "2024-05-06 07:08:00.000"),
        (pa.array([1], pa.timestamp("ns")), "1970-01-01 00:00:00.000000001"),
        (pa.array([datetime.time(1, 2, 3)], pa.time32("s")), "01:02:03"),
        (pa.array([decimal.Decimal("1.20")]), "1.20"),
        (pa.array(["x"]).dictionary_encode(), "x"),
        (pa.array([[("k", DAY)]], pa.map_(pa.string(), pa.date32())), {"k": "2024-05-06"}),
        (pa.array([[]], pa.map_(pa.string(), pa.int8())), {}),
        (pa.array([math.nan]), None),
        (pa.array([[1.5, math.nan]]), [1.5, None]),
        (pa.array(["größer".encode()]), "größer"),
        (pa.array([b"\xff\xfe"]), b"\xff\xfe"),
        (pa.array([[{"d": DAY, "b": b"x"}]]), [{"d": "2024-05-06", "b": "x"}]),
        (pa.array([None]), None),
        (json_array('{"a": [1, null]}'), {"a": [1, None]}),
        (pa.ListArray.from_arrays([0, 2], json_array('{"a": 1}', "7")), [{"a": 1}, 7]),
        (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), "MonthDayNano(months=1, days=2, nanoseconds=3)"),
        (pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array(["r"])), "r"),
    ],
    ids=lambda value: str(getattr(value, "type", ""))[:30],
)
def test_other_types(column: pa.Array, value: Any) -> None:
    assert rows_of(c=column) == [{"c": value}]


def test_text_that_is_not_utf8_costs_its_row() -> None:
    broken = pa.Array.from_buffers(pa.string(), 3, pa.array([b"good", b"b\xc3(", b"fine"]).buffers())
    first, second, third = (parse(row) for row in rows_of(text=broken, n=pa.array([1, 2, 3])))
    assert first == {"text": "good", "n": 1}
    assert third == {"text": "fine", "n": 3}
    assert second == Rejected(
        "invalid_utf8",
        "row: expected UTF-8, found byte 0xc3 at byte 1 of a text; write the file again with its text as UTF-8",
    )


def test_json_that_is_broken_costs_its_row() -> None:
    rows = [parse(row) for row in rows_of(tools=json_array("{}", "{", "[]"))]
    assert rows[0] == {"tools": {}}
    assert rows[2] == {"tools": []}
    assert isinstance(rows[1], Rejected)
    assert rows[1].reason == "wrong_type"
    assert rows[1].detail.startswith("row: expected values that JSON can hold, found unexpected end of data")
    assert rows[1].detail.endswith("; correct the row, or drop it")


BINARY = b"\xff\x00"
U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ({"messages": [U, A | {"content": BINARY}]}, "messages[1].content: expected text or a list of parts"),
        ({"messages": [U, A | {"photo": BINARY}]}, "messages[1].photo: expected values that JSON can hold"),
        ({"messages": [U, A | {"meta": {"x": [BINARY]}}]}, "messages[1].meta: expected values that JSON can hold"),
        ({"messages": [U, A], "tools": [{"name": "f", "x": BINARY}]}, "tools: expected values that JSON can hold"),
    ],
)
def test_binary_values_cost_their_row_where_they_matter(row: dict[str, Any], detail: str) -> None:
    result = convert("messages", row)
    assert isinstance(result, Rejected)
    assert result.reason == "wrong_type"
    assert result.detail.startswith(f"{detail}, found binary data (2 bytes); ")


def test_binary_values_elsewhere_cost_nothing() -> None:
    assert convert("messages", {"messages": [U, A], "image": BINARY}) == Conversation([U, A])


def test_null_keys() -> None:
    rows = [
        {"messages": [{"role": "user", "content": "q", "calls": None}], "tools": None},
        {"messages": [{"role": "assistant", "content": None, "calls": [{"args": {"a": 1, "b": None}}]}], "tools": None},
    ]
    batch = pa.RecordBatch.from_pylist(rows)
    assert null_keys(batch) == {"messages[].content": 1, "messages[].calls": 1, "messages[].calls[].args.b": 1}
    assert null_keys(batch.slice(1)) == {"messages[].content": 1, "messages[].calls[].args.b": 1}
    assert null_keys(pa.RecordBatch.from_pylist([{"a": None, "b": [None]}])) == {}
