"""Discovery: the grammar of a template from its renderings alone, and the remarks on it."""

import datetime
from pathlib import Path

import pytest

from premask.encode.encoder import Encoder
from premask.mask.controls import classify
from premask.mask.grammar import Grammar, features
from premask.mask.lints import lints, warnings
from premask.mask.masker import Masker
from premask.read import Conversation
from premask.recipe import Recipe
from premask.render.named import named_template

TOKENIZER = Encoder((Path(__file__).parents[2] / "data/tokenizer/tokenizer.json").read_bytes())
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def masker(template: str, stops: tuple[str, ...] = ("<|im_end|>",), **recipe: object) -> Masker:
    return Masker(
        template,
        {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"},
        datetime.date(2025, 1, 1),
        TOKENIZER,
        classify(TOKENIZER.added, template, frozenset(stops)),
        Recipe(sources=["-"], tokenizer="-", **recipe),
    )


def remarks(template: str, stops: tuple[str, ...] = ("<|im_end|>",)) -> str:
    made = masker(template, stops)
    return "\n".join(lints(made.grammar, made.vocabulary))


def test_chatml_is_found_whole() -> None:
    grammar = masker(CHATML + PROMPT).grammar
    assert grammar.prompt == "<|im_start|>assistant\n"
    assert grammar.headers == ["<|im_start|>assistant\n"]
    assert grammar.closings == ["<|im_end|>"]
    assert grammar.openings == {
        "system": ["<|im_start|>system\n"],
        "user": ["<|im_start|>user\n"],
    }
    assert grammar.searchable == {"", "system", "late system", "reasoning", "out of turn"}
    assert "does not write its tool_calls" in grammar.refused["tools"]


@pytest.mark.parametrize(
    ("name", "header", "closing"),
    [
        ("chatml", "<|im_start|>assistant\n", "<|im_end|>"),
        ("llama-3", "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
        ("alpaca", "### Response:\n", "<|endoftext|>"),
        ("zephyr", "<|assistant|>\n", "<|endoftext|>"),
    ],
)
def test_named_templates(name: str, header: str, closing: str) -> None:
    grammar = masker(named_template(name)).grammar
    assert (grammar.headers, grammar.closings) == ([header], [closing])
    assert {"", "system"} <= grammar.searchable


def test_plain_has_no_markers_and_is_proven_by_provenance() -> None:
    grammar = masker(named_template("plain")).grammar
    assert grammar.headers == []
    assert not grammar.searchable
    assert set(grammar.probes) >= {""}


def test_a_longer_prompt_gives_two_headers_and_the_search_takes_the_longer() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' and loop.last %}"
        "{{ '<think>\n' + (m.reasoning_content or '') + '</think>' }}{% endif %}"
        "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    grammar = masker(template).grammar
    assert grammar.headers == ["<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n"]
    assert "" in grammar.searchable
    assert "the thinking of earlier turns is dropped: use turns=separate" in remarks(template)
    assert "not prefix-stable" in remarks(template)


def test_remarks_on_endings() -> None:
    assert remarks(CHATML + PROMPT).startswith("reasoning_content is not written")
    assert "is not among the tokens on which generation stops (<|endoftext|>)" in remarks(
        CHATML + PROMPT, ("<|endoftext|>",)
    )
    bare = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endfor %}" + PROMPT
    assert "no terminator to learn" in remarks(bare)
    stopped = remarks(bare, ("<|im_start|>",))
    assert "no terminator to learn" in stopped  # the last turn still has none
    text = "{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content + '###END\n' }}{% endfor %}"
    assert "'###END' is plain text to this tokenizer" in remarks(
        text + "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
    )


def test_a_template_of_another_model_is_warned_of() -> None:
    made = masker(named_template("llama-3"))
    first, *_ = warnings(made.grammar, made.vocabulary)
    expected = (
        "the template writes <|eot_id|>, <|start_header_id|>, which this tokenizer does not have: plain text to it"
    )
    assert first.startswith(expected.replace("<|eot_id|>", "<|end_header_id|>, <|eot_id|>"))
    own = masker(named_template("chatml"))
    assert list(warnings(own.grammar, own.vocabulary)) == []


def test_remarks_on_tools_and_words_of_its_own() -> None:
    assert "tool calls are not supported" in remarks(CHATML + PROMPT)
    system = (
        "{{ '<|im_start|>system\nYou are a helpful assistant, and you always think before you answer.<|im_end|>\n' }}"
    )
    assert "adds words of its own before the first message" in remarks(system + CHATML + PROMPT)
    assert remarks("{{ raise_exception('not today') }}") == "a plain chat does not render: not today"


def chat(*roles: str, **extra: object) -> Conversation:
    return Conversation(messages=[{"role": role, "content": "x", **extra} for role in roles])


def test_features() -> None:
    assert features(chat("user", "assistant")) == frozenset()
    assert features(chat("system", "user", "assistant")) == {"system"}
    assert features(chat("user", "system", "assistant")) == {"late system"}
    assert features(chat("assistant", "user", "assistant")) == {"out of turn"}
    assert features(chat("user", "assistant", "tool", "tool", "assistant")) == {"tools"}
    assert features(chat("user", "assistant", reasoning_content="r")) == {"reasoning"}


def test_only_searchable_conversations_are_searched() -> None:
    grammar: Grammar = masker(named_template("zephyr")).grammar
    assert grammar.can_search(chat("user", "assistant"))
    assert not grammar.can_search(chat("user", "assistant", "tool", "assistant"))


def test_explanation_names_origin_and_reason() -> None:
    explanation = masker(CHATML + PROMPT, train_on="last").explain(
        Conversation(
            messages=[
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a"},
                {"role": "assistant", "content": "b"},
            ],
        )
    )
    shown = [(s.text, s.trained, s.origin, s.reason) for s in explanation.stretches]
    assert shown == [
        ("<|im_start|>user\nq<|im_end|>\n", False, "message 0 (user)", "not emitted"),
        ("<|im_start|>assistant\n", False, "message 1 (assistant)", "the generation prompt gives it"),
        ("a", False, "turn of message 1: content", "masked by train_on"),
        ("<|im_end|>", False, "turn of message 1: terminator", "masked by train_on"),
        ("\n", False, "message 1 (assistant)", "not emitted"),
        ("<|im_start|>assistant\n", False, "message 2 (assistant)", "the generation prompt gives it"),
        ("b", True, "turn of message 2: content", "emitted by the model"),
        ("<|im_end|>", True, "turn of message 2: terminator", "emitted by the model"),
        ("\n", False, "message 2 (assistant)", "not emitted"),
    ]
    assert (explanation.labels != -100).sum() == 2
    assert explanation.proof == "proven by provenance and by search"


def test_explanation_of_a_rejected_row_says_why() -> None:
    explanation = masker(named_template("llama-3")).explain(
        Conversation(
            messages=[
                {"role": "user", "content": "q"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
                },
            ]
        )
    )
    assert explanation.rejected.startswith("template_error: The template 'llama-3' has no place for tool calls")
