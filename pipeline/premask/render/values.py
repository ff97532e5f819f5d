"""Traced values: what a template gets in place of a conversation's text.

A traced string is **not** a `str`. It offers the operations below, each of which either derives a new traced string
(and notes how: its expression) or asks a question (and notes the answer: a guard). Whatever else touches it, C code
included, fails on a foreign type instead of reading past it, and the failure is an `Untraceable`, which no `except
Exception` of a template engine swallows. So a trace that completes has seen everything the template could observe.

    TStr    a string          TList   the parts of a split string
    TInt    a length, an index, a count
    TMap, TSeq    a field whose structure is the user's own; opened when the template looks inside
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from premask.render.expression import ASKING_METHODS, DERIVING_METHODS, Expr
from premask.render.shape import structure

Guard: TypeAlias = tuple[Expr, Any]
"""A question and its answer."""


class Untraceable(BaseException):
    """A template observed its input in a way that cannot be replayed."""


class Recorder:
    """Notes the questions of one render.

    With `recording` off nothing is noted: the render is good for its own conversation alone, so any question may be
    asked, also one that a replay could not ask again.
    """

    def __init__(self, recording: bool) -> None:
        self.recording = recording
        self.guards: dict[Expr, Any] = {}

    def ask(self, question: Expr, answer: Any) -> Any:
        """Note `question` with its answer; returns the answer."""
        if self.recording:
            self.guards.setdefault(question, answer)
        return answer

    def refuse(self, what: str) -> None:
        """Stop a recording: `what` cannot be replayed."""
        if self.recording:
            raise Untraceable(what)


class Traced:
    """Base of all traced values: refuses what its classes do not offer."""

    __slots__ = ("expr", "recorder", "sources", "value")

    def __init__(self, recorder: Recorder, value: Any, expr: Expr, sources: frozenset[int]) -> None:
        self.recorder = recorder
        self.value = value
        self.expr = expr
        self.sources = sources
        """The fields it was derived from."""

    def _refused(self, what: str) -> NoReturn:
        raise Untraceable(f"{what} of a {type(self).__name__}")

    def __str__(self) -> str:
        self._refused("str()")

    def __repr__(self) -> str:
        self._refused("repr()")

    def __format__(self, spec: str) -> str:
        self._refused("format()")

    def __hash__(self) -> int:
        self._refused("hash()")

    def __bool__(self) -> bool:
        return bool(self.recorder.ask(("bool", self.expr), bool(self.value)))

    def _compare(self, operator: str, other: Any, answer: Any) -> Any:
        if answer is NotImplemented:
            return NotImplemented
        if not isinstance(plain(other), str if isinstance(self.value, str) else int | float):
            return bool(answer)  # the answer follows from the types alone
        return self.recorder.ask(("cmp", operator, self.expr, expression(other)), bool(answer))

    def __eq__(self, other: object) -> Any:
        return self._compare("==", other, self.value == plain(other))

    def __ne__(self, other: object) -> Any:
        return self._compare("!=", other, self.value != plain(other))

    def __lt__(self, other: Any) -> Any:
        return self._compare("<", other, self.value < plain(other))

    def __le__(self, other: Any) -> Any:
        return self._compare("<=", other, self.value <= plain(other))

    def __gt__(self, other: Any) -> Any:
        return self._compare(">", other, self.value > plain(other))

    def __ge__(self, other: Any) -> Any:
        return self._compare(">=", other, self.value >= plain(other))


class TInt(Traced):
    """A number that depends on text. Comparisons are asked; arithmetic fixes the number."""

    __slots__ = ()

    def fixed(self) -> int:
        """The number itself, from here on a fact of this path."""
        return int(self.recorder.ask(self.expr, self.value))

    __index__ = __int__ = fixed

    def __add__(self, other: int) -> int:
        return self.fixed() + other

    def __sub__(self, other: int) -> int:
        return self.fixed() - other

    def __rsub__(self, other: int) -> int:
        return other - self.fixed()

    def __mul__(self, other: int) -> int:
        return self.fixed() * other

    def __mod__(self, other: int) -> int:
        return self.fixed() % other

    def __floordiv__(self, other: int) -> int:
        return self.fixed() // other

    def __neg__(self) -> int:
        return -self.fixed()

    __radd__ = __add__
    __rmul__ = __mul__


class TStr(Traced):
    """A string derived from fields. `pieces` shows a concatenation's operands: literals, and strings of one expression."""

    __slots__ = ("mixed", "pieces")

    def __init__(
        self,
        recorder: Recorder,
        value: str,
        expr: Expr,
        sources: frozenset[int],
        mixed: bool = False,
        pieces: tuple["str | TStr", ...] = (),
    ) -> None:
        super().__init__(recorder, value, expr, sources)
        self.mixed = mixed
        """Whether text of the template may be inside, beside the fields'."""
        self.pieces = pieces or (self,)

    def derived(self, value: str, expr: Expr, *others: Any) -> "TStr":
        """A string computed from this one, and from `others`."""
        sources = self.sources.union(*(o.sources for o in others if isinstance(o, Traced)))
        mixed = self.mixed or any(isinstance(o, str) or (isinstance(o, TStr) and o.mixed) for o in others)
        return TStr(self.recorder, value, expr, sources, mixed)

    def method(self, name: str) -> "Callable[..., Any] | None":
        """The traced counterpart of a method of `str`; None for what cannot be traced."""
        if name in ("strip", "lstrip", "rstrip"):
            return lambda chars=None: _strip(self, name, chars)
        if name in DERIVING_METHODS:
            return lambda *args: self._derive(name, args)
        if name in ASKING_METHODS:
            return lambda *args: self._ask(name, args)
        return None

    def _derive(self, name: str, args: tuple[Any, ...]) -> Any:
        if name == "join":
            return _join(self, *args)
        value = getattr(self.value, name)(*map(plain, args))
        expr: Expr = ("call", name, self.expr, *map(expression, args))
        inserted = args[1:2] if name == "replace" else ()
        if isinstance(value, str):
            return self.derived(value, expr, *inserted)
        parts = [self.derived(v, ("item", expr, i)) for i, v in enumerate(value)]
        if name in ("partition", "rpartition"):
            return tuple(parts)
        return TList(self.recorder, parts, expr, self.sources)

    def _ask(self, name: str, args: tuple[Any, ...]) -> Any:
        value = getattr(self.value, name)(*map(plain, args))
        expr: Expr = ("call", name, self.expr, *map(expression, args))
        return self.recorder.ask(expr, value) if isinstance(value, bool) else _integer(self, value, expr)

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
        return TInt(self.recorder, len(self.value), ("len", self.expr), self.sources).fixed()

    def __iter__(self) -> Iterator["TStr"]:
        self.recorder.refuse("iterating over the characters of a text")
        return iter([self[i] for i in range(len(self.value))])

    def __getitem__(self, key: Any) -> "TStr":
        if isinstance(key, slice):
            bounds = tuple(None if b is None else int(b) for b in (key.start, key.stop, key.step))
            return self.derived(self.value[slice(*bounds)], ("slice", self.expr, *bounds))
        index = int(key)
        needed = index + 1 if index >= 0 else -index
        enough = ("cmp", ">=", ("len", self.expr), ("const", needed))
        if not self.recorder.ask(enough, len(self.value) >= needed):
            raise IndexError(index)
        return self.derived(self.value[index], ("item", self.expr, index))

    def __add__(self, other: Any) -> Any:
        return concatenate((self, other)) if isinstance(other, str | TStr) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return concatenate((other, self)) if isinstance(other, str) else NotImplemented


