"""Whatever a template does to a text is replayed exactly, or the row is rendered alone, or it is refused."""

import datetime
import random
import re
from collections import defaultdict
from pathlib import Path

import pytest

from premask.read import Conversation
from premask.render.tracing import TracingEnvironment

PREFIX = (
    "{% set a = messages[0].content %}{% set b = messages[1].content %}"
    "{% set c = messages[2].content %}{% set x = messages[1].x %}"
)
DATE = datetime.date(2024, 2, 29)
NASTY = [
    *("", " ", "a", "b", "B", "<", "a<b", "a b", "a,b,c", "a:b", " \n x \t", "\r\n\x0b\u2028", "0", "12", "-1", "１２"),
    *("items", "get", "role", "user", "uSER", "content", "x.y", "</think>", "<think>t</think>\n\nq", "ß", "É", "😀"),
    *("{'a'}", "%s", "{}", "{{ a }}", "None", "True", "'\"&>", "q" * 20),
]
"""Texts that templates, Python, Jinja or Markup might take for something else."""


def constructs():
    found, section = defaultdict(list), ""
    for line in Path(__file__).with_name("constructs.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            section = line[2:].partition(":")[0]
        elif line:
            found[section].append(line)
    return found


CONSTRUCTS = constructs()


def alike(seed, count=40):
    """Conversations of one shape."""
    rng = random.Random(seed)
    rows = ([rng.choice(NASTY) for _ in range(4)] for _ in range(count))
    return [
        Conversation(
            [
                {"role": "user", "content": a},
                {"role": "assistant", "content": b, "x": {"k": c, "n": [d, 1]}},
                {"role": "user", "content": c},
            ]
        )
        for a, b, c, d in rows
    ]


@pytest.mark.parametrize("construct", CONSTRUCTS["REPLAYED"])
def test_replayed(construct, oracle):
    rows, beside = alike(construct), oracle(PREFIX + construct)
    assert beside.check(rows) == {}
    assert beside.replayed >= beside.program.leaves > 0


@pytest.mark.parametrize("construct", CONSTRUCTS["ALONE"])
def test_rendered_alone(construct, oracle):
    beside = oracle(PREFIX + construct)
    assert beside.check(alike(construct)) == {}
    assert beside.program.leaves == 0


@pytest.mark.parametrize("construct", CONSTRUCTS["REFUSED"])
def test_refused(construct, oracle):
    rows, beside = alike(construct), oracle(PREFIX + construct)
    refused = beside.check(rows)
    assert beside.program.leaves == 0
    assert len(refused) == sum(beside.expected(row) is not None for row in rows) or len(refused) == len(rows)


@pytest.mark.parametrize("construct", CONSTRUCTS["PARTLY"])
def test_refused_where_a_text_names_a_method(construct, oracle):
    rows, beside = alike(construct, 200), oracle(PREFIX + construct)
    refused = beside.check(rows)
    assert 0 < len(refused) < len(rows)
    assert all("a method named by a text" in detail for detail in refused.values())


# Completeness: no filter, test or global of an environment without a construct above.


def test_every_filter_and_test_is_among_the_constructs():
    environment = TracingEnvironment(DATE)
    written = "\n".join(line for lines in CONSTRUCTS.values() for line in lines)
    piped = set(re.findall(r"(?:\||filter |map\(')\s*(\w+)", written))
    asked = set(re.findall(r"is (?:not )?(?:in )?(\w+)|(?:select|reject|attr)\((?:'\w+', ?)?'(\w+)'", written))
    missing = set(environment.filters) - piped
    assert missing == {"d", "count", "escape", "filesizeformat", "groupby", "min"} - piped
    names = {name for pair in asked for name in pair}
    aliases = {"==", "!=", "<", "<=", ">", ">=", "equalto", "greaterthan", "lessthan", "test", "gt", "le", "false"}
    assert set(environment.tests) - names - aliases <= {"even"}


@pytest.mark.parametrize("name", sorted(TracingEnvironment(DATE).filters))
def test_no_filter_reads_past_a_text(name, oracle):
    """Whatever its arguments: the same text as Jinja's own, or a refusal."""
    for arguments in ("", "(b)", "('a')", "(2)", "('content', b)"):
        beside = oracle(PREFIX + "{{ a|" + name + arguments + " }}")
        beside.check(alike(name, 8))
        for value in ("[a, b]", "messages", "a.split(',')", "x", "{'p': a}", "{'p': a}.values()", "[namespace(v=a)]"):
            beside = oracle(PREFIX + "{{ " + value + "|" + name + arguments + "|list|length }}")
            beside.check(alike(name + value, 4))
