"""The filters and tests of a traced template: a white list.

C code and most of Jinja's own filters read a `str` past its methods. So a filter is either written here, over traced
values, or one of those that see values through look-ups and iteration only, or it refuses whatever is not known to be
plain.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2 import pass_eval_context
from jinja2.filters import do_dictsort, do_float, do_int, do_reverse, make_attrgetter
from jinja2.nodes import EvalContext
from jinja2.runtime import Undefined
from jinja2.tests import test_iterable, test_sequence
from markupsafe import Markup

from premask.render.environment import tojson as plain_tojson
from premask.render.expression import to_json
from premask.render.nested import TMap, TSeq, as_text, is_plain
from premask.render.recording import TInt, TNumber, Traced, Untraceable, plain
from premask.render.values import TList, TMarkup, TStr, concatenate, constant, contained

Function = Callable[..., Any]

_BY_ITERATION = frozenset(("list", "first", "last", "items", "batch", "slice"))
"""Filters written in Python over iteration: they see traced values through the values' own operations only."""

_BY_LOOK_UP = frozenset(("map", "select", "reject", "selectattr", "rejectattr"))
"""Filters that call others, or look attributes up, item by item."""

_BY_TYPE = frozenset(("defined", "undefined", "none", "mapping", "callable", "boolean", "true", "false"))
"""Tests that ask for the type alone, or for identity with a constant."""

_BY_ORDER = frozenset("eq == equalto ne != lt < lessthan le <= gt > greaterthan ge >=".split())  # noqa: SIM905
"""Tests that compare, which traced values answer themselves."""


def traced_filters(filters: Mapping[str, Function]) -> dict[str, Function]:
    """An environment's filters, for traced values."""
    return {name: _filter(name, function) for name, function in filters.items()}


def traced_tests(tests: Mapping[str, Function]) -> dict[str, Function]:
    """An environment's tests, for traced values."""
    return {name: _test(name, function) for name, function in tests.items()}


def _filter(name: str, function: Function) -> Function:
    if name in _FILTERS:
        return _FILTERS[name]
    if name in _BY_ITERATION:
        return function
    if name in _BY_LOOK_UP:
        return _by_plain_names(name, function)
    return _refusing(f"the filter {name}", function)


def _test(name: str, function: Function) -> Function:
    if name in _TESTS:
        return _TESTS[name]
    return function if name in _BY_TYPE | _BY_ORDER else _refusing(f"the test {name}", function)


def _like(function: Function) -> Callable[[Function], Function]:
    """Decorates a stand-in that takes what Jinja passes to `function`: its context, say."""

    def decorate(stand_in: Function) -> Function:
        if hasattr(function, "jinja_pass_arg"):
            stand_in.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
        return stand_in

    return decorate


def _refusing(what: str, function: Function) -> Function:
    passed = int(hasattr(function, "jinja_pass_arg"))

    @_like(function)
    def refusing(*args: Any, **named: Any) -> Any:
        args = tuple(list(a) if isinstance(a, Iterator) else a for a in args)
        if not is_plain(args[passed:]) or not is_plain(named):
            raise Untraceable(what)
        return function(*args, **named)

    return refusing


def _by_plain_names(name: str, function: Function) -> Function:
    """What is looked up, or called, must have a name of the template's: a name may be cut at its dots."""

    @_like(function)
    def checked(context: Any, value: Any, /, *args: Any, **named: Any) -> Any:
        if any(isinstance(a, Traced) for a in (*args[:1], named.get("attribute"))):
            raise Untraceable(f"the filter {name} with a text as its argument")
        return function(context, value, *args, **named)

    return checked


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> Any:
    if is_plain(x):
        return plain_tojson(x, ensure_ascii, indent, separators, sort_keys)
    options: tuple[tuple[str, Any], ...] = (
        ("ensure_ascii", ensure_ascii),
        ("indent", indent),
        ("separators", None if separators is None else tuple(separators)),
        ("sort_keys", sort_keys),
    )
    if isinstance(x, TMap | TSeq):
        return _whole_json(x, options)
    found: list[TStr] = []
    stand_in = f"premask:{id(found):x}:"

    def note(value: Any) -> Any:
        if isinstance(value, TInt) and not isinstance(value, TNumber):
            return value.fixed()
        if isinstance(value, TList):
            return list(value)
        if isinstance(value, TMap | TSeq) and indent is not None:
            return value.opened()  # how deep it is indented depends on where it stands
        if not isinstance(value, TStr | TMap | TSeq | TNumber):
            raise TypeError(f"{type(value).__name__} is not JSON")
        found.append(_whole_json(value, options))
        return f"{stand_in}{len(found) - 1}:"

    literals = json.dumps(x, default=note, **dict(options))
    pieces: list[Any] = []
    for i, string in enumerate(found):
        before, _, literals = literals.partition(f'"{stand_in}{i}:"')
        pieces += [before, string]
    return concatenate([*pieces, literals])