class TMarkup(TStr):
    """A traced string marked safe: it can be written out, joined by `~`, and nothing else (Markup escapes operands)."""

    __slots__ = ()

    def method(self, name: str) -> "Callable[..., Any] | None":
        """None: no method of a string marked safe is traced."""
        return None

    def __add__(self, other: Any) -> Any:
        self._refused("+")

    __radd__ = __add__


class TList(Traced):
    """The parts of a split string."""

    __slots__ = ()

    def length(self) -> TInt:
        """`len(self)`, traced."""
        return TInt(self.recorder, len(self.value), ("len", self.expr), self.sources)

    def __len__(self) -> int:
        return self.length().fixed()

    def __iter__(self) -> Iterator[TStr]:
        len(self)
        return iter(self.value)

    def __contains__(self, item: Any) -> bool:
        return any(part == item for part in self)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            bounds = tuple(None if b is None else int(b) for b in (key.start, key.stop, key.step))
            expr: Expr = ("slice", self.expr, *bounds)
            parts = self.value[slice(*bounds)]
            parts = [p.derived(p.value, ("item", expr, i)) for i, p in enumerate(parts)]
            return TList(self.recorder, parts, expr, self.sources)
        index = int(key)
        needed = index + 1 if index >= 0 else -index
        if not self.length() >= needed:
            raise IndexError(index)
        part: TStr = self.value[index]
        return part.derived(part.value, ("item", self.expr, index))

    def __eq__(self, other: object) -> Any:
        self._refused("==")

    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__
    __hash__ = Traced.__hash__


