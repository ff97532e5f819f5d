"""A traced string against `str`, operation by operation: what it answers is the same, and so is what its expression
makes of any other text that answers the recorded questions alike."""

import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from premask.render.expression import ASKING_METHODS, DERIVING_METHODS, compile_expression
from premask.render.recording import Recorder, TInt, Untraceable, expression, plain
from premask.render.values import MAX_DEPTH, TList, TMarkup, TStr, concatenate, contained

TEXTS = [
    "",
    " ",
    "a",
    "ab",
    "a,b",
    "a b c",
    " \n x\t",
    "ABC",
    "é",
    "ß",
    "１2",
    "x=1",
    "</think>",
    "q" * 9,
    "a\r\nb\x0bc",
]
texts = st.one_of(st.sampled_from(TEXTS), st.text("ab ,\né", max_size=6))

ARGUMENTS = {
    "strip": [(), ("a",), (None,)],
    "lstrip": [(), ("a",)],
    "rstrip": [(), ("c ",)],
    "split": [(), (",",), (",", 1), (None, 1), ("a", -1)],
    "rsplit": [(), (",",), (" ", 1)],
    "splitlines": [(), (True,)],
    "partition": [(",",), ("</think>",)],
    "rpartition": [(",",)],
    "replace": [("a", "b"), ("a", "", 1), ("", "-")],
    "removeprefix": [("a",)],
    "removesuffix": [("b",)],
    "expandtabs": [(), (2,)],
    "zfill": [(5,)],
    "center": [(6,), (6, "*")],
    "ljust": [(6,), (6, "*")],
    "rjust": [(6,), (6, "*")],
    "join": [(["x", "y"],), ([],), ("xyz",)],
    "startswith": [("a",), (("a", "x"),), ("b", 1), ("", 3)],
    "endswith": [("b",), (("b", "c"), 0, 3)],
    "find": [("b",), ("b", 2), ("",)],
    "rfind": [("b",), ("zz",)],
    "index": [("",), ("",)],
    "rindex": [("",)],
    "count": [("a",), ("",)],
}
"""What methods are called with; others take nothing."""

REFUSED_METHODS = {"encode", "format", "format_map", "maketrans", "translate"}

UNARY = {
    "__hash__": hash,
    "__str__": str,
    "__repr__": repr,
    "__format__": format,
    "__mul__": lambda text: text * 2,
    "__rmul__": lambda text: 2 * text,
    "__mod__": lambda text: text % (),
    "__rmod__": lambda text: "%s" % text,  # noqa: UP031
    "__add__": lambda text: text + "x",
}
"""Operations by operators and functions of Python itself: each refuses, or is a TypeError, which ends a trace.

Templates add through their environment, which does not ask the operands.
"""

ANSWERED = {
    "__contains__",
    "__eq__",
    "__ne__",
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
    "__len__",
    "__iter__",
    "__getitem__",
}
OF_EVERY_OBJECT = {name for name in dir(object) if name not in {*UNARY, *ANSWERED}} | {"__getnewargs__"}


def traced(text, recording=True, index=0):
    recorder = Recorder(recording)
    return recorder, TStr(recorder, text, ("field", index), frozenset((index,)))


def answers_alike(recorder, fields):
    """Whether other fields answer all questions of a trace as it was answered; a question is asked after the others."""
    return all(
        compile_expression(question)(fields) == answer and type(answer) in (bool, int)
        for question, answer in recorder.guards.items()
    )


def evaluated(value, fields):
    """A traced result on other fields."""
    if isinstance(value, tuple):
        return tuple(evaluated(v, fields) for v in value)
    return compile_expression(expression(value))(fields)


def check(operation, oracle, text, other):
    """`operation` of a traced `text` is `oracle` of it; replayed on `other`, if it answers alike, `oracle` of that."""
    recorder, subject = traced(text)
    try:
        expected = oracle(text)
    except (ValueError, LookupError, TypeError) as error:
        with pytest.raises((type(error), Untraceable)):
            operation(subject)
        return
    result = operation(subject)
    assert plain(result) == expected
    assert answers_alike(recorder, [text])
    if answers_alike(recorder, [other]):
        assert evaluated(result, [other]) == oracle(other)


def test_every_attribute_of_str_is_accounted_for():
    public = {name for name in dir(str) if not name.startswith("_")}
    assert public == DERIVING_METHODS | ASKING_METHODS | REFUSED_METHODS
    assert set(dir(str)) - public == set(UNARY) | ANSWERED | OF_EVERY_OBJECT


def test_a_traced_string_is_no_string():
    _, text = traced("a")
    assert not isinstance(text, str)
    assert not hasattr(text, "__html__")
    assert not hasattr(text, "__int__")


