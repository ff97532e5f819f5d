"""Rows read many at a time are what `parse` and `convert` make of each of them."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premask.read import Conversation, Conversations, Rejected, Shape, bulk, convert, parse, plain_of
from premask.read.bulk import read_conversations
from premask.read.mapping import PLAIN
from premask.read.shapes import FORMATS, Format

ROLES = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", "function", "bot", "function_call"])
VALUES = st.sampled_from(["", "hi", "{}", "é", "x" * 50]) | st.none() | st.integers(0, 1) | st.just([])
PAIRS = st.sampled_from([("role", "content"), ("from", "value"), ("content", "role"), ("role", "value")])
PLAIN_MESSAGE = st.builds(lambda role, text: {"role": role, "content": text}, ROLES, st.sampled_from(["", "a", "é"]))
SHAREGPT_MESSAGE = st.builds(lambda role, text: {"from": role, "value": text}, ROLES, st.sampled_from(["", "a", "é"]))
MESSAGE = (
    PLAIN_MESSAGE
    | SHAREGPT_MESSAGE
    | st.builds(lambda keys, values: dict(zip(keys, values, strict=True)), PAIRS, st.tuples(ROLES, VALUES))
    | st.fixed_dictionaries({"role": ROLES, "content": VALUES}, optional={"train": st.booleans(), "name": VALUES})
    | VALUES
)
MESSAGES = st.lists(PLAIN_MESSAGE, max_size=4) | st.lists(SHAREGPT_MESSAGE, max_size=4) | st.lists(MESSAGE, max_size=4)
BESIDE = {"id": VALUES, "label": st.booleans(), "system": VALUES, "tools": st.none(), "chat_template_kwargs": st.none()}
ROW = (
    st.fixed_dictionaries({"messages": MESSAGES})
    | st.fixed_dictionaries({"conversations": MESSAGES}, optional={"id": VALUES})
    | st.fixed_dictionaries({}, optional={"messages": MESSAGES | VALUES, "conversations": MESSAGES, **BESIDE})
)
RAW = (
    ROW.map(orjson.dumps)
    | ROW
    | st.sampled_from([b"", b"{", b"[]", b"5", b'{"messages":"\xff"}', b'\xef\xbb\xbf{"messages":[]}', b'{"a":1}{}'])
)


def one_by_one(format: Format, raws: list[Any], shape: Shape) -> tuple[dict[int, Conversation], dict[int, Rejected]]:
    kept, rejected = {}, {}
    for number, row in enumerate(map(parse, raws)):
        found = row if isinstance(row, Rejected) else convert(format, row, shape)
        if isinstance(found, Rejected):
            rejected[number] = found
        else:
            kept[number] = found
    return kept, rejected


def check(format: Format, raws: list[Any], shape: Shape = PLAIN) -> Conversations:
    numbers, conversations, rejected = read_conversations(format, raws, shape)
    kept, refused = one_by_one(format, raws, shape)
    assert rejected == refused
    assert list(numbers) == list(kept)
    assert list(conversations) == list(kept.values())
    assert [list(m) for c in conversations for m in c.messages] == [list(m) for c in kept.values() for m in c.messages]
    assert [c.plain for c in conversations] == [c.plain for c in kept.values()]
    return conversations


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FORMATS), st.lists(RAW, max_size=7), st.sampled_from([PLAIN, Shape(drop_nulls=True)]))
def test_many_rows_are_read_as_each_of_them(format: Format, raws: list[Any], shape: Shape) -> None:
    check(format, raws, shape)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["messages", "sharegpt"]), st.lists(ROW, max_size=30))
def test_odd_rows_cost_their_neighbours_nothing(format: Format, rows: list[Any]) -> None:
    check(format, rows)


@pytest.mark.parametrize("count", [0, 1, bulk.CHUNK - 1, bulk.CHUNK, 3 * bulk.CHUNK + 5])
@pytest.mark.parametrize("odd", [None, 0, 130, -1])
def test_chunks(count: int, odd: int | None) -> None:
    rows: list[Any] = [
        {"id": n, "messages": [{"role": "user", "content": str(n)}, {"role": "assistant", "content": "a"}]}
        for n in range(count)
    ]
    if odd is not None and odd < count and count:
        rows[odd] = {"messages": [{"role": "assistant", "content": "b", "weight": 0}]}
    conversations = check("messages", [orjson.dumps(row) for row in rows])
    assert len(conversations.others) == (odd is not None and odd < count and bool(count))


@pytest.mark.parametrize(
    ("format", "row"),
    [
        ("messages", {"messages": [{"role": "user", "content": "é"}, {"role": "assistant", "content": ""}]}),
        ("messages", {"messages": [{"role": "user", "content": "é"}, {"role": "assistant", "content": ""}], "id": 5}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "é"}, {"from": "gpt", "value": ""}], "x": None}),
    ],
)
def test_plain_rows_are_never_looked_at_one_by_one(
    format: Format, row: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "convert", lambda *_: pytest.fail("looked at by itself"))
    _, conversations, rejected = read_conversations(format, [orjson.dumps(row)] * 300)
    assert conversations.plain == [(("user", "assistant"), ["é", ""])] * 300
    assert (conversations.others, rejected) == ({}, {})


def test_conversations_are_a_sequence() -> None:
    other = Conversation([{"role": "assistant", "content": "c"}], weights=[0.5])
    batch = Conversations([(("user", "assistant"), ["a", "b"]), None], {1: other})
    first = Conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert list(batch) == [first, other] == batch[:]
    assert (batch[-1], batch[-2], batch[1:], batch[::-1]) == (other, first, [other], [other, first])
    assert batch[0].plain == plain_of(first.messages)
    with pytest.raises(IndexError):
        batch[2]
    assert Conversations.of(batch) is batch
    assert list(Conversations.of([first, other])) == [first, other]
    renamed = batch.mapped(lambda each: Conversation([{"role": "assistant", "content": "d"}]))
    assert [each.messages[-1]["content"] for each in renamed] == ["b", "d"]
