"""One traced render: Jinja's own engine, run over traced values.

Written pieces stay pieces instead of becoming one string, and each is stamped with the message in whose iteration it
was written. Operators, look-ups and calls are Jinja's own, with a step in front where an operand may be traced.
"""

import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jinja2.runtime import Context
from markupsafe import Markup

from premask.read import Conversation
from premask.render.bounds import BoundedEnvironment
from premask.render.environment import OPTIONS, set_up
from premask.render.filters import traced_filters, traced_tests
from premask.render.generator import Generator, mark
from premask.render.nested import TMap, TSeq, as_text, is_plain, sources_of, wrap
from premask.render.recording import Recorder, TInt, Traced, Untraceable
from premask.render.shape import Path, copied, field_paths, map_fields
from premask.render.values import TList, TStr, concatenate, constant, contained

_NAMES_OF_DICT = frozenset(dir(dict))
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of rendered text."""

    text: str | TStr
    """A literal of the template, or a string derived from the conversation."""
    message: int | None
    """The message in whose iteration it was written; None outside of all."""
    generation: bool
    """Whether it stands inside the template's own `{% generation %}`."""


class _Marked(TStr):
    """The output of a `{% generation %}` block."""

    __slots__ = ()


class _Generated(str):
    """Literal output of a `{% generation %}` block."""

    __slots__ = ()


