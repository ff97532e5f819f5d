"""Traced values: what a template gets in place of a conversation's text.

A traced string is **not** a `str`. It offers the operations below, each of which either derives a new traced string
(and notes how: its expression) or asks a question (and notes the answer: a guard). Whatever else touches it, C code
included, fails on a foreign type instead of reading past it, and the failure is an `Untraceable`, which no `except
Exception` of a template engine swallows. So a trace that completes has seen everything the template could observe.

    TStr    a string          TList   the parts of a split string
    TInt    a length, an index, a count (`recording.py`)
    TMap, TSeq    a field whose structure is the user's own; opened when the template looks inside (`nested.py`)

An operation that fails for some texts only (the index of what is not there, a split at an empty separator) asks whether
it fails: a replay must not pass where the template stops.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from premask.render.expression import ASKING_METHODS, DERIVING_METHODS, Expr
from premask.render.recording import Recorder, TInt, Traced, expression, plain

MAX_DEPTH = 50
"""Derivations of derivations of a text that are followed; their source code nests about as deep."""

_FILLING = ("center", "ljust", "rjust")

_KEYWORDS: Mapping[str, Mapping[str, Any]] = {
    "split": {"sep": None, "maxsplit": -1},
    "rsplit": {"sep": None, "maxsplit": -1},
    "splitlines": {"keepends": False},
    "expandtabs": {"tabsize": 8},
}
"""The methods of `str` that take keywords, with the defaults."""


class TStr(Traced):
    """A string derived from fields. `pieces` are a concatenation's operands: literals and strings of one expression."""

    __slots__ = ("depth", "pieces")

    def __init__(
        self,
        recorder: Recorder,
        value: str,
        expr: Expr,
        sources: frozenset[int],
        pieces: tuple["str | TStr", ...] = (),
        depth: int = 0,
    ) -> None:
        super().__init__(recorder, value, expr, sources)
        self.pieces = pieces or (self,)
        self.depth = depth

    def derived(self, value: str, expr: Expr, *others: Any) -> "TStr":
        """A string computed from this one; text of `others` may be in it."""
        texts = [o for o in others if isinstance(o, TStr)]
        sources = self.sources.union(*(o.sources for o in texts))
        depth = 1 + max([self.depth, *(o.depth for o in texts)])
        if depth > MAX_DEPTH:
            self.recorder.refuse("a long chain of derivations")
        return TStr(self.recorder, value, expr, sources, depth=depth)

    def method(self, name: str) -> "Callable[..., Any] | None":
        """The traced counterpart of a method of `str`; None for what cannot be traced."""
        if name in ("strip", "lstrip", "rstrip"):
            return lambda chars=None: _strip(self, name, chars)
        if name in DERIVING_METHODS:
            return lambda *args, **named: self._derive(name, _in_order(name, args, named))
        if name in ASKING_METHODS:
            return lambda *args: self._ask(name, args)
        return None

    def _derive(self, name: str, args: tuple[Any, ...]) -> Any:
        if name == "join":
            return _join(self, *args)
        value = getattr(self.value, name)(*map(plain, args))
        expr: Expr = ("call", name, self.expr, *map(expression, args))
        if isinstance(value, str):
            inserted = args[1:2] if name in ("replace", *_FILLING) else ()
            if name in _FILLING and any(isinstance(i, TStr) for i in inserted):
                self.recorder.refuse(f"{name}() with a text to fill with")  # an error, unless it is one character
            return self.derived(value, expr, *inserted)
        if args and isinstance(args[0], TStr):
            bool(args[0])  # asks: an empty separator is an error
        parts = [self.derived(v, ("item", expr, i)) for i, v in enumerate(value)]
        if name in ("partition", "rpartition"):
            return tuple(parts)
        return TList(self.recorder, parts, expr, self.sources)

    def _ask(self, name: str, args: tuple[Any, ...]) -> Any:
        value = getattr(self.value, name)(*map(plain, args))
        finder = name.replace("index", "find")
        expr: Expr = ("call", finder, self.expr, *map(expression, args))
        if isinstance(value, bool):
            return self.recorder.ask(expr, value)
        if finder != name:
            self.recorder.ask(("cmp", ">=", expr, ("const", 0)), True)  # else it had been an error
        return _integer(self, value, expr)

    def contains(self, part: Any) -> bool:
        """`part in self`."""
        return bool(self.recorder.ask(("in", expression(part), self.expr), plain(part) in self.value))

    __contains__ = contains

    def starts_with(self, beginning: str) -> bool:
        """`self.startswith(beginning)`."""
        return bool(self._ask("startswith", (beginning,)))

    def finds(self, part: str) -> int | None:
        """Where `part` first stands, None where it does not; only whether it does is asked."""
        return self.value.find(part) if self.contains(part) else None

    def partition(self, separator: str) -> tuple["TStr", "TStr", "TStr"]:
        """`self.partition(separator)`."""
        head, middle, tail = self._derive("partition", (separator,))
        return head, middle, tail

    def length(self) -> Any:
        """`len(self)`, traced."""
        return _integer(self, len(self.value), ("len", self.expr))

    def __bool__(self) -> bool:
        if any(isinstance(p, str) for p in self.pieces):
            return True  # a piece of the template is never empty
        return super().__bool__()

    def __len__(self) -> int:
        return operator.index(self.length())

    def __iter__(self) -> Iterator["TStr"]:
        self.recorder.refuse("iterating over the characters of a text")
        return iter([self[i] for i in range(len(self.value))])

    def __getitem__(self, key: Any) -> "TStr":
        if isinstance(key, slice):
            bounds = _bounds(key)
            return self.derived(self.value[slice(*bounds)], ("slice", self.expr, *bounds))
        index = _checked_index(self, len(self.value), key)
        return self.derived(self.value[index], ("item", self.expr, index))


