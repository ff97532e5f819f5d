"""`mask="unsloth"` against the function that it restates, of the package unsloth-zoo, on all real data at hand.

Run by `make test-trainers`, which installs that package beside the others. Its `__init__` wants a GPU; the function
does not, so its module is loaded without it.
"""

import contextlib
import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import orjson
import pytest
from transformers import AutoTokenizer

from premask.feed.drop_in import train_on_responses_only
from premask.feed.named_templates import get_chat_template
from premask.read import Conversation, Rejected, convert, detect, parse

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SHARED = ROOT / "../shared/data"
SOURCES = sorted([*(SHARED / "chat").glob("*"), *(SHARED / "tools").glob("*"), *(ROOT / "data/samples").glob("*")])

CHATML = ("<|im_start|>user\n", "<|im_start|>assistant\n")
LLAMA = ("<|start_header_id|>user<|end_header_id|>\n\n", "<|start_header_id|>assistant<|end_header_id|>\n\n")
ALPACA = ("### Instruction:\n", "### Response:\n")
CASES = {
    "chatml": ("dolma2", None, CHATML),
    "llama-3.1": ("dolma2", "llama-3.1", LLAMA),
    "instruction, plain text": ("gpt-neox", None, ALPACA),
    "alpaca": ("gpt-neox", "alpaca", ALPACA),
    "zephyr, plain text": ("gpt-neox", "zephyr", ("<|user|>\n", "<|assistant|>\n")),
    "chatml, small": ("ours", None, CHATML),
}


@functools.cache
def unsloth() -> Any:
    """The real function's module."""
    spec = importlib.util.find_spec("unsloth_zoo")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs unsloth-zoo: make test-trainers")
    package = types.ModuleType("unsloth_zoo")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["unsloth_zoo"] = package
    return importlib.import_module("unsloth_zoo.dataset_utils")


def conversations(path: Path) -> Iterator[Conversation]:
    raw = path.read_bytes()
    lines = [orjson.dumps(row) for row in orjson.loads(raw)] if path.suffix == ".json" else raw.splitlines()
    rows = [row for line in lines if line.strip() and not isinstance(row := parse(line), Rejected)]
    form = detect(rows[:100], path.name)
    return (c for row in rows if isinstance(c := convert(form, row), Conversation))


def tokenizer_of(name: str, template: str | None) -> Any:
    folder = ROOT / "data/tokenizer" if name == "ours" else SHARED / "tokenizers" / name
    if not folder.exists():
        pytest.skip("needs ../shared/data")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if template == "llama-3.1":
        tokens = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        tokenizer.bos_token, tokenizer.eos_token = tokens[0], tokens[-1]
    return get_chat_template(tokenizer, template) if template else tokenizer


def tokenized(tokenizer: Any) -> list[list[int]]:
    """All rows that the chat template renders; long ones also cut short, as trainers do."""
    texts = []
    for path in SOURCES:
        for c in conversations(path):
            with contextlib.suppress(jinja2.TemplateError, TypeError):  # calls where a template wants text
                texts.append(tokenizer.apply_chat_template(c.messages, tools=c.tools, tokenize=False))
    rows = tokenizer(texts, add_special_tokens=False).input_ids
    return [*rows, *(row[: len(row) * 2 // 3] for row in rows[::5])]


@pytest.mark.parametrize("case", CASES)
def test_labels_are_those_of_the_real_function(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    real = unsloth().train_on_responses_only
    name, template, parts = CASES[case]
    tokenizer = tokenizer_of(name, template)
    every = tokenized(tokenizer)
    tokens = compared = 0
    for given in (None, parts):
        for last in (False, True):
            for force in (True, False):
                rows = every if force else every[::10]
                options: dict[str, Any] = {
                    "tokenizer": tokenizer,
                    "return_function": True,
                    "last_response_only": last,
                    "force_match": force,
                }
                if given:
                    options |= {"instruction_part": given[0], "response_part": given[1]}
                try:
                    theirs = real(None, **options)
                except ValueError:
                    with pytest.raises(Exception, match="part"):
                        train_on_responses_only(None, mask="unsloth", **options)
                    continue
                expected = theirs({"input_ids": rows})["labels"]
                found = train_on_responses_only(None, mask="unsloth", **options)({"input_ids": rows})["labels"]
                wrong = [n for n, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b]
                assert not wrong, f"{case}, {options}: rows {wrong[:5]} of {len(rows)}"
                assert any(label != -100 for row in expected for label in row)
                compared, tokens = compared + len(rows), tokens + sum(map(len, rows))
    assert compared
    with capsys.disabled():
        print(f"\n{case}: {compared:,} rows, {tokens:,} tokens equal", end=" ")


def test_labels_that_rows_have_and_tokens_never_trained() -> None:
    real = unsloth().train_on_responses_only
    tokenizer = tokenizer_of("dolma2", None)
    rows = tokenized(tokenizer)[::20]
    labels = [[-100 if n % 3 == 0 else token for n, token in enumerate(row)] for row in rows]
    options: dict[str, Any] = {"tokenizer": tokenizer, "return_function": True, "mask_out_tokens": ["the", " is", "."]}
    batch = {"input_ids": rows, "labels": labels}
    found = train_on_responses_only(None, mask="unsloth", **options)(batch)["labels"]
    assert found == real(None, **options)(batch)["labels"]
    assert 0 < np.mean([label != -100 for row in found for label in row]) < 0.5