@pytest.mark.parametrize("name", sorted(DERIVING_METHODS | ASKING_METHODS))
def test_methods(name):
    for arguments in ARGUMENTS.get(name, [()]):
        for text in TEXTS:
            for other in TEXTS:
                check(
                    lambda s, arguments=arguments: s.method(name)(*arguments),
                    lambda s, arguments=arguments: getattr(s, name)(*arguments),
                    text,
                    other,
                )


@pytest.mark.parametrize("name", sorted(REFUSED_METHODS))
def test_refused_methods(name):
    assert traced("a")[1].method(name) is None


@pytest.mark.parametrize("name", sorted(UNARY))
def test_python_itself_cannot_read_a_traced_string(name):
    with pytest.raises((Untraceable, TypeError)):
        UNARY[name](traced("a")[1])


@pytest.mark.parametrize(
    "use",
    [
        lambda t: "".join([t]),
        lambda t: f"{t}",
        lambda t: "{}".format(t),  # noqa: UP032
        lambda t: "%s" % t,  # noqa: UP031
        lambda t: {t: 1},
        lambda t: {t},
        lambda t: {"a": 1}.get(t),
        lambda t: "abc".find(t),
        lambda t: "abc".replace("a", t),
        lambda t: "abc" + t,
        lambda t: t in "abc",
        lambda t: Markup("a") + t,
        lambda t: Markup("%s") % t,
        lambda t: Markup.escape(t),
        lambda t: int(t),
        lambda t: float(t),
        lambda t: str(t),
        lambda t: [1, 2][t],
        lambda t: list(t),
        lambda t: sorted("ab", key=lambda _: hash(t)),
        lambda t: range(t),
        lambda t: bytes(t),
        lambda t: print(t),
        lambda t: isinstance(t, str) or t.upper(),
    ],
)
def test_c_code_cannot_read_a_traced_string(use):
    with pytest.raises((Untraceable, TypeError, AttributeError)):
        use(traced("a")[1])


COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(COMPARISONS), texts, texts, texts)
def test_comparisons(compare, text, constant, other):
    check(lambda s: compare(s, constant), lambda s: compare(s, constant), text, other)
    check(lambda s: compare(constant, s), lambda s: compare(constant, s), text, other)
    check(lambda s: contained(constant, s), lambda s: constant in s, text, other)
    check(lambda s: contained(s, constant), lambda s: s in constant, text, other)
    check(lambda s: contained(s, [constant, 1]), lambda s: s in [constant, 1], text, other)
    check(bool, bool, text, other)
    check(len, len, text, other)
    check(lambda s: compare(s.length(), len(constant)), lambda s: compare(len(s), len(constant)), text, other)


def test_comparisons_with_other_types_ask_nothing():
    recorder, text = traced("a")
    assert text != 1 and text not in (1, None, ["a"])
    assert not contained(text, [None, 2.0, ["a"], {}])
    with pytest.raises(TypeError):
        assert text < 1
    assert recorder.guards == {}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(texts, texts, st.integers(-4, 4), st.integers(-4, 4), st.sampled_from([None, 1, 2, -1]))
def test_items_and_slices(text, other, a, b, step):
    check(lambda s: s[a], lambda s: s[a], text, other)
    check(lambda s: s[a:b:step], lambda s: s[a:b:step], text, other)
    check(lambda s: s[a:], lambda s: s[a:], text, other)
    check(lambda s: s.method("split")(",")[a], lambda s: s.split(",")[a], text, other)
    check(lambda s: s.method("split")(",")[a:b][0], lambda s: s.split(",")[a:b][0], text, other)
    check(lambda s: tuple(s.method("split")(",")[a:b]), lambda s: tuple(s.split(",")[a:b]), text, other)
    check(lambda s: next(reversed(s.method("split")(","))), lambda s: s.split(",")[-1], text, other)


@pytest.mark.parametrize("key", [1.0, None, "1", "a"])
def test_no_index_but_a_number(key):
    _, text = traced("abc")
    for value in (text, text.method("split")(",")):
        with pytest.raises(TypeError):
            value[key]