def _whole_json(value: Traced, options: tuple[tuple[str, Any], ...]) -> TStr:
    expr = ("json", value.expr, options)
    return TStr(value.recorder, to_json(value.value, options), expr, value.sources)


@pass_eval_context
def _joined(context: EvalContext, value: Any, d: Any = "", attribute: Any = None) -> Any:
    if isinstance(attribute, Traced):
        raise Untraceable("the filter join by a text")
    look_up = make_attrgetter(context.environment, attribute) if attribute is not None else lambda item: item
    pieces: list[Any] = []
    for item in value:
        text = as_text(look_up(item))
        pieces += [as_text(d), text] if pieces else [text]
    return concatenate(pieces)


def _reversed(value: Any) -> Any:
    if isinstance(value, Traced):
        raise Untraceable("the filter reverse")
    return do_reverse(value)


def _dictsort(value: Any, case_sensitive: bool = False, by: Any = "key", reverse: bool = False) -> Any:
    if by != "key" and not is_plain(value):
        raise Untraceable("the filter dictsort by value")
    return do_dictsort(value, case_sensitive, by, reverse)


def _random(*_: Any) -> Any:
    raise Untraceable("chance")


def _string(value: Any) -> Any:
    return value if isinstance(value, str) else as_text(value)


def _length(value: Any) -> Any:
    return value.length() if isinstance(value, TStr | TList) else len(value)


def _default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    return default_value if isinstance(value, Undefined) or (boolean and not value) else value


def _safe(value: Any) -> Any:
    text = as_text(value)
    if isinstance(text, str):
        return Markup(value)  # noqa: S704 - as Jinja's own filter; nothing here is HTML
    return TMarkup(text.recorder, text.value, text.expr, text.sources, text.pieces, text.depth)


def _call(name: str, text: Any, *args: Any) -> Any:
    """The method `name` of `text`, any of which may be traced."""
    traced = next((a for a in (text, *args) if isinstance(a, Traced)), None)
    if traced is None:
        return getattr(text, name)(*args)
    if isinstance(text, Markup):
        raise Untraceable(f"{name} of a string marked safe")
    receiver = text if isinstance(text, TStr) else constant(traced.recorder, text)
    method = receiver.method(name)
    if method is None:
        raise Untraceable(f"{name} of a {type(receiver).__name__}")
    return method(*args)


def _cased(name: str, value: Any) -> Any:
    return _call(name, _string(value))


def _replaced(value: Any, old: Any, new: Any, count: int | None = None) -> Any:
    return _call("replace", as_text(value), as_text(old), as_text(new), -1 if count is None else count)


def _trimmed(value: Any, chars: Any = None) -> Any:
    return _call("strip", _string(value), chars)


def _int(value: Any, default: Any = 0, base: Any = 10) -> Any:
    return _number("int", do_int, value, default, base)


def _float(value: Any, default: Any = 0.0) -> Any:
    return _number("float", do_float, value, default)


def _number(name: str, function: Function, value: Any, *arguments: Any) -> Any:
    if not isinstance(value, TStr):
        number = value.fixed() if isinstance(value, TInt) else value
        return _refusing(f"the filter {name}", function)(number, *arguments)
    if isinstance(value, TMarkup) or not all(type(a) in (int, float) for a in arguments):
        raise Untraceable(f"the filter {name} of a string marked safe, or with such a default")
    return TNumber(value.recorder, function(value.value, *arguments), (name, value.expr, *arguments), value.sources)


_FILTERS: Mapping[str, Function] = {
    "tojson": _tojson,
    "join": _joined,
    "string": _string,
    "length": _length,
    "count": _length,
    "default": _default,
    "d": _default,
    "safe": _safe,
    "trim": _trimmed,
    "replace": _replaced,
    "upper": functools.partial(_cased, "upper"),
    "lower": functools.partial(_cased, "lower"),
    "int": _int,
    "float": _float,
    "capitalize": functools.partial(_cased, "capitalize"),
    "reverse": _reversed,
    "dictsort": _dictsort,
    "random": _random,
}


def _is_collection(value: Any) -> bool:
    return isinstance(value, TStr | TList | TMap | TSeq)


_TESTS: Mapping[str, Function] = {
    "string": lambda value: isinstance(value, str | TStr),
    "sequence": lambda value: _is_collection(value) or test_sequence(value),
    "iterable": lambda value: _is_collection(value) or test_iterable(value),
    "number": lambda value: isinstance(value, TInt | int | float),
    "integer": lambda value: isinstance(plain(value), int) and not isinstance(value, bool),
    "float": lambda value: isinstance(plain(value), float),
    "in": contained,
}
