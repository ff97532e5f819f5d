import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from premask.render.expression import LARGEST, TooLarge, _Writer, compile_expression, compile_fill

HOSTILE = [
    '"); import os; ("',
    "'''",
    "\\",
    "\n def run(f): return 1\n",
    "{f}",
    "c0",
    "f[0]",
    "\ud800",
    "__import__('os')",
]


def evaluate(e, fields):
    """The oracle: one expression, node by node."""
    match e:
        case ("field", i):
            return fields[i]
        case ("const", value):
            return value
        case ("cat", *parts):
            return "".join(evaluate(p, fields) for p in parts)
        case ("call", name, base, *arguments):
            return getattr(evaluate(base, fields), name)(*(evaluate(a, fields) for a in arguments))
        case ("item", base, i):
            return evaluate(base, fields)[i]
        case ("slice", base, *bounds):
            return evaluate(base, fields)[slice(*bounds)]
        case ("in", a, b):
            return evaluate(a, fields) in evaluate(b, fields)
        case ("cmp", "<", a, b):
            return evaluate(a, fields) < evaluate(b, fields)
        case ("len" | "bool" | "repr" as name, base):
            return {"len": len, "bool": bool, "repr": repr}[name](evaluate(base, fields))
    raise AssertionError(e)


leaves = st.one_of(
    st.tuples(st.just("field"), st.integers(0, 2)),
    st.tuples(st.just("const"), st.sampled_from([*HOSTILE, "a", ""])),
)
strings = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: ("cat", *parts)),
        st.tuples(st.just("call"), st.sampled_from(["strip", "upper", "title"]), inner),
        st.tuples(st.just("call"), st.just("replace"), inner, inner, inner),
        st.tuples(st.just("slice"), inner, st.sampled_from([None, 1, -2]), st.just(None), st.sampled_from([None, -1])),
        st.tuples(
            st.just("item"),
            st.tuples(st.just("call"), st.just("partition"), inner, st.just(("const", "a"))),
            st.just(2),
        ),
        st.tuples(st.just("repr"), inner),
    ),
    max_leaves=8,
)
expressions = st.one_of(
    strings,
    st.tuples(st.sampled_from(["len", "bool"]), strings),
    st.tuples(st.just("in"), strings, strings),
    st.tuples(st.just("cmp"), st.just("<"), strings, strings),
)
fields = st.lists(st.text("aA b\n", max_size=5), min_size=3, max_size=3)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(expressions, fields)
def test_compiled_is_what_it_says(expression, values):
    assert compile_expression(expression)(values) == evaluate(expression, values)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(strings, max_size=4), fields)
def test_a_fill_shares_what_its_pieces_have_in_common(several, values):
    expected = [evaluate(e, values) for e in several]
    assume(not re.search("[\ud800-\udfff]", "".join(expected)))
    assert compile_fill(several)(values) == ("".join(expected), tuple(len(e.encode()) for e in expected))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(expressions, max_size=3), st.lists(strings, max_size=2), fields, fields)
def test_a_fill_asks_before_it_fills(questions, several, values, others):
    guards = {question: evaluate(question, values) for question in questions}
    expected = "".join(evaluate(e, others) for e in several)
    assume(not re.search("[\ud800-\udfff]", expected))
    filled = compile_fill(several, guards)(others)
    same = all(evaluate(question, others) == answer for question, answer in guards.items())
    assert (filled and filled[0]) == (expected if same else None)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(expressions, max_size=4))
def test_source_holds_no_constant(several):
    writer = _Writer(several)
    source = "\n".join([*(writer.write(e) for e in several), *writer.lines])
    names = {"title", "strip", "upper", "replace", "partition", "join", "len", "bool", "repr", "in", "f", "R"}
    words = set(re.findall(r"[A-Za-z_]\w*", source))
    assert {w for w in words if not re.fullmatch(r"[ct]\d+", w)} <= names
    assert set(re.sub(r"\w|\s", "", source)) <= set("[](),.'-:<=")


def test_nested_fields():
    value = {"a": [{"b'\"": "x"}], "n": 1}
    path = ("path", ("field", 0), "a", 0, "b'\"")
    json = (
        "json",
        ("field", 0),
        (("ensure_ascii", False), ("indent", None), ("separators", (",", ":")), ("sort_keys", True)),
    )
    shape = ("shape", ("field", 0))
    assert compile_expression(path)([value]) == "x"
    assert compile_expression(json)([value]) == '{"a":[{"b\'\\"":"x"}],"n":1}'
    structure = compile_expression(shape)
    assert structure([value]) == structure([{"a": [{"b'\"": "other"}], "n": 1}])
    assert structure([value]) != structure([{"a": [{"b'\"": "x"}], "n": True}])


def test_what_is_used_twice_is_computed_once():
    class Counting(str):
        calls = 0

        def split(self, *args):
            Counting.calls += 1
            return str.split(self, *args)

    split = ("call", "split", ("field", 0), ("const", ","))
    assert compile_fill([("item", split, 0), "-", ("item", split, 1)])([Counting("a,b")]) == ("a-b", (1, 1))
    assert Counting.calls == 1
    assert compile_expression(("cat", ("item", split, 0), ("item", split, 1)))([Counting("a,b")]) == "ab"
    assert Counting.calls == 2


@pytest.mark.parametrize(
    "unknown",
    [
        ("call", "format", ("field", 0)),
        ("call", "__class__", ("field", 0)),
        ("item", ("field", 0), "0] or f[1"),
        ("slice", ("field", 0), "1", None, None),
        ("cmp", "or", ("field", 0), ("field", 1)),
        ("eval", ("field", 0)),
    ],
)
def test_no_other_operation_is_written(unknown):
    with pytest.raises(AssertionError, match="bug in premask"):
        compile_expression(unknown)


def test_nothing_to_compute():
    assert compile_fill([])(["a"]) == ("", ())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.text(max_size=3), st.integers(0, 2)), max_size=8), st.lists(st.text(), min_size=3, max_size=3)
)
def test_a_fill_is_its_pieces_joined(pieces, fields):
    derived = [p if isinstance(p, str) else ("call", "strip", ("field", p)) for p in pieces]
    expected = [p if isinstance(p, str) else fields[p].strip() for p in pieces]
    text, sizes = compile_fill(derived)(fields)
    assert text == "".join(expected)
    assert sizes == tuple(len(e.encode()) for p, e in zip(pieces, expected, strict=True) if not isinstance(p, str))


def test_a_fill_stops_before_it_joins_too_much():
    half = "x" * (LARGEST // 2)
    fill = compile_fill([("field", 0), "y", ("field", 0)])
    assert len(fill([half[1:]])[0]) == LARGEST - 1
    with pytest.raises(TooLarge):
        fill([half])