class _Opened:
    """A nested field of the user's own structure; opened, its structure becomes a fact of this path."""

    __slots__ = ()
    recorder: Recorder
    value: Any
    expr: Expr
    sources: frozenset[int]

    def opened(self) -> Any:
        """The value as plain dictionaries and lists of traced strings."""
        self.recorder.ask(("shape", self.expr), structure(self.value))
        return _open(self.recorder, self.value, self.expr, self.sources)

    def __getitem__(self, key: Any) -> Any:
        return self.opened()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.opened())

    def __len__(self) -> int:
        return len(self.opened())

    def __bool__(self) -> bool:
        return bool(self.recorder.ask(("bool", self.expr), bool(self.value)))

    def __eq__(self, other: object) -> Any:
        return self.opened() == (other.opened() if isinstance(other, _Opened) else other)

    __str__ = Traced.__str__
    __repr__ = Traced.__repr__
    __format__ = Traced.__format__
    __hash__ = Traced.__hash__
    _refused = Traced._refused


class TMap(_Opened, Traced, Mapping[Any, Any]):
    """A mapping of the user's own structure."""

    __slots__ = ()


class TSeq(_Opened, Traced, Sequence[Any]):
    """A list of the user's own structure."""

    __slots__ = ()


def _open(recorder: Recorder, value: Any, expr: Expr, sources: frozenset[int]) -> Any:
    if isinstance(value, str):
        return TStr(recorder, value, expr, sources)
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return value
    base = expr if expr[0] == "path" else ("path", expr)
    opened = {key: _open(recorder, item, (*base, key), sources) for key, item in items}
    return opened if isinstance(value, dict) else list(opened.values())


def wrap(recorder: Recorder, value: Any, index: int) -> Any:
    """The traced value of field number `index`."""
    kind = {str: TStr, dict: TMap, list: TSeq}[type(value)]
    return kind(recorder, value, ("field", index), frozenset((index,)))


def plain(x: Any) -> Any:
    """The value behind a traced value; tuples of them likewise."""
    if isinstance(x, TList):
        return [plain(v) for v in x.value]
    if isinstance(x, tuple):
        return tuple(map(plain, x))
    return x.value if isinstance(x, Traced) else x


def expression(x: Any) -> Expr:
    """The expression of a traced value, a constant for any other."""
    if isinstance(x, tuple | list) and any(isinstance(v, Traced) for v in x):
        raise Untraceable("a tuple of texts as an operand")
    return x.expr if isinstance(x, Traced) else ("const", x)


def concatenate(items: Iterable[Any]) -> "str | TStr":
    """Strings joined; traced as soon as one of them is. Neighbouring literals become one, empty ones go."""
    pieces: list[str | TStr] = []
    for item in items:
        for piece in item.pieces if isinstance(item, TStr) else (item,):
            if isinstance(piece, TStr):
                pieces.append(piece)
            elif piece and pieces and isinstance(pieces[-1], str):
                pieces[-1] += piece
            elif piece:
                pieces.append(piece)
    traced = [p for p in pieces if isinstance(p, TStr)]
    if not traced:
        return "".join(pieces)  # type: ignore[arg-type]
    if len(pieces) == 1:
        return traced[0]
    mixed = any(isinstance(p, str) or p.mixed for p in pieces)
    sources = frozenset[int]().union(*(p.sources for p in traced))
    expr: Expr = ("cat", *map(expression, pieces))
    return TStr(traced[0].recorder, "".join(map(plain, pieces)), expr, sources, mixed, tuple(pieces))


def _integer(text: TStr, value: int, expr: Expr) -> Any:
    return TInt(text.recorder, value, expr, text.sources) if text.recorder.recording else value


def _join(separator: TStr, items: Iterable[Any]) -> "str | TStr":
    joined: list[Any] = []
    for item in items:
        joined += [separator, item] if joined else [item]
    return concatenate(joined)


def _strip(text: TStr, name: str, chars: Any) -> "str | TStr":
    """`strip`, `lstrip`, `rstrip`; of a concatenation, the pieces at its ends, so that every piece keeps its origin."""
    if len(text.pieces) == 1:
        arguments = () if chars is None else (expression(chars),)
        return text.derived(
            getattr(text.value, name)(plain(chars)), ("call", name, text.expr, *arguments)
        )
    pieces: list[str | TStr] = list(text.pieces)
    if name != "rstrip":
        pieces = _strip_end(pieces, 0, "lstrip", chars)
    if name != "lstrip":
        pieces = _strip_end(pieces, -1, "rstrip", chars)
    return concatenate(pieces)


def _strip_end(pieces: list["str | TStr"], end: int, name: str, chars: Any) -> list["str | TStr"]:
    while pieces:
        piece = pieces[end]
        if isinstance(piece, str):
            pieces[end] = getattr(piece, name)(plain(chars))
        else:
            pieces[end] = _strip(piece, name, chars)
        if pieces[end]:  # asks whether anything is left of a traced piece
            break
        del pieces[end]
    return pieces