class TMarkup(TStr):
    """A traced string marked safe: it can be written out, joined by `~`, and nothing else (Markup escapes operands)."""

    __slots__ = ()

    def method(self, name: str) -> "Callable[..., Any] | None":
        """None: no method of a string marked safe is traced."""
        return None

    def __getitem__(self, key: Any) -> TStr:
        self._refused("a part")


class TList(Traced):
    """The parts of a split string."""

    __slots__ = ("parts",)

    def __init__(self, recorder: Recorder, parts: list[TStr], expr: Expr, sources: frozenset[int]) -> None:
        super().__init__(recorder, [p.value for p in parts], expr, sources)
        self.parts = parts

    def length(self) -> Any:
        """`len(self)`, traced."""
        return _integer(self, len(self.value), ("len", self.expr))

    def __len__(self) -> int:
        return operator.index(self.length())

    def __iter__(self) -> Iterator[TStr]:
        len(self)
        return iter(self.parts)

    def __contains__(self, item: Any) -> bool:
        return any(part == item for part in self)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, slice):
            index = _checked_index(self, len(self.value), key)
            part = self.parts[index]
            return part.derived(part.value, ("item", self.expr, index))  # the last is not always the third
        bounds = _bounds(key)
        expr: Expr = ("slice", self.expr, *bounds)
        parts = [p.derived(p.value, ("item", expr, i)) for i, p in enumerate(self.parts[slice(*bounds)])]
        return TList(self.recorder, parts, expr, self.sources)

    def __eq__(self, other: object) -> Any:
        self._refused("a comparison")

    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__
    __hash__ = Traced.__hash__


def constant(recorder: Recorder, text: str) -> TStr:
    """A string of the template as a receiver of methods whose arguments are traced."""
    return TStr(recorder, str(text), ("const", str(text)), frozenset())


def concatenate(items: Iterable[Any]) -> "str | TStr":
    """Strings joined; traced as soon as one of them is. Neighbouring literals become one, empty ones go."""
    pieces: list[str | TStr] = []
    for item in items:
        for piece in item.pieces if isinstance(item, TStr) else (str(item),):  # str: Markup would escape the next
            if isinstance(piece, TStr):
                pieces.append(piece)
            elif piece and pieces and isinstance(pieces[-1], str):
                pieces[-1] += piece
            elif piece:
                pieces.append(piece)
    traced = [p for p in pieces if isinstance(p, TStr)]
    if not traced:
        return "".join(p for p in pieces if isinstance(p, str))
    if len(pieces) == 1:
        return traced[0]
    sources = frozenset[int]().union(*(p.sources for p in traced))
    expr: Expr = ("cat", *map(expression, pieces))
    depth = 1 + max(p.depth for p in traced)
    return TStr(traced[0].recorder, "".join(map(plain, pieces)), expr, sources, tuple(pieces), depth)


def contained(item: Any, container: Any) -> bool:
    """`item in container`."""
    if isinstance(container, TStr):
        return container.contains(item)
    if not isinstance(item, TStr):
        return bool(item in container)
    if isinstance(container, str):
        return bool(item.recorder.ask(("in", item.expr, ("const", str(container))), item.value in container))
    return any(item == other for other in container)


def _integer(of: Traced, value: int, expr: Expr) -> Any:
    return TInt(of.recorder, value, expr, of.sources) if of.recorder.recording else value


def _bounds(key: slice) -> tuple[int | None, ...]:
    return tuple(None if b is None else operator.index(b) for b in (key.start, key.stop, key.step))


def _checked_index(of: "TStr | TList", length: int, key: Any) -> int:
    """An index; asks whether there is an item."""
    index = operator.index(key)
    needed = index + 1 if index >= 0 else -index
    enough: Expr = ("cmp", ">=", ("len", of.expr), ("const", needed))
    if not of.recorder.ask(enough, length >= needed):
        raise IndexError(index)
    return index


def _in_order(name: str, args: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of a method, by place."""
    if not named:
        return args
    defaults = _KEYWORDS.get(name, {})
    given = {**dict(zip(defaults, args, strict=False)), **named}
    if not given.keys() <= defaults.keys():
        raise TypeError(f"{name}() takes no such keyword")
    return tuple(given.get(key, default) for key, default in defaults.items())


def _join(separator: TStr, items: Iterable[Any]) -> "str | TStr":
    joined: list[Any] = []
    for item in items:
        joined += [separator, item] if joined else [item]
    return concatenate(joined)


def _strip(text: TStr, name: str, chars: Any) -> "str | TStr":
    """`strip`, `lstrip`, `rstrip`; of a concatenation, the pieces at its ends, so that every piece keeps its origin."""
    if len(text.pieces) == 1 or isinstance(chars, Traced):
        arguments = () if chars is None else (expression(chars),)
        return text.derived(getattr(text.value, name)(plain(chars)), ("call", name, text.expr, *arguments))
    pieces: list[str | TStr] = list(text.pieces)
    if name != "rstrip":
        pieces = _strip_end(pieces, 0, "lstrip", chars)
    if name != "lstrip":
        pieces = _strip_end(pieces, -1, "rstrip", chars)
    return concatenate(pieces)


def _strip_end(pieces: list["str | TStr"], end: int, name: str, chars: Any) -> list["str | TStr"]:
    while pieces:
        piece = pieces[end]
        pieces[end] = getattr(piece, name)(chars) if isinstance(piece, str) else _strip(piece, name, chars)
        if pieces[end]:  # asks whether anything is left of a traced piece
            break
        del pieces[end]
    return pieces
