"""A tokenizer with several chat templates: conversations with tools take `tool_use`, as in transformers."""

import datetime

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from premask.encode.encoder import Encoder
from premask.mask import separate
from premask.mask.controls import classify
from premask.mask.masker import Masker
from premask.read import Conversation
from premask.recipe import Recipe

TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
DEFAULT = "{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT
TOOL_USE = (
    "{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}" + PROMPT
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"x": "1"}}}
QUESTION, ANSWER = {"role": "user", "content": "Ask é"}, {"role": "assistant", "content": "Answer"}
CALLING = [
    QUESTION,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "r", "name": "f", "tool_call_id": "c1"},
    ANSWER,
]
ROWS = [
    Conversation(messages=CALLING, tools=[TOOL]),
    Conversation(messages=[QUESTION, ANSWER]),
    Conversation(messages=[QUESTION, ANSWER], tools=[TOOL]),
    Conversation(messages=CALLING[2:]),
    Conversation(messages=[QUESTION, {"role": "assistant", "content": ""}, QUESTION, ANSWER]),
    Conversation(messages=[QUESTION, {"role": "assistant", "content": [{"type": "text", "text": "in"}]}], tools=[TOOL]),
]


@pytest.fixture(scope="module")
def tokenizer(families):
    raw = families.family_tokenizer("qwen3")
    return raw, PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(raw.decode()),
        eos_token="<|im_end|>",  # noqa: S106
        chat_template={"default": DEFAULT, "tool_use": TOOL_USE},
    )


def masker(raw, **recipe):
    encoder = Encoder(raw)
    return Masker(
        DEFAULT,
        {"eos_token": "<|im_end|>"},
        datetime.date(2025, 1, 1),
        encoder,
        classify(encoder.added, DEFAULT + TOOL_USE, frozenset(["<|im_end|>"])),
        Recipe(sources=["x"], tokenizer="x", **recipe),
        tool_template=TOOL_USE,
    )


def test_each_row_takes_the_template_that_transformers_takes(tokenizer):
    raw, theirs = tokenizer
    masked = masker(raw).mask(ROWS)
    assert masked.failures == {}
    assert masked.examples.rows.tolist() == list(range(len(ROWS)))
    for row, conversation in enumerate(ROWS):
        ids = masked.examples.ids[masked.examples.offsets[row] : masked.examples.offsets[row + 1]]
        expected = theirs.apply_chat_template(conversation.messages, tools=conversation.tools, return_dict=False)
        assert ids.tolist() == expected


def test_every_turn_is_masked_under_its_own_template(tokenizer):
    raw, _ = tokenizer
    made = masker(raw)
    examples = made.mask(ROWS).examples
    trained = []
    for n in range(len(examples)):
        ids = examples.ids[examples.offsets[n] : examples.offsets[n + 1]]
        spans = examples.spans[examples.span_offsets[n] : examples.span_offsets[n + 1]]
        trained.append([made.encoder.spell(ids[a:b]).decode() for a, b in spans])
    calls = '<tool_call>{"name": "f", "arguments": {"x": "1"}}</tool_call><|im_end|>'
    assert trained == [
        [calls, "Answer<|im_end|>"],
        ["Answer<|im_end|>"],
        ["Answer<|im_end|>"],
        ["Answer<|im_end|>"],
        ["<|im_end|>", "Answer<|im_end|>"],
        ["in<|im_end|>"],
    ]


def test_turns_apart_and_failures_keep_their_rows(tokenizer):
    raw, _ = tokenizer
    bad = Conversation(messages=CALLING)  # calls without tools: the default template does not write them
    rows = [ROWS[0], bad, ROWS[1], ROWS[0]]
    masked = masker(raw, turns="separate").mask(rows)
    assert list(masked.failures) == [1] and masked.failures[1].reason == "not_rendered"
    assert masked.examples.rows.tolist() == [0, 0, 2, 3, 3]
    assert masked.examples.source_turns.tolist() == [0, 1, 0, 0, 1]
    explained = masker(raw).explain(ROWS[2])
    assert explained.rejected == ""
    assert [s.text for s in explained.stretches if s.origin == "tool schemas"] == [
        '{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}'
    ]


def test_turns_apart_are_masked_in_chunks(tokenizer, monkeypatch):
    """Every turn brings its whole context, so turns are masked some at a time; how many changes nothing."""
    raw, _ = tokenizer
    rows = [ROWS[4], ROWS[0], ROWS[1]] * 3
    whole = masker(raw, turns="separate").mask(rows)
    assert [len(chunk) for chunk in separate.in_chunks([])] == [0]
    monkeypatch.setattr(separate, "CHUNK_CHARACTERS", 30)
    parts = [part for n, row in enumerate(rows) for part in separate.separated(n, row, "all")]
    chunks = list(separate.in_chunks(parts))
    assert len(chunks) > 3 and [n for chunk in chunks for n in chunk] == list(range(len(parts)))
    cut = masker(raw, turns="separate").mask(rows)
    for name in ("ids", "offsets", "spans", "span_offsets", "span_weights", "rows", "turns", "source_turns", "digests"):
        assert np.array_equal(getattr(cut.examples, name), getattr(whole.examples, name)), name
    assert np.array_equal(cut.messages, whole.messages) and cut.failures == whole.failures
