"""Random templates from the constructs of real ones, on random conversations of equal shape: Jinja's text, always."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from premask.read import Conversation

LITERALS = ["''", "'a'", "' '", "'<think>'", "'</think>'", "','", "'\\n'", "'a b'", "'<'"]
VARIABLES = ["a", "b", "message.content", "ns.text", "messages[0].content", "messages[-1]['content']"]
METHODS = [
    *(".strip()", ".lstrip('a\\n')", ".rstrip()", ".upper()", ".split('</think>')[-1]", ".split(',')[0]", ".title()"),
    *(".replace('a', '<')", ".removeprefix('a')", "[1:]", "[-1]", "[:2]", ".partition(',')[2]", ".split()|join('+')"),
    *("|trim", "|upper", "|lower", "|string", "|tojson", "|default('d')", "|replace('b', 'cc')", "|length|string"),
    *("|trim|capitalize", ".split('a')|length|string", ".find('a')|string", ".count(',')|string", ".split(',')|last"),
]
CALLS = ["wrap({})", "wrap({})|trim", "[{}, 'x']|join(',')", "({} if {} else 'z')", "({} or 'o')", "'q'.join([{}, {}])"]
ASKED = [
    *(
        "{} == {}",
        "{} in {}",
        "{} not in ['a', '<', '']",
        "{} < {}",
        "({})|length > 2",
        "({}).startswith('a')",
        "{} is string",
    ),
    *(
        "({}).endswith({})",
        "not {}",
        "({}).isspace()",
        "{}",
        "({}).split(',')|length == 2",
        "({})|length == ({})|length",
    ),
    *(
        "{} is none",
        "loop.first",
        "loop.last",
        "message.role == 'user'",
        "loop.index0 % 2",
        "ns.flag",
        "x.k == {}",
        "'k' in x",
    ),
]


@st.composite
def strings(draw, depth=2):
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from([*VARIABLES, *LITERALS, "x.k", "x.n[0]", "(x|tojson)"]))
    kind = draw(st.integers(0, 3))
    first, second = draw(strings(depth - 1)), draw(strings(depth - 1))
    if kind == 0:
        return f"({first} ~ {second})"
    if kind == 1:
        return f"({first} + {second})"
    if kind == 2:
        call = draw(st.sampled_from(CALLS))
        return "(" + call.format(first, second) + ")"
    return f"(({first}){draw(st.sampled_from(METHODS))})"


@st.composite
def questions(draw):
    asked = draw(st.sampled_from(ASKED)).format(draw(strings(1)), draw(strings(1)))
    if draw(st.integers(0, 3)) == 0:
        return f"({asked}) {draw(st.sampled_from(['and', 'or']))} {draw(strings(1))}"
    return asked


@st.composite
def statements(draw, depth=2):
    kind = draw(st.integers(0, 9 if depth else 3))
    text = draw(strings())
    if kind < 3:
        return f"{{{{ {text} }}}}" if kind else draw(st.sampled_from(["<|im_start|>", "\n", "x"]))
    if kind == 3:
        return f"{{% set ns.text = {text} %}}"
    body, more = draw(bodies(depth - 1)), draw(bodies(depth - 1))
    return {
        4: f"{{% if {draw(questions())} %}}{body}{{% else %}}{more}{{% endif %}}",
        5: f"{{% if {draw(questions())} %}}{body}{{% set ns.flag = true %}}{{% endif %}}",
        6: f"{{% for part in ({text}).split(',') %}}[{{{{ part }}}}{{{{ loop.index }}}}]{{% endfor %}}",
        7: f"{{% set q %}}{body}{{% endset %}}{{{{ q.strip() }}}}",
        8: f"{{% filter trim %}}{body}{{% endfilter %}}",
        9: f"{{% generation %}}{body}{{% endgeneration %}}",
    }[kind]


def bodies(depth):
    return st.lists(statements(depth), min_size=1, max_size=3).map("".join)


HEAD = (
    "{% set ns = namespace(text='', flag=false) %}{% macro wrap(text) %} {{ text }}|{% endmacro %}"
    "{% set a = messages[0].content %}{% set b = messages[1].content %}{% set x = messages[1].x %}"
    "{% for message in messages %}"
)
WORDS = [
    "",
    "</think>",
    "<think>a</think>b",
    "a,b",
    " a ",
    "é<",
    "ß",
    "😀,a",
    "a",
    "b",
    " ",
    ",",
    "<",
    "\n",
    "ab,\n",
    "B",
]


def alike(rng, turns, count=12):
    """Conversations of one shape."""
    return [
        Conversation(
            [
                {"role": ("user", "assistant")[i % 2], "content": _words(rng)} | ({"x": _nested(rng)} if i == 1 else {})
                for i in range(turns + 1)
            ]
        )
        for _ in range(count)
    ]


def _words(rng):
    return "".join(rng.choices(WORDS, k=rng.choice((1, 1, 2))))


def _nested(rng):
    return {"k": _words(rng), "n": [_words(rng), 1]}


def renders_as_jinja_does(oracle, body, turns, rng):
    beside = oracle(HEAD + body + "{% endfor %}")
    beside.check(alike(rng, turns))


RANDOM = given(bodies(2), st.integers(1, 3), st.randoms(use_true_random=False))
EXACT = settings(deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


@settings(EXACT, max_examples=50, derandomize=True)
@RANDOM
def test_random_templates(oracle, body, turns, rng):
    renders_as_jinja_does(oracle, body, turns, rng)


@pytest.mark.slow
@settings(EXACT, max_examples=2000)
@RANDOM
def test_many_random_templates(oracle, body, turns, rng):
    renders_as_jinja_does(oracle, body, turns, rng)
