"""Shapes by hand: columns, message keys and roles under other names; nulls left out; texts trained whole."""

import copy
from dataclasses import asdict
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from premask.errors import UsageError
from premask.read import PLAIN, Conversation, Rejected, Shape, columns_of, convert, detect
from premask.read.mapping import COLUMNS, without_nulls

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
ROW = {
    "id": 7,
    "data": {"turns": [{"speaker": "me", "utterance": "q"}, {"speaker": "bot", "utterance": "a", "mood": "calm"}]},
    "meta": {"persona": "Be brief."},
    "functions": [{"name": "f"}],
}
BY_HAND = Shape(
    columns={"messages": "data.turns", "system": "meta.persona", "tools": "functions"},
    message_keys={"role": "speaker", "content": "utterance"},
    role_map={"bot": "assistant", "me": "user"},
)


def test_by_hand() -> None:
    before = copy.deepcopy(ROW)
    assert detect([ROW], "a.jsonl", BY_HAND) == "messages"
    assert convert("messages", ROW, BY_HAND) == Conversation(
        [{"role": "system", "content": "Be brief."}, U, {**A, "mood": "calm"}],
        tools=[{"type": "function", "function": {"name": "f"}}],
    )
    assert before == ROW


def test_a_shape_survives_json() -> None:
    assert Shape(**orjson.loads(orjson.dumps(asdict(BY_HAND)))) == BY_HAND
    assert Shape() == PLAIN


@pytest.mark.parametrize(
    ("format", "columns", "row"),
    [
        ("alpaca", {"instruction": "question", "output": "best.answer"}, {"question": "q", "best": {"answer": "a"}}),
        ("alpaca", {"instruction": "question", "response": "answer"}, {"question": "q", "answer": "a"}),
        ("prompt-completion", {"prompt": "x.y", "completion": "z"}, {"x": {"y": "q"}, "z": "a"}),
        ("sharegpt", {"conversations": "c"}, {"c": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
        ("messages", {"messages": "a.b"}, {"a.b": [U, A], "a": {"b": []}}),
        ("messages", {"messages": "dialog"}, {"dialog": [U, A], "messages": "something else"}),
    ],
)
def test_columns(format: Any, columns: dict[str, str], row: dict[str, Any]) -> None:
    shape = Shape(columns=columns)
    assert detect([row], "a.jsonl", shape) == format
    assert convert(format, row, shape) == Conversation([U, A])
    assert columns_of(shape) >= {*row} - {"messages"}
    assert columns_of(PLAIN) == set(COLUMNS)


def test_a_column_by_hand_decides_the_format() -> None:
    row = {"chat": [U, A], "prompt": "p", "completion": "c"}
    assert detect([row], "a.jsonl", Shape(columns={"messages": "chat"})) == "messages"
    assert detect([row], "a.jsonl", Shape(columns={"system": "chat"})) == "prompt-completion"
    with pytest.raises(UsageError, match=r"found the keys 'chat', 'prompt', 'completion'; rename the columns, or map"):
        detect([row], "a.jsonl", Shape(columns={"messages": "chart"}))


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ({"data": {"turns": [{"speaker": "cat", "utterance": "q"}]}}, "data.turns[0].role: expected one of assistant"),
        ({"data": {"turns": 5}}, "data.turns: expected a list of messages, found the number 5; "),
        ({"data": {"turns": [5]}}, "data.turns[0]: expected a message such as"),
        (
            {"data": {"turn": []}},
            "row: expected data.turns (mapped to messages), found the keys 'data'; if the whole file",
        ),
        ({"data": []}, "row: expected data.turns (mapped to messages), found the keys 'data'; if the whole file"),
    ],
)
def test_rejections_name_the_rows_own_columns(row: dict[str, Any], detail: str) -> None:
    result = convert("messages", row, BY_HAND)
    assert isinstance(result, Rejected)
    assert result.detail.startswith(detail)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"columns": {"mesages": "x"}}, "columns: expected messages, .*, found 'mesages'; did you mean messages?"),
        ({"columns": {"zzz": "x"}}, "columns: expected messages, .*, found 'zzz'; choose one of these"),
        ({"message_keys": {"rol": "x"}}, "message_keys: expected role, .*, found 'rol'; did you mean role?"),
        ({"role_map": {"bot": "asistant"}}, "role_map: expected .*, found 'asistant'; did you mean assistant?"),
    ],
)
def test_names_that_mean_nothing(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Shape(**options)


def test_role_map_reads_the_roles_of_sharegpt_and_of_prompts() -> None:
    shape = Shape(role_map={"bot": "assistant", "assistant": "user"})
    row = {"conversations": [{"from": "assistant", "value": "q"}, {"from": "bot", "value": "a"}]}
    assert convert("sharegpt", row, shape) == Conversation([U, A])
    row = {"prompt": [{"role": "assistant", "content": "q"}], "completion": [{"role": "bot", "content": "a"}]}
    assert convert("prompt-completion", row, shape) == Conversation([U, A], weights=[0.0, None])


def test_a_mapped_key_wins_over_the_known_one() -> None:
    message = {"role": "assistant", "content": "old", "final": "a"}
    shape = Shape(message_keys={"content": "final"})
    assert convert("messages", {"messages": [U, message]}, shape) == Conversation([U, A])


# --- nulls


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=12,
)


