"""What traced values share: a recorder that notes their questions, a base that refuses all else, and traced numbers."""

import operator
from collections.abc import Hashable
from typing import Any, NoReturn

from premask.render.expression import Expr


class Untraceable(BaseException):
    """A template observed its input in a way that cannot be replayed.

    Not an `Exception`: nothing that a template engine swallows may hide it.
    """


class Recorder:
    """Notes the questions of one render.

    With `recording` off nothing is noted: the render is good for its own conversation alone, so any question may be
    asked, also one that a replay could not ask again.
    """

    def __init__(self, recording: bool) -> None:
        self.recording = recording
        self.guards: dict[Expr, Any] = {}
        self.opened: dict[Expr, Hashable] = {}
        """The structures of the nested fields that the template looked into, recording or not."""

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
    """Base of all traced values: asks for truth and order, refuses what its classes do not offer."""

    __slots__ = ("expr", "recorder", "sources", "value")

    def __init__(self, recorder: Recorder, value: Any, expr: Expr, sources: frozenset[int]) -> None:
        self.recorder = recorder
        self.value = value
        """What the template would see, as plain Python."""
        self.expr = expr
        """How it was derived from the fields."""
        self.sources = sources
        """The fields whose text may be in it."""

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

    def _compare(self, operator: str, other: Any, answer: Any) -> bool:
        if not isinstance(plain(other), str if isinstance(self.value, str) else int | float):
            return bool(answer)  # the answer follows from the types alone
        return bool(self.recorder.ask(("cmp", operator, self.expr, expression(other)), bool(answer)))

    def __eq__(self, other: object) -> bool:
        return self._compare("==", other, self.value == plain(other))

    def __ne__(self, other: object) -> bool:
        return self._compare("!=", other, self.value != plain(other))

    def __lt__(self, other: Any) -> bool:
        return self._compare("<", other, self.value < plain(other))

    def __le__(self, other: Any) -> bool:
        return self._compare("<=", other, self.value <= plain(other))

    def __gt__(self, other: Any) -> bool:
        return self._compare(">", other, self.value > plain(other))

    def __ge__(self, other: Any) -> bool:
        return self._compare(">=", other, self.value >= plain(other))


class TInt(Traced):
    """A number that depends on text. Comparisons are asked; all else fixes the number."""

    __slots__ = ()

    def fixed(self) -> int:
        """The number itself, from here on a fact of this path."""
        return int(self.recorder.ask(self.expr, self.value))

    __index__ = fixed


class TNumber(TInt):
    """A number that a text spells (the filters `int` and `float`). Written out, it is still that text's."""

    __slots__ = ()

    def fixed(self) -> Any:
        """The number itself, from here on a fact of this path."""
        return self.recorder.ask(self.expr, self.value)

    def __index__(self) -> int:
        return operator.index(self.fixed())


def plain(x: Any) -> Any:
    """The value behind a traced value; tuples of them likewise."""
    if isinstance(x, tuple):
        return tuple(map(plain, x))
    return x.value if isinstance(x, Traced) else x


def expression(x: Any) -> Expr:
    """The expression of a traced value, a constant for any other."""
    if isinstance(x, tuple | list) and any(isinstance(v, Traced) for v in x):
        raise Untraceable("a tuple of texts as an operand")
    return x.expr if isinstance(x, Traced) else ("const", x)
