"""One traced render: Jinja's own engine, run over traced values.

The template is compiled by Jinja with a code generator that differs in four places: what is written out, the `~`
operator, `in`, and loops. Written pieces stay pieces instead of becoming one string, and each is stamped with the message in
whose iteration it was written. Filters and tests are a white list: what is not listed refuses traced values.
"""

import datetime
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.filters import do_dictsort
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from premask.read import Conversation
from premask.render.environment import OPTIONS, set_up
from premask.render.environment import tojson as plain_tojson
from premask.render.shape import map_fields
from premask.render.values import (
    Recorder,
    TInt,
    TList,
    TMap,
    TMarkup,
    Traced,
    TSeq,
    TStr,
    Untraceable,
    concatenate,
    wrap,
)


class Message(dict[str, Any]):
    """A message as the template sees it; it knows its place in the conversation."""

    __slots__ = ("index",)

    def __init__(self, message: Mapping[str, Any], index: int) -> None:
        super().__init__(message)
        self.index = index


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of rendered text."""

    text: "str | TStr"
    """A literal of the template, or a string derived from the conversation."""
    message: int | None
    """The message in whose iteration it was written; None outside of all."""
    generation: bool
    """Whether it stands inside the template's own `{% generation %}`."""


class _Marked(TStr):
    """The output of a `{% generation %}` block."""

    __slots__ = ()