def null_valued(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    nulls = sum(each is None for each in inner) if isinstance(value, dict) else 0
    return nulls + sum(null_valued(each) for each in inner)


@given(JSON)
def test_without_nulls(value: Any) -> None:
    before = copy.deepcopy(value)
    result = without_nulls(value)
    assert value == before
    assert null_valued(result) == 0
    assert null_valued(value) or result == value, "nothing else changes"


def test_drop_nulls() -> None:
    arguments = {"city": "Turin", "days": None, "list": [None, {"x": None}]}
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}, "id": None}
    message = {"role": "assistant", "content": None, "tool_calls": [call], "name": None}
    row = {"messages": [{**U, "tool_calls": None}, message], "tools": None}
    kept = convert("messages", row)
    assert isinstance(kept, Conversation)
    assert kept.messages[1]["name"] is None
    dropped = convert("messages", row, Shape(drop_nulls=True))
    clean = {"type": "function", "function": {"name": "f", "arguments": {"city": "Turin", "list": [None, {}]}}}
    assert dropped == Conversation([U, {"role": "assistant", "tool_calls": [clean]}])


# --- lists written as JSON text, and texts


def test_lists_as_json_text() -> None:
    text = orjson.dumps([U, A]).decode()
    assert convert("messages", {"messages": text}) == Conversation([U, A])
    assert convert("sharegpt", {"conversations": f" {text}"}) == Conversation([U, A])
    row = {"instruction": "q", "output": "a", "history": '[["q", "a"]]', "chat_template_kwargs": '{"x": 1}'}
    assert convert("alpaca", row) == Conversation([U, A, U, A], template_args={"x": 1})
    shape = Shape(role_map={"bot": "assistant"})
    assert convert("messages", {"messages": text.replace("assistant", "bot")}, shape) == Conversation([U, A])
    for broken in ("[{", "no list", "{}"):
        result = convert("messages", {"messages": broken})
        assert isinstance(result, Rejected)
        assert (
            result.detail
            == f"messages: expected a list of messages, found the text {broken!r}; correct the row, or drop it"
        )


def test_texts_are_trained_whole() -> None:
    result = convert("text", {"text": "Once upon a time", "id": 1, "system": "", "tools": None})
    assert result == Conversation([{"role": "assistant", "content": "Once upon a time"}], whole=True)
    assert isinstance(result, Conversation)
    assert result.digest() != Conversation(result.messages).digest()
    assert convert("text", {"body": {"raw": "t"}}, Shape(columns={"text": "body.raw"})) == Conversation(
        [{"role": "assistant", "content": "t"}], whole=True
    )
