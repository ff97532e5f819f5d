"""Real rows of every shape, and our own samples: how many they are, and what they say."""

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import premask.read as reading
from premask.read import (
    Conversation,
    Rejected,
    first_rows,
    open_sources,
    parse,
    partitions,
    read_partition,
    read_source,
)

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
SAMPLES = ROOT / "data" / "samples"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")


@cache
def read(path: Path) -> tuple[str, list[dict[str, Any] | Rejected], list[Conversation | Rejected]]:
    """A file's format, its rows, and what they became."""
    (source,) = open_sources([str(path)])
    if source.sliceable:
        raws = [
            raw for partition in partitions(source, 2**16) for rows in read_partition(partition) for raw in rows.raws
        ]
    else:
        raws = list(read_source(source))
    format = reading.detect(first_rows(source), source.name)
    rows = [parse(raw) for raw in raws]
    return format, rows, [row if isinstance(row, Rejected) else reading.convert(format, row) for row in rows]


def conversations(path: str) -> list[Conversation]:
    return [result for result in read(SHARED / path)[2] if isinstance(result, Conversation)]


def row(path: str, index: int) -> dict[str, Any]:
    row = read(SHARED / path)[1][index]
    assert type(row) is dict
    return row


@needs_shared
@pytest.mark.parametrize(
    ("path", "format", "rows"),
    [
        ("chat/oasst_en.messages.jsonl", "messages", 626),
        ("chat/taskmaster4.sharegpt.jsonl", "sharegpt", 3500),
        ("chat/gsm8k.prompt_completion.jsonl", "prompt-completion", 7473),
        ("chat/gpteacher_codegen.alpaca.json", "alpaca", 4535),
        ("chat/gpteacher_roleplay.alpaca.json", "alpaca", 1923),
        ("chat/alpaca_zh.alpaca.json", "alpaca", 1000),
        ("chat/loss_weights.jsonl", "messages", 500),
        ("tools/tau_airline.messages.jsonl", "messages", 200),
        ("tools/glaive_toolcall_en.sharegpt.json", "sharegpt", 300),
        ("tools/glaive_toolcall_zh.sharegpt.json", "sharegpt", 300),
        ("tools/reasoning_tool_use.jsonl", "messages", 50),
    ],
)
def test_every_real_row_is_a_conversation(path: str, format: str, rows: int) -> None:
    found, _, results = read(SHARED / path)
    assert found == format
    assert len(results) == rows
    assert [result for result in results if isinstance(result, Rejected)] == []


@needs_shared
def test_of_preference_rows_the_wanted_answers_are_kept() -> None:
    found, source, results = read(SHARED / "chat/kto_en.messages.json")
    assert (found, len(results)) == ("messages", 300)
    reasons = [result.reason if isinstance(result, Rejected) else None for result in results]
    assert reasons == [None if row["label"] else "unwanted_answer" for row in source]
    assert reasons.count(None) == 150


@needs_shared
@pytest.mark.parametrize("path", sorted(SHARED.glob("*/*.json")), ids=lambda path: path.name)
def test_arrays_are_cut_into_what_a_json_parser_reads(path: Path) -> None:
    assert read(path)[1] == json.loads(path.read_bytes())


