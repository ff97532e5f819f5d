"""Traced values of the user's own structure: tool schemas, arguments, whatever stands under keys no chat format knows.

Each is one field. A template that writes it out derives one string from it; a template that looks inside asks for its
structure, and sees plain dictionaries and lists of traced strings from there on.
"""

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any

from jinja2.runtime import Undefined

from premask.render.expression import Expr
from premask.render.recording import Recorder, TInt, TNumber, Traced
from premask.render.shape import structure
from premask.render.values import TList, TStr, concatenate


class _Opened(Traced):
    """A nested field; opened, its structure becomes a fact of this path."""

    __slots__ = ()

    def opened(self) -> Any:
        """The value as plain dictionaries and lists of traced strings."""
        found = self.recorder.opened[self.expr] = structure(self.value)
        self.recorder.ask(("shape", self.expr), found)
        return _open(self.recorder, self.value, self.expr, self.sources)

    def __getitem__(self, key: Any) -> Any:
        return self.opened()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.opened())

    def __len__(self) -> int:
        return len(self.opened())

    def __eq__(self, other: object) -> bool:
        return bool(self.opened() == (other.opened() if isinstance(other, _Opened) else other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __lt__(self, other: object) -> Any:
        self._refused("a comparison")

    __le__ = __gt__ = __ge__ = __lt__
    __hash__ = Traced.__hash__


class TMap(_Opened, Mapping[Any, Any]):
    """A mapping of the user's own structure."""

    __slots__ = ()


class TSeq(_Opened, Sequence[Any]):
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


def wrap(recorder: Recorder, value: Any, index: int) -> TStr | TMap | TSeq:
    """The traced value of field number `index`."""
    kind = TMap if isinstance(value, dict) else TSeq if isinstance(value, list) else TStr
    return kind(recorder, value, ("field", index), frozenset((index,)))


def as_text(value: Any) -> str | TStr:
    """`str(value)`."""
    if isinstance(value, TStr):
        return value
    collection = type(value) in (list, tuple, dict) and not is_plain(value)
    return _represented(value) if collection or isinstance(value, Traced) else str(value)


def _represented(value: Any) -> str | TStr:
    """`repr(value)`, of collections item by item."""
    if type(value) is TStr:
        return value.derived(repr(value.value), ("repr", value.expr))
    if isinstance(value, TMap | TSeq):
        return TStr(value.recorder, repr(value.value), ("repr", value.expr), value.sources)
    if isinstance(value, TNumber):
        return TStr(value.recorder, str(value.value), ("str", value.expr), value.sources)
    if isinstance(value, TInt):
        return repr(value.fixed())
    if type(value) in (list, TList):
        return concatenate(("[", *_separated([_represented(item) for item in value]), "]"))
    if type(value) is tuple:
        return concatenate(("(", *_separated([_represented(item) for item in value]), ",)" if len(value) == 1 else ")"))
    if type(value) is dict:
        items = [concatenate((repr(key), ": ", _represented(item))) for key, item in value.items()]
        return concatenate(("{", *_separated(items), "}"))
    return repr(value)  # refuses what is traced, or holds it


def _separated(texts: list[str | TStr]) -> list[str | TStr]:
    return [part for text in texts for part in (", ", text)][1:]


def is_plain(value: Any) -> bool:
    """Whether a value is known to hold nothing traced; what cannot be looked into is not."""
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    if isinstance(value, list | tuple | KeysView | ValuesView | ItemsView):
        return not isinstance(value, Traced) and all(map(is_plain, value))
    return value is None or isinstance(value, str | int | float | range | Undefined)


def sources_of(value: Any) -> frozenset[int]:
    """The fields whose text may be in a value, however deep."""
    found, stack, seen = frozenset[int](), [value], set[int]()
    while stack:
        node = stack.pop()
        if isinstance(node, Traced):
            found |= node.sources
        elif isinstance(node, dict | list | tuple) and id(node) not in seen:  # parts may be shared many times over
            seen.add(id(node))
            stack += node.values() if isinstance(node, dict) else node
    return found
