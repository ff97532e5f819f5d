import functools
import json
from pathlib import Path

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from premask.errors import UsageError
from premask.render.named import TEMPLATE_NAMES, Templates, named_template, resolve_templates

OURS = Path(__file__).parents[2] / "data/tokenizer"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi! "},
    {"role": "assistant", "content": "\nHello. "},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "you?"}]},
    {"role": "assistant", "content": "Fine."},
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "ü<"}}}
TOOL_CHAT = [
    {"role": "user", "content": "1+ü?"},
    {"role": "assistant", "content": None, "reasoning_content": "Use the tool.", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "2", "name": "add"},
    {"role": "assistant", "content": "It is 2."},
]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


@functools.cache
def compiled(source):
    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    return environment.from_string(source)


def render(name, messages, tools=None, prompt=False, **tokens):
    messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    source = named_template(name)
    return compiled(source).render(messages=messages, tools=tools, add_generation_prompt=prompt, **(tokens or TOKENS))


EXPECTED = {
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi! <|im_end|>\n"
        "<|im_start|>assistant\n\nHello. <|im_end|>\n<|im_start|>user\nAnd you?<|im_end|>\n"
        "<|im_start|>assistant\nFine.<|im_end|>\n",
        "<|im_start|>assistant\n",
    ),
    "llama-3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd you?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nFine.<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "alpaca": (
        "<s>Be brief.\n\n### Instruction:\n Hi! \n\n### Response:\n\nHello. </s>\n\n"
        "### Instruction:\nAnd you?\n\n### Response:\nFine.</s>\n\n",
        "### Response:\n",
    ),
    "zephyr": (
        "<|system|>\nBe brief.</s>\n<|user|>\n Hi! </s>\n<|assistant|>\n\nHello. </s>\n"
        "<|user|>\nAnd you?</s>\n<|assistant|>\nFine.</s>\n",
        "<|assistant|>\n",
    ),
    "plain": ("<s>Be brief. Hi! \nHello. </s>And you?Fine.</s>", ""),
}


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_what_each_style_writes(name):
    text, prompt = EXPECTED[name]
    assert render(name, CHAT) == text
    assert render(name, CHAT[:4], prompt=True) == render(name, CHAT[:4]) + prompt
    assert render(name, CHAT).startswith(render(name, CHAT[:4], prompt=True))
    without_system = render(name, CHAT[1:])
    assert "Be brief" not in without_system
    assert "system" not in without_system


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
@pytest.mark.parametrize("prompt", [False, True])
def test_transformers_renders_the_same(name, prompt):
    from transformers import PreTrainedTokenizerFast

    tokens = {"bos_token": "<think>", "eos_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(OURS), **tokens)
    chats = [(CHAT, None), (CHAT[:4], None), (TOOL_CHAT, [TOOL]), (CHAT[:1] + TOOL_CHAT, [TOOL])]
    for messages, tools in chats if name == "chatml" else chats[:2]:
        theirs = tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=named_template(name), tokenize=False, add_generation_prompt=prompt
        )
        assert render(name, messages, tools, prompt, **tokens) == theirs


def test_chatml_writes_tools_thinking_and_calls():
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "ü<"}}\n</tool_call>'
    assert render("chatml", TOOL_CHAT) == (
        "<|im_start|>user\n1+ü?<|im_end|>\n"
        f"<|im_start|>assistant\n<think>\nUse the tool.\n</think>\n\n{call}\n{call}<|im_end|>\n"
        "<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\nIt is 2.<|im_end|>\n"
    )
    with_tools = render("chatml", CHAT[:1] + TOOL_CHAT, [TOOL])
    assert with_tools.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    assert with_tools.count("<|im_start|>system") == 1
    assert json.dumps(TOOL) in with_tools
    assert with_tools.endswith(render("chatml", TOOL_CHAT))
    assert render("chatml", TOOL_CHAT, [TOOL]).startswith("<|im_start|>system\n# Tools\n")


def test_chatml_keeps_arguments_that_came_as_text():
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1.0}'}}
    text = render("chatml", [{"role": "assistant", "content": "So:", "tool_calls": [call]}])
    assert 'So:\n<tool_call>\n{"name": "f", "arguments": {"x": 1.0}}\n</tool_call><|im_end|>\n' in text


def test_llama_3_puts_results_of_tools_under_ipython():
    text = render("llama-3", [{"role": "user", "content": "2?"}, {"role": "tool", "content": " 2 "}])
    assert text.endswith("<|start_header_id|>ipython<|end_header_id|>\n\n2<|eot_id|>")


@pytest.mark.parametrize("name", sorted(set(TEMPLATE_NAMES) - {"chatml"}))
def test_what_has_no_place_is_refused(name):
    refusals = [
        ({"messages": CHAT, "tools": [TOOL]}, f"The template '{name}' has no place for tools"),
        ({"messages": TOOL_CHAT[1:2]}, "no place for tool calls or reasoning"),
        ({"messages": [{"role": "assistant", "content": "x", "reasoning_content": "y"}]}, "or reasoning"),
    ]
    if name != "llama-3":
        refusals.append(({"messages": TOOL_CHAT[2:]}, "no place for a message of role 'tool'"))
        refusals.append(({"messages": CHAT, "bos_token": "<s>"}, "this tokenizer names none"))
    if name == "alpaca":
        refusals.append(({"messages": [*CHAT, CHAT[0]]}, "a system message in the first place only"))
    for arguments, message in refusals:
        with pytest.raises(jinja2.TemplateError, match=message):
            render(name, **arguments)


def test_a_tokenizer_without_bos_gets_none():
    tokens = {"eos_token": "</s>"}
    assert render("alpaca", CHAT[1:3], **tokens).startswith("### Instruction")
    assert render("llama-3", CHAT[1:3], **tokens).startswith("<|start_header_id|>")


def test_the_argument_wins_over_the_tokenizers_own(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("mine")
    assert resolve_templates(None, {"default": "own"}) == Templates("own")
    assert resolve_templates("zephyr", {"default": "own"}) == Templates(named_template("zephyr"))
    assert resolve_templates(str(path), {"default": "own", "tool_use": "tools"}) == Templates("mine")


def test_named_templates_of_the_tokenizer():
    own = {"default": "own", "tool_use": "tools", "rag": "documents", "chatml": "theirs"}
    assert resolve_templates(None, own) == Templates("own", "tools")
    assert resolve_templates("rag", own) == Templates("documents")
    assert resolve_templates("default", own) == Templates("own")
    assert resolve_templates("chatml", own) == Templates("theirs")
    with pytest.raises(UsageError, match="called rag, tool_use, and none that is the default"):
        resolve_templates(None, {"tool_use": "tools", "rag": "documents"})


def test_a_template_that_cannot_be_found_or_read(tmp_path):
    with pytest.raises(UsageError, match=r"The tokenizer has no chat template.*alpaca, chatml, llama-3, plain, zephyr"):
        resolve_templates(None, {})
    with pytest.raises(UsageError, match="--template vicuna: expected a file or one of alpaca, chatml"):
        resolve_templates("vicuna", {"default": "own"})
    (tmp_path / "bad.jinja").write_bytes(b"a\xff")
    with pytest.raises(UsageError, match=r"bad\.jinja: byte 1: expected UTF-8"):
        resolve_templates(str(tmp_path / "bad.jinja"), {})


def test_every_name_has_its_file_and_the_reverse():
    folder = Path(__file__).parents[2] / "pipeline/premask/render/templates"
    assert sorted(path.stem for path in folder.glob("*.jinja")) == sorted(TEMPLATE_NAMES)
