"""Every template of the trl package, and our own, on real conversations: what transformers renders, cold and warm."""

import datetime
import functools
import itertools
from importlib.util import find_spec
from pathlib import Path

import pytest
import transformers.utils.chat_template_utils as reference
from transformers import PreTrainedTokenizerFast

import premask.read as reading
from premask.read import Conversation, first_rows, open_sources, parse, read_source
from premask.render.forms import Forms, adapt, discover_forms
from premask.render.named import TEMPLATE_NAMES, named_template

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
SAMPLES = sorted((ROOT / "data" / "samples").iterdir())
TEMPLATES = sorted((Path(find_spec("trl").origin).parent / "chat_templates").glob("*.jinja"))
REAL = {
    "chat/oasst_en.messages.jsonl": 5,
    "chat/taskmaster4.sharegpt.jsonl": 5,
    "chat/loss_weights.jsonl": 3,
    "chat/alpaca_zh.alpaca.json": 3,
    "tools/tau_airline.messages.jsonl": 2,
    "tools/glaive_toolcall_en.sharegpt.json": 7,
    "tools/glaive_toolcall_zh.sharegpt.json": 3,
    "tools/reasoning_tool_use.jsonl": 4,
}
"""Rows taken of every file; neighbours, since these have shapes in common."""
AS_IT_STANDS = Forms(parts=frozenset(("system", "developer", "user", "assistant", "tool", "function")))


def read(path, limit=None):
    (source,) = open_sources([str(path)])
    format = reading.detect(first_rows(source), source.name)
    rows = (row for raw in itertools.islice(read_source(source), limit) if isinstance(row := parse(raw), dict))
    return [row for row in (reading.convert(format, row) for row in rows) if isinstance(row, Conversation)]


@functools.cache
def conversations():
    """Samples of our own and real ones; some of them with thinking, some with white space around."""
    rows = [row for path in SAMPLES for row in read(path)[:4]]
    rows += [row for name, count in REAL.items() if (SHARED / name).exists() for row in read(SHARED / name, count)]
    thinking = [_changed(row, lambda text: f"<think>\n{text[:9]}\n</think>\n\n{text}") for row in rows[::5]]
    reasoned = [_reasoned(row) for row in rows[::5]]
    spaced = [_changed(row, lambda text: f" \n{text}\n ") for row in rows[1::5]]
    return rows + thinking + reasoned + spaced


def _changed(row, change):
    messages = [
        {**m, "content": change(m["content"])} if m["role"] == "assistant" and isinstance(m.get("content"), str) else m
        for m in row.messages
    ]
    return Conversation(messages, row.tools, row.template_args)


def _reasoned(row):
    messages = [{**m, "reasoning_content": "First,\nthink."} if m["role"] == "assistant" else m for m in row.messages]
    return Conversation(messages, row.tools, row.template_args)


@pytest.fixture(autouse=True)
def pinned_clock(monkeypatch):
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 2, 29)

    reference._compile_jinja_template.cache_clear()  # other tests pin the clock of the templates they compile
    monkeypatch.setattr(reference, "datetime", Clock)


@functools.cache
def tokenizer():
    return PreTrainedTokenizerFast(
        tokenizer_file=str(ROOT / "data/tokenizer/tokenizer.json"),
        bos_token="<s>",  # noqa: S106
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|pad|>",  # noqa: S106
    )


def transformers_text(source, row, **options):
    """What `apply_chat_template` makes of it; None where it raises."""
    try:
        return tokenizer().apply_chat_template(
            row.messages, row.tools, chat_template=source, tokenize=False, **row.template_args, **options
        )
    except Exception:
        return None


def with_nulls(source, row):
    """As `transformers_text`, with the null contents that it drops and some templates need."""
    if not any(None in message.values() for message in row.messages):
        return transformers_text(source, row)
    template, tokens = reference._compile_jinja_template(source), tokenizer().special_tokens_map
    return template.render(messages=row.messages, tools=row.tools, documents=None, **tokens, **row.template_args)


SOURCES = [
    *(pytest.param(path.read_text(), id=path.stem) for path in TEMPLATES),
    *(pytest.param(named_template(name), id=f"our-{name}") for name in TEMPLATE_NAMES),
]


@pytest.mark.parametrize("source", SOURCES)
def test_renders_what_transformers_renders(source, oracle):
    prompts = []

    def analyse(rendering):
        for count in range(1, len(rendering.conversation.messages) + 1, 3):
            pieces = rendering.prompt(count)
            text = None if pieces is None else "".join(getattr(p.text, "value", p.text) for p in pieces)
            prompts.append((rendering.conversation, count, text))
        return [p.text for p in rendering.pieces], None

    beside = oracle(source, tokenizer().special_tokens_map, analyse)
    forms = discover_forms(beside.program.render_plain)
    rows = [adapt(row, forms) for row in conversations()]
    for row in rows:
        assert beside.expected(row) == with_nulls(source, row)
    assert beside.check(rows) == {}
    for row, count, text in prompts[:: max(1, len(prompts) // 50)]:
        beginning = Conversation(row.messages[:count], row.tools, {**row.template_args, "add_generation_prompt": True})
        assert text == with_nulls(source, beginning)


@pytest.mark.parametrize("source", SOURCES)
def test_forms_lose_nothing_that_transformers_renders(source, oracle):
    """What transformers renders is rendered; and as transformers does it, where the forms change nothing."""
    beside = oracle(source, tokenizer().special_tokens_map)
    forms = discover_forms(beside.program.render_plain)
    for row in conversations()[::2]:
        text, own = transformers_text(source, row), beside.expected(adapt(row, forms))
        assert (text is None) or (own is not None)
        if text is not None and adapt(row, forms) == adapt(row, AS_IT_STANDS):
            assert own == text
