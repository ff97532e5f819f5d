"""data/templates.md says what the code does today."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def table():
    """`table.py`, which writes the file."""
    spec = importlib.util.spec_from_file_location("table", Path(__file__).with_name("table.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_template_has_its_line(table, families):
    lines = [line for line in table.TABLE.read_text().splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in lines[1:]] == families.NAMES


@pytest.mark.parametrize("name", ["gptoss", "glm4moe", "nemotron_3_nano", "phi3", "qwen3", "premask:alpaca"])
def test_some_lines_are_current(table, name):
    text = table.TABLE.read_text().splitlines()
    line, notes = table.described(name)
    assert line in text, "data/templates.md is not current: make templates"
    assert notes == [note for note in text if note.startswith(f"- **{name}**:")]


@pytest.mark.slow
def test_the_whole_file_is_current(table):
    assert table.TABLE.read_text() == table.table(), "data/templates.md is not current: make templates"