class _Generator(CodeGenerator):
    """Jinja's code generator, with pieces kept apart."""

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write("environment.written(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for operand in node.nodes:
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        if len(node.ops) == 1 and node.ops[0].op in ("in", "notin"):
            self.write("(not " if node.ops[0].op == "notin" else "(")
            self.write("environment.contained(")
            self.visit(node.expr, frame)
            self.write(", ")
            self.visit(node.ops[0].expr, frame)
            self.write("))")
        else:
            super().visit_Compare(node, frame)


class TracingEnvironment(ImmutableSandboxedEnvironment):
    """The environment of chat templates, over traced values."""

    code_generator_class = _Generator

    def __init__(self, date: datetime.date) -> None:
        super().__init__(**OPTIONS)
        set_up(self, date)
        self.globals.pop("lipsum")  # random
        self.filters = {name: _filter(name, function) for name, function in self.filters.items()}
        self.tests = {name: _test(name, function) for name, function in self.tests.items()}
        self.current: int | None = None
        self.scopes: list[tuple[int | None, bool]] = []
        self.generating = False
        self.printed_none = False

    def compile_traced(self, source: str) -> "TracedTemplate":
        """The template, its loops telling whose iteration is being written."""
        tree = _mark_loops(self.parse(source))
        template = self.template_class.from_code(self, self.compile(tree), self.make_globals(None), None)
        return TracedTemplate(self, template.root_render_func, template.new_context)

    # What the generated code calls.

    def written(self, value: Any) -> Any:
        """A value on its way into the text."""
        if isinstance(value, TStr):
            return value
        if isinstance(value, TInt):
            return str(value.fixed())
        if isinstance(value, TMap | TSeq):
            text = str(value.value)
            return TStr(value.recorder, text, ("str", value.expr), value.sources, mixed=True)
        if isinstance(value, Traced):
            raise Untraceable(f"writing a {type(value).__name__}")
        self.printed_none |= value is None
        return str(value)

    def joined(self, operands: Iterable[Any]) -> "str | TStr":
        """The `~` operator."""
        return concatenate([self.written(operand) for operand in operands])

    def concat(self, pieces: Iterable[Any]) -> "str | TStr":  # type: ignore[override]
        """The output of a macro or a block."""
        return concatenate(pieces)

    def contained(self, item: Any, container: Any) -> bool:
        """`item in container`."""
        if isinstance(container, TStr):
            return container.contains(item)
        if isinstance(item, TStr):
            if isinstance(container, str):
                asked = item.recorder.ask(("in", item.expr, ("const", container)), item.value in container)
                return bool(asked)
            return any(item == other for other in container)
        return bool(item in container)

    def mark_generation(self, caller: Callable[[], Any]) -> Any:
        """A `{% generation %}` block."""
        text = caller()
        if isinstance(text, TStr):
            return _Marked(text.recorder, text.value, text.expr, text.sources, text.mixed, text.pieces)
        return _Generated(text)

    def opened_scope(self) -> None:
        """Before a loop."""
        self.scopes.append((self.current, False))

    def closed_scope(self) -> None:
        """After a loop."""
        self.current, _ = self.scopes.pop()

    def entered(self, *targets: Any) -> None:
        """At the start of an iteration over `targets`: is it a message's?"""
        outer, _ = self.scopes[-1]
        index = next((t.index for t in targets if isinstance(t, Message)), None)
        over_numbers = any(type(t) is int for t in targets)
        self.scopes[-1] = (outer, over_numbers)
        self.current = outer if index is None else index

    def assigned(self, value: Any) -> None:
        """After `set`: a loop over numbers takes its message so."""
        if isinstance(value, Message) and self.scopes and self.scopes[-1][1]:
            self.current = value.index

    # Jinja's own look-ups and calls, where an operand may be traced.

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`."""
        if isinstance(obj, TStr):
            return self._text_attribute(obj, attribute)
        if isinstance(obj, TMap | TSeq):
            return super().getattr(obj.opened(), attribute)
        if isinstance(obj, Traced):
            raise Untraceable(f".{attribute} of a {type(obj).__name__}")
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`."""
        if isinstance(argument, TStr):
            return self._by_text(obj, argument)
        if isinstance(argument, Traced):
            argument = argument.fixed() if isinstance(argument, TInt) else self._refused(argument)
        if isinstance(obj, TStr | TList):
            if isinstance(argument, str):
                return self.getattr(obj, argument)
            try:
                return obj[argument]
            except LookupError:
                return self.undefined(obj=obj.value, name=argument)
        if isinstance(obj, TMap | TSeq):
            obj = obj.opened()
        return super().getitem(obj, argument)

    def _by_text(self, obj: Any, argument: TStr) -> Any:
        if isinstance(obj, TMap):
            obj = obj.opened()
        if not isinstance(obj, dict):
            return self._refused(argument)
        for key in obj:
            if argument == key:
                return obj[key]
        return self.undefined(obj=obj, name=argument.value)

    @staticmethod
    def _refused(value: Traced) -> Any:
        raise Untraceable(f"a {type(value).__name__} as an index")

    def _text_attribute(self, obj: TStr, attribute: str) -> Any:
        if attribute.startswith("_") or attribute in ("format", "format_map"):
            raise Untraceable(f".{attribute} of a text")
        method = obj.method(attribute)
        if method is not None:
            return method
        if hasattr(str, attribute):
            raise Untraceable(f".{attribute}() of a text")
        return self.undefined(obj=obj.value, name=attribute)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """A call in a template."""
        receiver = getattr(obj, "__self__", None)
        named = {k: v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars")}  # Jinja's own
        if isinstance(receiver, str) and _holds_traced((args, named)):
            recorder = next(_traced_in((args, named))).recorder
            constant = TStr(recorder, str(receiver), ("const", str(receiver)), frozenset(), mixed=True)
            method = constant.method(obj.__name__)
            if method is None:
                raise Untraceable(f".{obj.__name__}() with a text as its argument")
            return method(*args, **named)
        if isinstance(receiver, dict) and args and isinstance(args[0], TStr):
            found = self._by_text(receiver, args[0])
            default = args[1] if len(args) > 1 else None
            return default if isinstance(found, self.undefined) else found
        return super().call(context, obj, *args, **kwargs)


class _Generated(str):
    """Literal output of a `{% generation %}` block."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """What one traced render left."""

    pieces: list[Piece]
    printed_none: bool
    """Whether a null was written out as the word None."""

    @property
    def text(self) -> str:
        """The rendered text."""
        return "".join(p.text if isinstance(p.text, str) else p.text.value for p in self.pieces)


class TracedTemplate:
    """A compiled template that renders to pieces."""

    def __init__(
        self,
        environment: TracingEnvironment,
        render: Callable[[Context], Iterator[Any]],
        new_context: Callable[[dict[str, Any]], Context],
    ) -> None:
        self.environment = environment
        self._render = render
        self._new_context = new_context

    def render(self, recorder: Recorder, conversation: Conversation, variables: Mapping[str, Any]) -> Trace:
        """Render `conversation`, noting questions in `recorder`.

        Raises Untraceable, and whatever the template itself raises.
        """
        environment = self.environment
        environment.current, environment.scopes, environment.printed_none = None, [], False
        context = self._new_context(
            {**variables, **conversation.template_args, **_traced_arguments(recorder, conversation)}
        )
        pieces: list[Piece] = []
        for output in self._render(context):
            marked = isinstance(output, _Marked | _Generated)
            for text in output.pieces if isinstance(output, TStr) else (output,):
                if isinstance(text, TStr) or text:
                    pieces.append(Piece(text if isinstance(text, TStr) else str(text), environment.current, marked))
        return Trace(pieces, environment.printed_none)


def _traced_arguments(recorder: Recorder, conversation: Conversation) -> dict[str, Any]:
    """`messages` and `tools` with a traced value in place of every field."""
    messages, tools = map_fields(conversation, lambda number, path, value: wrap(recorder, value, number))
    return {"messages": [Message(m, i) for i, m in enumerate(messages)], "tools": tools}


def _mark_loops(tree: nodes.Template) -> nodes.Template:
    """Tell the environment where loops begin, iterate and end, and what `set` assigns."""
    for node in [tree, *tree.find_all(nodes.Node)]:
        for field in ("body", "else_"):
            body = getattr(node, field, None)
            if isinstance(body, list):
                setattr(node, field, [marked for child in body for marked in _marked(child)])
    return tree


def _marked(node: nodes.Node) -> list[nodes.Node]:
    if isinstance(node, nodes.For):
        names = [n.name for n in node.target.find_all(nodes.Name)]
        if isinstance(node.target, nodes.Name):
            names = [node.target.name]
        node.body.insert(0, _tell("entered", names, node.lineno))
        return [_tell("opened_scope", [], node.lineno), node, _tell("closed_scope", [], node.lineno)]
    if isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
        return [node, _tell("assigned", [node.target.name], node.lineno)]
    return [node]


def _tell(event: str, names: list[str], line: int) -> nodes.Node:
    arguments: list[nodes.Expr] = [nodes.Name(name, "load") for name in names]
    call = nodes.Call(nodes.EnvironmentAttribute(event), arguments, [], None, None)
    return nodes.ExprStmt(call).set_lineno(line)


# Filters and tests: what is not named here refuses traced values.

_OVER_SEQUENCES = frozenset(
    "list first last map select reject selectattr rejectattr items batch slice".split()
)
"""Filters written in Python over items and look-ups: they see traced values through the operations above only."""


def _filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    own = _FILTERS.get(name)
    if own is not None:
        return own
    if name in _OVER_SEQUENCES:
        return function
    return _refusing(f"the filter {name}", function)


def _test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    own = _TESTS.get(name)
    if own is not None:
        return own
    if name in ("defined", "undefined", "none", "mapping", "callable", "boolean", "true", "false", "filter", "test"):
        return function  # they ask for the type alone
    if name in ("eq", "==", "equalto", "ne", "!=", "lt", "<", "lessthan", "le", "<=", "gt", ">", "greaterthan", "ge", ">="):
        return function  # comparisons, which traced values ask themselves
    return _refusing(f"the test {name}", function)


def _refusing(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def refusing(*args: Any, **kwargs: Any) -> Any:
        args = tuple(list(a) if isinstance(a, Iterator) else a for a in args)
        if _holds_traced((args, kwargs)):
            raise Untraceable(what)
        return function(*args, **kwargs)

    if hasattr(function, "jinja_pass_arg"):
        refusing.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return refusing


def _traced_in(value: Any) -> Iterator[Traced]:
    if isinstance(value, Traced):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _traced_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _traced_in(item)


def _holds_traced(value: Any) -> bool:
    return next(_traced_in(value), None) is not None


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> Any:
    options = tuple(sorted(dict(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys).items()))
    if not _holds_traced(x):
        return plain_tojson(x, **dict(options))
    found: list[TStr] = []
    stand_in = f"premask:{id(found):x}:"

    def note(value: Any) -> str:
        if not isinstance(value, TStr | TMap | TSeq):
            raise Untraceable(f"tojson of a {type(value).__name__}")
        text = json.dumps(value.value, **dict(options))
        if indent is not None and not isinstance(value, TStr):
            raise Untraceable("tojson of a nested value with an indent")
        found.append(TStr(value.recorder, text, ("json", value.expr, options), value.sources, isinstance(value, TMap)))
        return f"{stand_in}{len(found) - 1}:"

    if isinstance(x, TMap | TSeq):
        text = json.dumps(x.value, **dict(options))
        return TStr(x.recorder, text, ("json", x.expr, options), x.sources, mixed=True)
    literals = json.dumps(x, default=note, **dict(options))
    pieces: list[Any] = []
    for i, string in enumerate(found):
        before, _, literals = literals.partition(f'"{stand_in}{i}:"')
        pieces += [before, string]
    return concatenate([*pieces, literals])


def _joined(value: Any, d: Any = "", attribute: str | None = None) -> Any:
    pieces: list[Any] = []
    for item in value:
        text = _string(item if attribute is None else item[attribute])
        pieces += [d, text] if pieces else [text]
    return concatenate(pieces)


def _reversed(value: Any) -> Any:
    if isinstance(value, Traced):
        raise Untraceable("the filter reverse")
    return value[::-1] if isinstance(value, str) else reversed(value)


def _dictsort(value: Any, case_sensitive: bool = False, by: str = "key", reverse: bool = False) -> Any:
    if by != "key":
        raise Untraceable("the filter dictsort by value")
    return do_dictsort(value, case_sensitive, "key", reverse)


def _random(*_: Any) -> Any:
    raise Untraceable("the filter random")


def _string(value: Any) -> Any:
    if isinstance(value, TMap | TSeq):
        return TStr(value.recorder, str(value.value), ("str", value.expr), value.sources, mixed=True)
    if isinstance(value, TInt):
        return str(value.fixed())
    return value if isinstance(value, str | TStr) else str(value)


def _length(value: Any) -> Any:
    return value.length() if isinstance(value, TStr | TList) else len(value)


def _default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    return default_value if isinstance(value, Undefined) or (boolean and not value) else value


def _safe(value: Any) -> Any:
    if isinstance(value, TStr):
        return TMarkup(value.recorder, value.value, value.expr, value.sources, value.mixed, value.pieces)
    if isinstance(value, Traced):
        raise Untraceable("the filter safe")
    return Markup(value)  # noqa: S704 - as Jinja's own filter; nothing here is HTML


def _method_filter(name: str) -> Callable[..., Any]:
    def apply(value: Any, *args: Any) -> Any:
        text = _string(value)
        method = text.method(name) if isinstance(text, TStr) else getattr(text, name)
        if method is None:
            raise Untraceable(f"the filter {name}")
        return method(*args)

    return apply


def _replaced(value: Any, old: Any, new: Any, count: int | None = None) -> Any:
    text, counts = _string(value), () if count is None else (count,)
    if isinstance(text, Markup) or not _holds_traced((text, old, new)):
        return text.replace(old, new, -1 if count is None else count)
    if not isinstance(text, TStr):
        raise Untraceable("the filter replace with a text as its argument")
    method = text.method("replace")
    if method is None:
        raise Untraceable("the filter replace")
    return method(old, new, *counts)


def _trimmed(value: Any, chars: Any = None) -> Any:
    return _method_filter("strip")(value, chars)


_FILTERS: dict[str, Callable[..., Any]] = {
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
    "upper": _method_filter("upper"),
    "lower": _method_filter("lower"),
    "capitalize": _method_filter("capitalize"),
    "reverse": _reversed,
    "dictsort": _dictsort,
    "random": _random,
}

_TESTS: dict[str, Callable[..., Any]] = {
    "string": lambda value: isinstance(value, str | TStr),
    "sequence": lambda value: isinstance(value, TStr | TList | TMap | TSeq) or _is_sequence(value),
    "iterable": lambda value: isinstance(value, TStr | TList | TMap | TSeq) or _is_iterable(value),
    "number": lambda value: isinstance(value, TInt | int | float | complex),
    "integer": lambda value: isinstance(value, TInt) or (isinstance(value, int) and not isinstance(value, bool)),
    "float": lambda value: isinstance(value, float),
    "in": lambda value, container: TracingEnvironment.contained(None, value, container),  # type: ignore[arg-type]
}


def _is_sequence(value: Any) -> bool:
    try:
        len(value)
        _ = value.__getitem__
    except Exception:
        return False
    return True


def _is_iterable(value: Any) -> bool:
    try:
        iter(value)
    except TypeError:
        return False
    return True