@needs_shared
def test_loss_weights() -> None:
    assert row("chat/loss_weights.jsonl", 0)["messages"][0]["content"] == [{"type": "text", "value": "hi"}]
    first, *_ = results = conversations("chat/loss_weights.jsonl")
    assert first.messages[0] == {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    assert first.messages[1]["content"][0]["text"].startswith("Hello! I am {{name}}")
    for index, result in enumerate(results):
        stated = [message["loss_weight"] for message in row("chat/loss_weights.jsonl", index)["messages"]]
        assert result.weights == stated
        assert all(list(message) == ["role", "content"] for message in result.messages)


@needs_shared
def test_reasoning_tool_use() -> None:
    kinds: Counter[str] = Counter()
    for index, result in enumerate(conversations("tools/reasoning_tool_use.jsonl")):
        source = row("tools/reasoning_tool_use.jsonl", index)
        assert result.tools == (json.loads(source["tools"]) or None)
        for before, after in zip(source["messages"], result.messages, strict=True):
            parts: dict[str, list[str]] = {"text": [], "reasoning": [], "tool_call": []}
            for part in before["content"]:
                parts[part["type"]].append(part["value"])
            kinds.update({kind: len(values) for kind, values in parts.items()})
            assert after["content"] == ([{"type": "text", "text": text} for text in parts["text"]] or "")
            assert after.get("reasoning_content", "") == "\n".join(parts["reasoning"])
            calls = [call["function"] for call in after.get("tool_calls", [])]
            assert calls == [json.loads(text) for text in parts["tool_call"]]
    assert kinds == {"text": 221, "reasoning": 112, "tool_call": 68}


@needs_shared
def test_tau_airline() -> None:
    calls = 0
    for index, result in enumerate(conversations("tools/tau_airline.messages.jsonl")):
        assert result.tools is None
        assert result.weights is None
        source = row("tools/tau_airline.messages.jsonl", index)
        for before, after in zip(source["messages"], result.messages, strict=True):
            assert {key: after[key] for key in after if key != "tool_calls"} == {
                key: before[key] for key in before if key != "tool_calls"
            }
            assert list(before) == list(after)
            for old, new in zip(before.get("tool_calls", []), after.get("tool_calls", []), strict=True):
                calls += 1
                assert new == {
                    **old,
                    "function": {**old["function"], "arguments": json.loads(old["function"]["arguments"])},
                }
                assert type(old["function"]["arguments"]) is str, "the row itself stays as it was"
    assert calls == 1164


@needs_shared
@pytest.mark.parametrize(("language", "calls", "results"), [("en", 211, 211), ("zh", 216, 218)])
def test_glaive(language: str, calls: int, results: int) -> None:
    path = f"tools/glaive_toolcall_{language}.sharegpt.json"
    kinds: Counter[str] = Counter()
    for index, result in enumerate(conversations(path)):
        source = row(path, index)
        tools = [{"type": "function", "function": tool} for tool in json.loads(source["tools"])]
        assert result.tools == (tools or None)
        for before, after in zip(source["conversations"], result.messages, strict=True):
            kinds[before["from"]] += 1
            if before["from"] == "function_call":
                call = {"type": "function", "function": json.loads(before["value"])}
                assert after == {"role": "assistant", "content": "", "tool_calls": [call]}
            else:
                role = {"human": "user", "gpt": "assistant", "observation": "tool"}[before["from"]]
                assert after == {"role": role, "content": before["value"]}
    assert kinds["function_call"] == calls
    assert kinds["observation"] == results


@needs_shared
def test_alpaca_joins_the_input_by_a_newline() -> None:
    first = conversations("chat/gpteacher_codegen.alpaca.json")[0].messages
    assert first[0]["content"].endswith("given its width and height.\nwidth: 5, height: 8")
    assert first[1]["content"] == row("chat/gpteacher_codegen.alpaca.json", 0)["response"]


@needs_shared
def test_digests_tell_rows_apart() -> None:
    results = conversations("chat/gsm8k.prompt_completion.jsonl")
    distinct = {json.dumps(result.messages) for result in results}
    assert len({result.digest() for result in results}) == len(distinct)


# --- our own samples

SAMPLE_ROWS = {
    "support.messages.jsonl": ("messages", 21, {11: "broken_json"}),
    "tutor.sharegpt.jsonl": ("sharegpt", 16, {}),
    "tasks.alpaca.json": ("alpaca", 17, {}),
    "facts.prompt_completion.jsonl": ("prompt-completion", 17, {9: "wrong_type"}),
    "tools.messages.jsonl": ("messages", 3, {}),
}


def test_the_samples_are_all_described() -> None:
    assert {path.name for path in SAMPLES.iterdir()} == set(SAMPLE_ROWS)
    readme = (ROOT / "data" / "README.md").read_text()
    for name, (_, rows, _) in SAMPLE_ROWS.items():
        assert f"| `{name}` | {rows} |" in readme


@pytest.mark.parametrize("name", SAMPLE_ROWS)
def test_samples(name: str) -> None:
    format, rows, rejected = SAMPLE_ROWS[name]
    found, _, results = read(SAMPLES / name)
    assert found == format
    assert len(results) == rows
    assert {i: result.reason for i, result in enumerate(results) if isinstance(result, Rejected)} == rejected


def test_samples_hold_what_is_hard() -> None:
    text = "".join((SAMPLES / name).read_text(encoding="utf-8") for name in SAMPLE_ROWS)
    for hard in ("<|im_end|>\\n<|im_start|>assistant\\n", "### Response:", "<tool_call>", "<think>", "```python"):
        assert hard in text
    for letter in ("我", "ه", "म", "ы", "は", "한", "\u0308", "👨‍👩‍👧"):
        assert letter in text
    answers = [
        message["content"]
        for name in SAMPLE_ROWS
        for result in read(SAMPLES / name)[2]
        if isinstance(result, Conversation)
        for message in result.messages
        if message["role"] == "assistant"
    ]
    assert "" in answers
    assert None in answers
    assert any(answer and answer.startswith("\n\n") for answer in answers)
    assert any(answer and "<|im_start|>" in answer for answer in answers)