pieces = st.lists(st.one_of(texts, st.integers(0, 2)), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(pieces, st.lists(texts, min_size=3, max_size=3), st.lists(texts, min_size=3, max_size=3), st.data())
def test_concatenations(parts, fields, others, data):
    """Integers stand for fields. Stripping keeps pieces apart, and asks what it needs to."""
    recorder = Recorder(True)
    sources = [TStr(recorder, text, ("field", i), frozenset((i,))) for i, text in enumerate(fields)]
    whole = concatenate(sources[p] if isinstance(p, int) else p for p in parts)
    name = data.draw(st.sampled_from(["strip", "lstrip", "rstrip"]))
    chars = data.draw(st.one_of(st.none(), st.just("a \n"), st.integers(0, 2)))

    def expected(values):
        text = "".join(values[p] if isinstance(p, int) else p for p in parts)
        return getattr(text, name)(values[chars] if isinstance(chars, int) else chars)

    if isinstance(whole, str):
        assert not any(isinstance(p, int) for p in parts)
        return
    assert all(p for p in whole.pieces if isinstance(p, str))
    result = whole.method(name)(sources[chars] if isinstance(chars, int) else chars)
    assert plain(result) == expected(fields)
    if isinstance(result, TStr):
        assert "".join(map(plain, result.pieces)) == result.value
    if answers_alike(recorder, others):
        assert evaluated(result, others) == expected(others)


def test_sources_are_the_fields_whose_text_may_be_inside():
    recorder = Recorder(True)
    a, b, c = (TStr(recorder, t, ("field", i), frozenset((i,))) for i, t in enumerate("abc"))
    assert concatenate((a, "x", b)).sources == {0, 1}
    assert a.method("replace")("a", b).sources == {0, 1}
    assert a.method("replace")(b, "x").sources == {0}
    assert a.method("split")(b)[0].sources == {0}
    assert a.method("join")([b, c]).sources == {0, 1, 2}
    assert a.method("center")(3).sources == {0}


def test_what_fails_for_some_texts_only_asks_whether_it_does():
    recorder = Recorder(True)
    a, empty = (TStr(recorder, t, ("field", i), frozenset((i,))) for i, t in enumerate(("ab", "")))
    for name in ("split", "rsplit", "partition", "rpartition"):
        with pytest.raises(ValueError, match="empty separator"):
            a.method(name)(empty)
    separator = TStr(recorder, "b", ("field", 2), frozenset((2,)))
    a.method("split")(separator)
    assert recorder.guards == {("bool", ("field", 2)): True}
    with pytest.raises(ValueError, match="not found"):
        a.method("index")("z")
    assert a.method("index")("b") == 1
    with pytest.raises(Untraceable):
        a.method("center")(9, separator)


def test_alone_any_question_may_be_asked_and_numbers_are_plain():
    recorder, text = traced("a,b", recording=False)
    assert [part.value for part in text] == ["a", ",", "b"]
    assert type(text.length()) is int and type(text.method("split")(",").length()) is int
    assert text.method("find")("b") == 2 and text == "a,b"
    assert recorder.guards == {}


def test_characters_and_hashes_are_refused():
    recorder, text = traced("abc")
    for use in (iter, list, hash, lambda t: {t: 1}):
        with pytest.raises(Untraceable):
            use(text)
    assert recorder.guards == {}


def test_a_text_marked_safe_is_only_written():
    recorder, text = traced("<a>")
    safe = TMarkup(recorder, text.value, text.expr, text.sources, text.pieces)
    assert all(safe.method(name) is None for name in DERIVING_METHODS | ASKING_METHODS)
    with pytest.raises(Untraceable):
        safe[0:1]
    assert concatenate((safe, "<")).value == "<a><"


def test_literals_marked_safe_do_not_escape_their_neighbours():
    _, text = traced("<a>")
    joined = concatenate((Markup("<b>"), "<", text))
    assert joined.value == "<b><<a>"
    assert joined.pieces[0] == "<b><" and type(joined.pieces[0]) is str


def test_numbers_are_asked_when_they_are_looked_at():
    recorder, text = traced("abc")
    length = text.length()
    assert isinstance(length, TInt) and recorder.guards == {}
    assert length > 2 and recorder.guards == {("cmp", ">", ("len", ("field", 0)), ("const", 2)): True}
    assert "abcd"[length] == "d" and recorder.guards[("len", ("field", 0))] == 3
    assert list(range(length)) == [0, 1, 2]
    for use in (str, repr, format, hash):
        with pytest.raises(Untraceable):
            use(length)


def test_parts_of_a_split():
    _, text = traced("a,b")
    parts = text.method("split")(",")
    assert isinstance(parts, TList) and "b" in parts and len(parts) == 2
    for use in (
        lambda: parts == ["a", "b"],
        lambda: parts != ["a"],
        lambda: parts < ["a"],
        lambda: str(parts),
        lambda: hash(parts),
    ):
        with pytest.raises(Untraceable):
            use()


def test_long_chains_are_refused_and_shorter_ones_compile():
    _, text = traced("ab")
    for n in range(MAX_DEPTH):
        text = concatenate((text, "b")).method("removesuffix")("b") if n % 2 else text.method("replace")("a", "aa", 1)
        if text.depth > MAX_DEPTH - 2:
            break
    assert evaluated(text, ["ab"]) == text.value
    with pytest.raises(Untraceable, match="chain"):
        text.method("upper")().method("upper")().method("upper")()
    alone = traced("a b", recording=False)[1]
    for _ in range(3 * MAX_DEPTH):
        alone = alone.method("upper")()
    assert alone.value == "A B"
