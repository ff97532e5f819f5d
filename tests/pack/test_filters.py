"""Filters by expression and by script, against what a loop over characters and rows says."""

import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premask.errors import UsageError
from premask.pack.expression import condition
from premask.pack.scripts import check_script, script_shares, text_of, written_otherwise
from premask.read import Conversation

SOURCES = ["chat/a.jsonl", "b"]
COLUMNS = {
    "length": np.array([10, 20, 30, 40], np.int64),
    "supervised": np.array([5, 1, 9, 40], np.int32),
    "turns": np.array([1, 2, 3, 4], np.int32),
    "source": np.array([0, 1, 0, 1], np.uint16),
}


@pytest.mark.parametrize(
    ("expression", "passing"),
    [
        ("supervised > 0.1 * length", [True, False, True, True]),
        ("source = 'b' OR turns = 3", [False, True, True, True]),
        ("source IN ('chat/a.jsonl')", [True, False, True, False]),
        ("source LIKE 'chat/%'", [True, False, True, False]),
        ("length <= avg(length)", [True, True, False, False]),
        ("turns BETWEEN 2 AND 3", [False, True, True, False]),
        ("true", [True] * 4),
        ("nullif(turns, 1) > 0", [False, True, True, True]),
    ],
)
def test_an_expression_is_a_condition_over_the_rows(expression, passing):
    assert condition(expression, SOURCES)(COLUMNS).tolist() == passing


@pytest.mark.parametrize(
    ("expression", "wording"),
    [
        ("length + 1", "expected a condition, found 'length \\+ 1', which is Int32; compare it with something"),
        ("lenght > 1", "over length, supervised, turns, source in SQL, found 'lenght > 1': unable to find column"),
        ("length >", "unable to parse"),
        ("read_csv('x')", "unsupported function"),
    ],
)
def test_an_expression_that_is_none_is_refused_before_any_row(expression, wording):
    with pytest.raises(UsageError, match=wording):
        condition(expression, SOURCES)


def test_polars_is_not_imported_without_an_expression():
    code = "import premask.pack.expression, premask.pack.selection, sys; sys.exit('polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def script_of(char):
    """What Python's own names tell of the scripts used here."""
    name = unicodedata.name(char, "")
    for script, beginning in (("Latin", "LATIN"), ("Han", "CJK UNIFIED"), ("Cyrillic", "CYRILLIC")):
        if name.startswith(beginning):
            return script
    return None


@settings(deadline=None)
@given(st.lists(st.text("abÉç我们你дЖ 1.,!\n-", max_size=30), max_size=5))
def test_shares_are_those_of_a_loop_over_the_characters(texts):
    for script in ("Latin", "Han", "Cyrillic"):
        counted = [[found for char in text if (found := script_of(char))] for text in texts]
        expected = [found.count(script) / max(1, len(found)) for found in counted]
        assert script_shares(texts, script).tolist() == pytest.approx(expected)


def test_every_script_has_its_bounds():
    texts = ["hello", "hello 你好", "你好", "12 + 3", ""]
    few_latin = "filters: expected a share of Latin from 0.5 to 1, found 0.000"
    assert written_otherwise(texts, {"Latin": [0.5, 1.0]}) == ["", "", few_latin, few_latin, few_latin]
    found = written_otherwise(texts[:3], {"Latin": [0.5, 1.0], "Han": [0.0, 0.1]})
    assert found == ["", "filters: expected a share of Han from 0 to 0.1, found 0.286", few_latin]
    assert written_otherwise(texts, {}) == [""] * 5


def test_what_is_said_and_thought_counts():
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "reasoning_content": "c", "tool_calls": [{"function": {"name": "d"}}]},
    ]
    assert text_of(Conversation(messages)) == "a\nb\nc"


@pytest.mark.parametrize("script", ["Klingon", "latin", "L", "Lu", "Latin}|.", "", "Greek}"])
def test_a_script_that_unicode_does_not_have(script):
    with pytest.raises(UsageError, match=r"filters\.scripts: expected a script of Unicode, such as Latin, Han or"):
        check_script(script)


@pytest.mark.parametrize("script", ["Latin", "Han", "Yi", "Canadian_Aboriginal", "Hiragana"])
def test_a_script_that_unicode_has(script):
    check_script(script)
