import datetime
import functools
import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType

import orjson
import pytest

from premask.mask.masker import Masker
from premask.read import Conversation, Rejected, convert, detect, parse
from premask.recipe import Recipe


def _helper(name: str) -> ModuleType:
    """A module beside this file; with importlib as import mode, tests cannot import their neighbours."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KINDS = _helper("tokenizer_kinds")
FAMILIES = _helper("families")
ORACLES = _helper("oracles")

SOURCES = {
    "oasst": "chat/oasst_en.messages.jsonl",
    "taskmaster": "chat/taskmaster4.sharegpt.jsonl",
    "gsm8k": "chat/gsm8k.prompt_completion.jsonl",
    "codegen": "chat/gpteacher_codegen.alpaca.json",
    "roleplay": "chat/gpteacher_roleplay.alpaca.json",
    "alpaca_zh": "chat/alpaca_zh.alpaca.json",
    "kto": "chat/kto_en.messages.json",
    "loss_weights": "chat/loss_weights.jsonl",
    "glaive_en": "tools/glaive_toolcall_en.sharegpt.json",
    "glaive_zh": "tools/glaive_toolcall_zh.sharegpt.json",
    "reasoning": "tools/reasoning_tool_use.jsonl",
    "airline": "tools/tau_airline.messages.jsonl",
}


@pytest.fixture(scope="session")
def families() -> ModuleType:
    """What the oracles know of every template."""
    return FAMILIES


@pytest.fixture(scope="session")
def oracles() -> ModuleType:
    """The three oracles."""
    return ORACLES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`template_name`: every template under test."""
    if "template_name" in metafunc.fixturenames:
        metafunc.parametrize("template_name", FAMILIES.NAMES)


@functools.cache
def read(path: Path) -> list[Conversation]:
    """The conversations of a source; rows that reading rejects are left out."""
    raw = path.read_bytes()
    lines = [orjson.dumps(row) for row in orjson.loads(raw)] if path.suffix == ".json" else raw.splitlines()
    rows = [row for line in lines if line.strip() and not isinstance(row := parse(line), Rejected)]
    format = detect(rows[:100], path.name)
    return [c for row in rows if isinstance(c := convert(format, row), Conversation)]


@pytest.fixture(scope="session")
def samples() -> list[Conversation]:
    """Our own samples."""
    paths = sorted((FAMILIES.ROOT / "data/samples").iterdir())
    return [c for path in paths for c in read(path)]


def shared(name: str, count: int | None = None) -> list[Conversation]:
    """The conversations of a shared source, or a seeded choice of them."""
    path = FAMILIES.SHARED / SOURCES[name]
    if not path.is_file():
        pytest.skip("needs ../shared/data")
    conversations = read(path)
    if count is None or count >= len(conversations):
        return conversations
    return random.Random(name).sample(conversations, count)


@pytest.fixture(scope="session")
def shared_rows():
    """`shared_rows(name, count)`: rows of a shared source."""
    return shared


@functools.cache
def _masker(name: str, choices: str) -> Masker:
    recipe = Recipe(sources=["x"], tokenizer="x", **json.loads(choices))
    return Masker(
        FAMILIES.source(name),
        FAMILIES.variables(name),
        datetime.date(2025, 1, 1),
        FAMILIES.encoder(name),
        FAMILIES.vocabulary(name),
        recipe,
    )


@pytest.fixture(scope="session")
def masker_of():
    """`masker_of(template_name, **choices)`: a masker with the tokenizer of the template's family."""
    return lambda name, **choices: _masker(name, json.dumps(choices, sort_keys=True))


@functools.cache
def oracle_template(name: str):
    """A template as the oracles see it."""
    family = FAMILIES.family(name)
    return ORACLES.Template(
        source=FAMILIES.source(name),
        variables=FAMILIES.variables(name),
        turn=family.turn,
        tokenizer=functools.partial(KINDS.build, family.kind),
        added=FAMILIES.added_tokens(name),
        parts=family.parts,
        text_arguments=family.text_arguments,
        nulls=family.nulls,
        lists=family.lists,
        given=family.given,
        final=family.eos if name.startswith("phi3") else "",
        borrowed=tuple(family.stops.split()) if name == "glm4moe" else (),
        prefixes=not name.startswith("diffusion_gemma"),  # no header behind a tool's response, though one is written
    )


@pytest.fixture(scope="session")
def template_of():
    """`template_of(template_name)`: the template as the oracles see it."""
    return oracle_template
