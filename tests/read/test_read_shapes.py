"""Rows of every shape to conversations; and what becomes of rows that are none."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premask.errors import DataError, PremaskError, UsageError
from premask.read import FORMATS, REASONS, Conversation, Format, Rejected, convert, detect
from premask.read.messages import ALIASES, ROLES

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def conversation(format: Format, row: dict[str, Any]) -> Conversation:
    """What a row is converted to, which the row must survive."""
    before = copy.deepcopy(row)
    result = convert(format, row)
    assert isinstance(result, Conversation), result
    assert row == before
    assert len(result.digest()) == 16
    return result


def of_messages(*messages: Any, **columns: Any) -> Conversation:
    return conversation("messages", {"messages": list(messages), **columns})


def of_sharegpt(*pairs: tuple[str, Any], **columns: Any) -> Conversation:
    return conversation("sharegpt", {"conversations": [{"from": who, "value": what} for who, what in pairs], **columns})


# --- messages


def test_plain_messages_pass_as_they_are() -> None:
    row = {"messages": [U, A], "id": 7, "label": True}
    result = conversation("messages", row)
    assert result == Conversation([U, A])
    assert result.messages[0] is U, "nothing to change, nothing to copy"


@pytest.mark.parametrize("label", [True, 0, 1, "false", None])
def test_a_label_that_is_not_false_says_nothing(label: Any) -> None:
    assert conversation("messages", {"messages": [U, A], "label": label}) == Conversation([U, A])


def test_keys_stay_as_they_came() -> None:
    message = {"name": "bob", "content": "q", "role": "user", "meta": {"k": [None]}, "refusal": None}
    assert of_messages(message, A).messages[0] == message
    assert list(of_messages(message, A).messages[0]) == list(message)


@pytest.mark.parametrize("written", [*sorted(ALIASES), "function_call"])
def test_roles(written: str) -> None:
    content = '{"name": "f", "arguments": {}}' if written == "function_call" else "x"
    expected = "assistant" if written == "function_call" else ALIASES[written]
    for message in ({"role": written, "content": content}, {"from": written, "value": content}):
        assert of_messages(message, A).messages[0]["role"] == expected
        assert of_messages({**message, "extra": 1}, A).messages[0]["role"] == expected
    assert expected in ROLES


@pytest.mark.parametrize(
    ("stated", "weight"),
    [
        ({}, None),
        ({"weight": None}, None),
        ({"weight": 0}, 0.0),
        ({"weight": 0.25}, 0.25),
        ({"loss_weight": 2}, 2.0),
        ({"train": True}, 1.0),
        ({"train": False}, 0.0),
        ({"training": False}, 0.0),
        ({"loss": True}, 1.0),
        ({"loss": 0.5}, 0.5),
        ({"train": True, "weight": 0.5}, 0.5),
        ({"train": False, "weight": 0.5}, 0.0),
        ({"weight": 0.5, "loss_weight": 0.5}, 0.5),
    ],
)
def test_weights_are_taken_out(stated: dict[str, Any], weight: float | None) -> None:
    result = of_messages(U, A | stated, A)
    assert result.messages == [U, A, A]
    assert result.weights == (None if weight is None else [None, weight, None])
    assert result.weights is None or type(result.weights[1]) is float


def test_content_parts() -> None:
    value, text = {"type": "text", "value": "v"}, {"type": "text", "text": "t", "cache_control": {"type": "x"}}
    result = of_messages({"role": "user", "content": [value, text]}, A)
    assert result.messages[0] == {"role": "user", "content": [{"type": "text", "text": "v"}, text]}
    assert of_messages({"role": "user", "content": []}, A).messages[0]["content"] == ""


def test_reasoning_and_call_parts() -> None:
    parts = [
        {"type": "reasoning", "value": "one"},
        {"type": "thinking", "thinking": "two"},
        {"type": "text", "value": "Let me see."},
        {"type": "tool_call", "value": '{"name": "f", "arguments": {"b": 1, "a": null}}'},
        {"type": "tool_call", "value": '{"name": "g", "arguments": "{\\"x\\": 2}"}'},
    ]
    (message,) = of_messages({"role": "assistant", "content": parts}).messages
    assert message == {
        "role": "assistant",
        "content": [{"type": "text", "text": "Let me see."}],
        "reasoning_content": "one\ntwo",
        "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": None}}},
            {"type": "function", "function": {"name": "g", "arguments": {"x": 2}}},
        ],
    }
    (message,) = of_messages({"role": "assistant", "content": parts[:1], "reasoning_content": "zero"}).messages
    assert message == {"role": "assistant", "content": "", "reasoning_content": "zero\none"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ('{"city": "Turin", "n": [1]}', {"city": "Turin", "n": [1]}),
        ({"city": "Turin"}, {"city": "Turin"}),
        ("not JSON", "not JSON"),
        ("[1]", "[1]"),
        ("", ""),
        (r'{"a": "\ud800"}', r'{"a": "\ud800"}'),
    ],
)
def test_arguments_are_parsed_when_they_are_an_object(given: Any, kept: Any) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": given, "strict": True}, "index": 0}
    (message,) = of_messages({"role": "assistant", "content": None, "tool_calls": [call]}).messages
    assert message["content"] is None
    assert message["tool_calls"] == [{**call, "function": {"name": "f", "arguments": kept, "strict": True}}]
    bare = {"role": "assistant", "tool_calls": [{"id": "c1", "name": "f", "arguments": given}]}
    (message,) = of_messages(bare).messages
    assert "content" not in message
    assert message["tool_calls"] == [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": kept}}]


def test_the_older_function_call_becomes_a_tool_call() -> None:
    message = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    result = of_messages(message, {"role": "function", "name": "f", "content": "4"})
    assert result.messages[0] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    }
    assert result.messages[1]["role"] == "function"


SCHEMA = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
WRAPPED = {"type": "function", "function": SCHEMA}


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        (None, None),
        ("", None),
        (" ", None),
        ("null", None),
        ("[]", None),
        ([], None),
        ("[ ]", None),
        ([WRAPPED], [WRAPPED]),
        ([SCHEMA], [WRAPPED]),
        ([{"type": "function", **SCHEMA}], [WRAPPED]),
        (json.dumps([SCHEMA, WRAPPED]), [WRAPPED, WRAPPED]),
    ],
)
def test_tools(tools: Any, expected: Any) -> None:
    assert of_messages(U, A, tools=tools).tools == expected


def test_template_arguments_and_a_system_column() -> None:
    result = of_messages(U, A | {"weight": 0}, chat_template_kwargs={"enable_thinking": False}, system="S")
    assert result.template_args == {"enable_thinking": False}
    assert result.messages[0] == {"role": "system", "content": "S"}
    assert result.weights == [None, None, 0.0]
    assert of_messages(U, A, chat_template_kwargs=None, system=None).messages == [U, A]
    assert of_messages(U, A, system=" \n").messages == [U, A]
    system = {"role": "system", "content": "S"}
    assert of_messages(system, U, A, system="S").messages == [system, U, A]


# --- the other shapes


def test_sharegpt() -> None:
    call = json.dumps([{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": "{}"}])
    result = of_sharegpt(
        ("system", "s"), ("human", "h"), ("function_call", call), ("observation", "o"), ("gpt", "g"), tools=[SCHEMA]
    )
    assert result.messages == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "h"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
                {"type": "function", "function": {"name": "g", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "o"},
        {"role": "assistant", "content": "g"},
    ]
    assert result.tools == [WRAPPED]
    result = of_sharegpt(("human", "h"), ("gpt", "g"), system="s")
    assert [message["role"] for message in result.messages] == ["system", "user", "assistant"]
    assert conversation("sharegpt", {"conversations": [U, A]}).messages == [U, A]


def test_a_call_is_trained_though_no_gpt_turn_follows() -> None:
    assert len(of_sharegpt(("human", "h"), ("function_call", '{"name": "f", "arguments": {}}')).messages) == 2


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"instruction": "i", "input": "x", "output": "a"}, "i\nx"),
        ({"instruction": "i", "input": " \n", "output": "a"}, "i"),
        ({"instruction": "i", "input": None, "response": "a"}, "i"),
        ({"instruction": "i", "output": None, "response": "a"}, "i"),
        ({"instruction": "i", "output": "a", "response": "a"}, "i"),
        ({"instruction": "", "input": "x", "output": "a"}, "x"),
    ],
)
def test_alpaca(row: dict[str, Any], question: str) -> None:
    assert conversation("alpaca", row).messages == [{"role": "user", "content": question}, A]


def test_alpaca_history_and_system() -> None:
    row = {"instruction": "q3", "output": "a", "history": [["q1", "a1"], ["q2", ""]], "system": "s", "tools": "[]"}
    contents = [(message["role"], message["content"]) for message in conversation("alpaca", row).messages]
    turns = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", ""), ("user", "q3"), ("assistant", "a")]
    assert contents == [("system", "s"), *turns]
    assert len(conversation("alpaca", row | {"history": None}).messages) == 3


def test_prompt_completion() -> None:
    assert conversation("prompt-completion", {"prompt": "q", "completion": "a"}) == Conversation([U, A])
    result = conversation("prompt-completion", {"prompt": [U, A | {"weight": 1}, U], "completion": [A]})
    assert result == Conversation([U, A, U, A], weights=[0.0, 0.0, 0.0, None])
    result = conversation("prompt-completion", {"prompt": "q", "completion": [A | {"weight": 0.5}]})
    assert result == Conversation([U, A], weights=[0.0, 0.5])
    result = conversation("prompt-completion", {"prompt": [U], "completion": "a", "system": "s"})
    assert result.weights == [None, 0.0, None]


def test_digest_is_of_the_values_alone() -> None:
    one = of_messages({"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "name": "x"})
    two = of_messages({"content": "q", "role": "user"}, {"name": "x", "content": "a", "role": "assistant"})
    assert one.digest() == two.digest()
    others = [
        of_messages(U, A),
        of_messages(U, A, tools=[SCHEMA]),
        of_messages(U, A, chat_template_kwargs={"x": 1}),
        of_messages(U, A | {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
    ]
    assert len({one.digest(), *(other.digest() for other in others)}) == 5


def test_digest_is_of_what_is_said_however_it_is_written() -> None:
    text = [{"type": "text", "text": "a"}]
    alike = [A, A | {"weight": 0.5}, A | {"train": True}, A | {"name": None}, A | {"content": text}]
    assert len({of_messages(U, message).digest() for message in alike}) == 1
    assert of_messages(U, A | {"content": text + text}).digest() != of_messages(U, A | {"content": "aa"}).digest()


@pytest.mark.parametrize("change", [{"weight": 1}, {"train": False}, {"content": [{"type": "text", "text": "a"}]}])
def test_the_same_words_have_the_same_digest(change: dict[str, Any]) -> None:
    assert (
        of_messages(U, {"role": "assistant", "content": "a"} | change).digest()
        == of_messages(U, {"role": "assistant", "content": "a"}).digest()
    )


# --- rejections


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def message(**changes: Any) -> dict[str, Any]:
    return {"messages": [U, A | changes]}


def called(**changes: Any) -> dict[str, Any]:
    return message(tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {}} | changes}])


def part(**keys: Any) -> dict[str, Any]:
    return message(content=[keys])


REJECTED: list[tuple[Format, dict[str, Any], str, str]] = [
    ("messages", {"a": 1, "b": 2}, "unknown_shape", "row: expected the column messages, found the keys 'a', 'b'; if"),
    ("messages", {}, "unknown_shape", "row: expected the column messages, found no keys; if"),
    ("messages", {"messages": None}, "wrong_type", "messages: expected a list of messages, found null; correct"),
    ("messages", {"messages": "x" * 99}, "wrong_type", f"found the text '{'x' * 40}'... (99 characters); correct"),
    ("messages", {"messages": []}, "empty_conversation", "messages: expected at least one message, found none; drop"),
    (
        "messages",
        {"messages": [U, A], "label": False},
        "unwanted_answer",
        "label: expected an answer to learn, found false: an answer that is not wanted; drop the row; if the column",
    ),
    ("prompt-completion", {"prompt": "p", "completion": "c", "label": False}, "unwanted_answer", "found false"),
    ("messages", {"messages": [U]}, "no_assistant_turn", "expected a message by the assistant, found 1 messages by"),
    ("messages", {"messages": [U, "a"]}, "wrong_type", "messages[1]: expected a message such as {'role': 'user', "),
    (
        "messages",
        {"messages": [{"content": "x"}]},
        "wrong_type",
        "messages[0].role: expected the role as text, found n",
    ),
    ("messages", {"messages": [{"role": ["u"], "content": "x"}]}, "wrong_type", "found a list of 1; correct the row"),
    (
        "messages",
        message(role="narrator"),
        "unknown_role",
        "found 'narrator'; rename the role to one of these, map it to one (role_map), or drop",
    ),
    (
        "messages",
        message(content=5),
        "wrong_type",
        "messages[1].content: expected text or a list of parts, found the nu",
    ),
    ("messages", message(content={"a": 1}), "wrong_type", "found an object with the keys 'a'; write numbers and obj"),
    ("messages", message(content=True), "wrong_type", "found true; write numbers and objects as text"),
    ("messages", message(content=None), "wrong_type", "messages[1].content: expected text, found null; write ''"),
    (
        "messages",
        {"messages": [A, {"role": "assistant"}]},
        "wrong_type",
        "messages[1].content: expected text, found not",
    ),
    (
        "messages",
        {"messages": [{"role": "user", "content": None, "tool_calls": []}]},
        "wrong_type",
        "found null; write",
    ),
    ("messages", message(name=5), "wrong_type", "messages[1].name: expected text, found the number 5; correct"),
    ("messages", message(tool_call_id=[]), "wrong_type", "messages[1].tool_call_id: expected text, found a list of 0;"),
    (
        "messages",
        message(reasoning_content={}),
        "wrong_type",
        "reasoning_content: expected text, found an object with no",
    ),
    ("messages", message(thinking=False), "wrong_type", "messages[1].thinking: expected text, found false; correct"),
    (
        "messages",
        message(weight="1"),
        "wrong_type",
        "messages[1].weight: expected a boolean, or a number of at least 0, f",
    ),
    ("messages", message(loss_weight=-1), "wrong_type", "found the number -1; write false or 0 to mask the message"),
    ("messages", message(loss=float("nan")), "wrong_type", "found the number nan; write false or 0"),
    (
        "messages",
        message(weight=1, loss_weight=2),
        "conflicting_fields",
        "one loss weight, found weight 1, loss_weight 2;",
    ),
    (
        "messages",
        message(tool_calls={}),
        "wrong_type",
        "tool_calls: expected a list of tool calls, found an object with",
    ),
    ("messages", message(tool_calls=["f"]), "wrong_type", 'tool_calls[0]: expected a tool call such as {"name": "sea'),
    (
        "messages",
        message(tool_calls=[{"id": 1}]),
        "wrong_type",
        "tool_calls[0].function: expected a tool call such as {",
    ),
    (
        "messages",
        called(name=None),
        "wrong_type",
        "tool_calls[0].function.name: expected text, found null; name the fun",
    ),
    (
        "messages",
        called(arguments=[1]),
        "wrong_type",
        "function.arguments: expected an object, or its JSON text, found a",
    ),
    ("messages", called(arguments=None), "wrong_type", "found null; write {} when there are none"),
    (
        "messages",
        called(arguments={"x": deep(101)}),
        "too_deep",
        "expected at most 100 levels of nesting, found more; fl",
    ),
    (
        "messages",
        called(arguments='{"n": 18446744073709551616}'),
        "number_too_large",
        "numbers that 64 bits hold exactly",
    ),
    ("messages", message(function_call="f"), "wrong_type", "function_call: expected a tool call such as"),
    ("messages", message(extra={"x": deep(101)}), "too_deep", "messages[1].extra: expected at most"),
    ("messages", part(), "wrong_type", "messages[1].content[0].type: expected text, found nothing; correct"),
    (
        "messages",
        part(type="text"),
        "wrong_type",
        "content[0]: expected the text under text or value, found an object w",
    ),
    (
        "messages",
        part(type="text", text=5),
        "wrong_type",
        "content[0].text: expected text, found the number 5; correct",
    ),
    (
        "messages",
        part(type="image_url", image_url="x"),
        "unsupported_content",
        "found 'image_url'; premask prepares text",
    ),
    ("messages", part(type="tool_call", value="f()"), "wrong_type", "content[0].value: expected a tool call such as {"),
    (
        "messages",
        part(type="tool_call"),
        "wrong_type",
        "(or its JSON text), found nothing; write the call as valid JSON",
    ),
    ("messages", message(content=["text"]), "wrong_type", "content[0]: expected a part such as {'type': 'text'"),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "reasoning", "value": "x"}]}, A]},
        "unsupported_content",
        "found 'reasoning'; premask prepares text only: drop the part or the row",
    ),
    (
        "messages",
        {"messages": [U, A], "tools": {}},
        "wrong_type",
        "tools: expected a list of tools, or its JSON text, fou",
    ),
    ("messages", {"messages": [U, A], "tools": "x"}, "wrong_type", "found the text 'x'; write [] when there are none"),
    (
        "messages",
        {"messages": [U, A], "tools": ["f"]},
        "wrong_type",
        'tools[0]: expected a tool such as {"type": "functi',
    ),
    ("messages", {"messages": [U, A], "tools": [{}]}, "wrong_type", "tools[0].function: expected a tool such as"),
    (
        "messages",
        {"messages": [U, A], "tools": [{"name": 5}]},
        "wrong_type",
        "tools[0].function.name: expected text, fou",
    ),
    (
        "messages",
        {"messages": [U, A], "tools": [{"name": "f", "parameters": "x"}]},
        "wrong_type",
        "tools[0].function.parameters: expected a JSON schema object, found the text 'x'; write the schema",
    ),
    (
        "messages",
        {"messages": [U, A], "tools": [WRAPPED | {"x": deep(101)}]},
        "too_deep",
        "tools: expected at most 100",
    ),
    ("messages", {"messages": [U, A], "system": 5}, "wrong_type", "system: expected text, found the number 5; correct"),
    (
        "messages",
        {"messages": [{"role": "system", "content": "x"}, A], "system": "y"},
        "conflicting_fields",
        "system: expected one system prompt, found a system column and a first message that differ; keep one",
    ),
    (
        "messages",
        {"messages": [U, A], "chat_template_kwargs": []},
        "wrong_type",
        "chat_template_kwargs: expected an obj",
    ),
    ("sharegpt", {"messages": [U, A]}, "unknown_shape", "expected the column conversations, found the keys 'messages'"),
    (
        "sharegpt",
        {"conversations": [{"from": "human"}]},
        "wrong_type",
        "conversations[0].content: expected text, found",
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "function_call", "value": "f"}]},
        "wrong_type",
        "conversations[0].content",
    ),
    ("alpaca", {"output": "a"}, "unknown_shape", "expected the column instruction, found the keys 'output'"),
    ("alpaca", {"instruction": "i"}, "unknown_shape", "expected the column output, found the keys 'instruction'"),
    (
        "alpaca",
        {"instruction": 5, "output": "a"},
        "wrong_type",
        "instruction: expected text, found the number 5; corre",
    ),
    ("alpaca", {"instruction": "i", "input": 5, "output": "a"}, "wrong_type", "input: expected text, found the number"),
    (
        "alpaca",
        {"instruction": "i", "output": None},
        "wrong_type",
        "output: expected text, found null; correct the row",
    ),
    (
        "alpaca",
        {"instruction": "i", "response": 5},
        "wrong_type",
        "response: expected text, found the number 5; correct",
    ),
    (
        "alpaca",
        {"instruction": "i", "output": "a", "response": "b"},
        "conflicting_fields",
        "row: expected one answer, found output and response that differ; keep one of them",
    ),
    (
        "alpaca",
        {"instruction": "i", "output": "a", "history": "x"},
        "wrong_type",
        "history: expected a list of [question",
    ),
    (
        "alpaca",
        {"instruction": "i", "output": "a", "history": [["x"]]},
        "wrong_type",
        "history[0]: expected [question, an",
    ),
    (
        "alpaca",
        {"instruction": "i", "output": "a", "history": [["x", 1]]},
        "wrong_type",
        "history[0][1]: expected text",
    ),
    ("prompt-completion", {"prompt": "q"}, "unknown_shape", "expected the column completion, found the keys 'prompt';"),
    (
        "prompt-completion",
        {"prompt": "q", "completion": 42},
        "wrong_type",
        "completion: expected text or a list of messa",
    ),
    (
        "prompt-completion",
        {"prompt": [U], "completion": [U]},
        "no_assistant_turn",
        "found 2 messages by others; there is",
    ),
    ("text", {"text": 5}, "wrong_type", "text: expected text, found the number 5; correct the row, or drop it"),
    ("text", {"other": "x"}, "unknown_shape", "row: expected the column text, found the keys 'other'; if the whole"),
    ("text", {"text": ""}, "empty_conversation", "text: expected at least one character, found none; drop the row"),
    (
        "text",
        {"text": "x", "system": "s"},
        "conflicting_fields",
        "row: expected text that is trained as it stands, found system beside it; drop the column system, or write",
    ),
]


@pytest.mark.parametrize(("format", "row", "reason", "words"), REJECTED)
def test_rejections_say_where_what_and_what_to_do(format: Format, row: dict[str, Any], reason: str, words: str) -> None:
    before = repr(row)
    rejected = convert(format, row)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == reason
    assert words in rejected.detail
    where, _, rest = rejected.detail.partition(": expected ")
    expected, _, rest = rest.partition(", found ")
    found, _, remedy = rest.partition("; ")
    assert all([where, expected, found, remedy]), rejected.detail
    assert len(rejected.detail) < 500
    assert repr(row) == before


def test_every_reason_is_tested() -> None:
    elsewhere = {"broken_json", "broken_csv", "invalid_utf8", "lone_surrogate", "row_too_large", "not_an_object"}
    assert {reason for _, _, reason, _ in REJECTED} | elsewhere == set(REASONS)


NAMES = """messages conversations prompt completion instruction input output response history system tools text role
from content value type name arguments function tool_calls function_call reasoning_content weight train loss
chat_template_kwargs parameters"""
KEYS = st.sampled_from(NAMES.split())
WORDS = st.sampled_from(
    ["user", "gpt", "assistant", "function_call", "text", "reasoning", "tool_call", "{}", "[]", "[1]", ""]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
MESSAGE = st.fixed_dictionaries(
    {}, optional={"role": WORDS, "content": JSON, "tool_calls": JSON, "name": JSON, "from": WORDS}
)
ROWS = st.dictionaries(KEYS, JSON | st.lists(MESSAGE | JSON, max_size=4), max_size=6)


@given(st.sampled_from(FORMATS), ROWS)
def test_no_row_makes_convert_raise_and_what_it_makes_is_sound(format: Format, row: dict[str, Any]) -> None:
    before = repr(row)
    result = convert(format, row)
    assert repr(row) == before
    if isinstance(result, Rejected):
        assert result.reason in REASONS
        return
    assert len(result.digest()) == 16
    assert any(message["role"] == "assistant" for message in result.messages)
    assert result.weights is None or len(result.weights) == len(result.messages)
    for message in result.messages:
        assert message["role"] in ROLES
        content = message.get("content")
        assert content is None or type(content) is str or all(type(part["text"]) is str for part in content)
        for call in message.get("tool_calls") or []:
            assert type(call["function"]["name"]) is str
            assert type(call["function"]["arguments"]) in (str, dict)
    for tool in result.tools or []:
        assert type(tool["function"]["name"]) is str


# --- detection


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [], "prompt": "x", "text": "x"}, "messages"),
        ({"messages": [], "conversations": None}, "messages"),
        ({"conversations": [], "tools": "[]"}, "sharegpt"),
        ({"instruction": "i", "input": "", "output": "o", "text": "t"}, "alpaca"),
        ({"instruction": "i", "response": "o"}, "alpaca"),
        ({"prompt": "p", "completion": "c", "label": True}, "prompt-completion"),
        ({"text": "t", "meta": {}}, "text"),
    ],
)
def test_detect(row: dict[str, Any], format: str) -> None:
    assert detect([row], "a.jsonl") == format
    assert detect([{"other": 1}, row, {}], "a.jsonl") == format, "a row of another shape costs that row"


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (
            [],
            DataError,
            r"a.jsonl: expected rows that are JSON objects, found none among the first; write one JSON obj",
        ),
        ([{"question": "q", "answer": "a"}], UsageError, r"found the keys 'question', 'answer'; rename the columns"),
        ([{}], UsageError, r"expected the columns of one of messages \(messages\), sharegpt .*found no keys"),
        (
            [{"messages": [], "prompt": "p", "completion": "c"}, {"messages": []}],
            UsageError,
            r"found columns of messages \(2 of the first 2 rows\) and prompt-completion \(1 of the first 2 rows\); "
            r"say which one with --format messages\|prompt-completion",
        ),
        ([{"messages": []}, {"conversations": []}], UsageError, r"--format messages\|sharegpt"),
        (
            [{"text": "t"}, {"messages": []}],
            UsageError,
            r"found columns of text \(1 of the first 2 rows\) and messages",
        ),
    ],
)
def test_what_cannot_be_detected(rows: list[dict[str, Any]], error: type[PremaskError], words: str) -> None:
    with pytest.raises(error, match=words):
        detect(rows, "a.jsonl")