class TracingEnvironment(BoundedEnvironment):
    """The environment of chat templates, over traced values. Renders one conversation at a time."""

    code_generator_class = Generator
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))
    intercepted_unops = frozenset(("+", "-"))

    def __init__(self, date: datetime.date) -> None:
        super().__init__(**OPTIONS)
        set_up(self, date)
        self.globals["lipsum"] = _by_chance
        self.filters = traced_filters(self.filters)
        self.bound_filters()
        self.tests = traced_tests(self.tests)  # type: ignore[arg-type, assignment]
        self.start(Recorder(recording=False), [], [])

    def start(self, recorder: Recorder, messages: Sequence[dict[str, Any]], paths: Sequence[Path]) -> None:
        """Before a render; `paths` tells where every field stands."""
        self.recorder = recorder
        self.places = {id(message): index for index, message in enumerate(messages)}
        self.roles = [message["role"] for message in messages]
        self.paths = paths
        self.current: int | None = None
        self.scopes: list[tuple[int | None, bool]] = []

    def compile_traced(self, source: str) -> "TracedTemplate":
        """The template, its loops telling whose iteration is being written."""
        self.begin()
        code = self.compile(mark(self.parse(source)))
        template = self.template_class.from_code(self, code, self.make_globals(None), None)
        return TracedTemplate(self, template.root_render_func, template.new_context)

    # What the generated code calls.

    def written(self, value: Any) -> str | TStr:
        """A value on its way into the text."""
        return as_text(value)

    def joined(self, operands: Iterable[Any]) -> str | TStr:
        """The `~` operator."""
        made: str | TStr = self.bounded(concatenate(map(as_text, operands)))
        return made

    def concat(self, pieces: Iterable[Any]) -> str | TStr:  # type: ignore[override]
        """The output of a macro or a block."""
        made: str | TStr = self.bounded(concatenate(pieces))
        return made

    def contained(self, item: Any, container: Any) -> bool:
        """`item in container`."""
        return contained(item, container)

    def mark_generation(self, caller: Callable[[], Any]) -> Any:
        """A `{% generation %}` block."""
        text = caller()
        if isinstance(text, TStr):
            return _Marked(text.recorder, text.value, text.expr, text.sources, text.pieces, text.depth)
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
        index = next((place for place in map(self._place, targets) if place is not None), None)
        over_numbers = any(type(t) is int for t in targets)
        self.scopes[-1] = (outer, over_numbers)
        self.current = outer if index is None else index

    def _place(self, target: Any) -> int | None:
        """Which message a value is, or was made of: a template may put several into one before it writes them."""
        if id(target) in self.places or not isinstance(target, dict):
            return self.places.get(id(target))
        places = {self.paths[source][0] for source in sources_of(target)}
        found = [place for place in places if isinstance(place, int)]
        roles = {self.roles[place] for place in found}
        return max(found) if len(roles) == 1 else None

    def assigned(self, value: Any) -> None:
        """After `set`: a loop over numbers takes its message so."""
        if id(value) in self.places and self.scopes and self.scopes[-1][1]:
            self.current = self.places[id(value)]

    def escaping(self) -> None:
        """Before `{% autoescape %}`: what it would escape depends on every character."""
        raise Untraceable("the autoescape tag")

    # Jinja's own look-ups, operators and calls, where an operand may be traced.

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
        if isinstance(obj, TMap | TSeq):
            obj = obj.opened()
        if isinstance(argument, TInt):
            argument = argument.fixed()
        if isinstance(argument, TStr) and isinstance(obj, dict):
            return self._by_text(obj, argument)
        if isinstance(argument, Traced):
            raise Untraceable(f"a {type(argument).__name__} as an index")
        if not isinstance(obj, TStr | TList):
            return super().getitem(obj, argument)
        if isinstance(argument, str):
            return self.getattr(obj, argument)
        try:
            return obj[argument]
        except (TypeError, LookupError):
            return self.undefined(obj=obj.value, name=argument)

    def _by_text(self, obj: dict[Any, Any], argument: TStr) -> Any:
        found = _entry(obj, argument, _NOTHING)
        if found is not _NOTHING:
            return found
        names = ("in", argument.expr, ("const", _NAMES_OF_DICT))
        if self.recorder.ask(names, argument.value in _NAMES_OF_DICT):
            raise Untraceable("a method named by a text")
        return self.undefined(obj=obj, name=argument.value)

    def _text_attribute(self, obj: TStr, attribute: str) -> Any:
        method = obj.method(attribute)
        if method is not None:
            return method
        if attribute.startswith("_") or hasattr(str, attribute):
            raise Untraceable(f".{attribute} of a text")
        return self.undefined(obj=obj.value, name=attribute)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`."""
        left, right = _fixed(left), _fixed(right)
        if not isinstance(left, Traced) and not isinstance(right, Traced):
            return super().call_binop(context, operator, left, right)
        if operator != "+" or not {type(left), type(right)} <= {str, TStr}:
            raise Untraceable(f"{type(left).__name__} {operator} {type(right).__name__}")
        return concatenate((left, right))

    def call_unop(self, context: Context, operator: str, arg: Any) -> Any:
        """`operator arg`."""
        return super().call_unop(context, operator, _fixed(arg))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call in a template."""
        receiver = getattr(obj, "__self__", None)
        if isinstance(receiver, dict) and obj.__name__ == "get" and args and isinstance(args[0], TStr):
            return _entry(receiver, *args)
        named = {k: v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars")}  # Jinja's own
        if not isinstance(receiver, str) or (is_plain(args) and is_plain(named)):
            return super().call(context, obj, *args, **kwargs)
        method = None if isinstance(receiver, Markup) else constant(self.recorder, receiver).method(obj.__name__)
        if method is None:
            raise Untraceable(f".{obj.__name__}() with a text as its argument")
        return method(*args, **named)


def _by_chance(*_: Any, **__: Any) -> NoReturn:
    raise Untraceable("chance")


def _fixed(value: Any) -> Any:
    return value.fixed() if isinstance(value, TInt) else value


def _entry(obj: dict[Any, Any], key: TStr, default: Any = None) -> Any:
    """`obj.get(key, default)`; a look-up that misses asks as many questions as there are keys."""
    return next((value for own, value in obj.items() if key == own), default)


@dataclass(frozen=True, slots=True)
class Trace:
    """What one traced render left."""

    pieces: list[Piece]

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
        messages, tools = map_fields(conversation, lambda number, path, value: wrap(recorder, value, number))
        environment = self.environment
        environment.start(recorder, messages, field_paths(conversation))
        environment.begin(conversation)
        arguments = copied(conversation.template_args)
        context = self._new_context({**variables, **arguments, "messages": messages, "tools": tools})
        pieces: list[Piece] = []
        for output in self._render(context):
            marked = isinstance(output, _Marked | _Generated)
            texts = output.pieces if isinstance(output, TStr) else (str(output),)
            pieces += [Piece(t, environment.current, marked) for t in texts if isinstance(t, TStr) or t]
        return Trace(pieces)
