"""Expressions over the fields of one conversation: how a traced string was derived, and what a template asked of it.

An expression is a nested tuple `(operator, operand, ...)`; its leaves are `("field", i)`, the i-th field of a
conversation (`shape.py`), and `("const", value)`, a value of the template. Expressions are data: `compile_expression`
turns one into a Python function whose source holds operators and numbers only. Every constant reaches it through
its namespace, so no text of a template or a user is ever part of the source.

| operator | meaning |
|---|---|
| `("path", e, key, ...)` | `e[key][...]`, a string inside a nested field |
| `("cat", e, ...)` | the operands joined |
| `("call", name, e, arg, ...)` | the method `name` of `str`, one of `METHODS` |
| `("item", e, i)`, `("slice", e, a, b, c)` | an item or a slice, by number |
| `("json", e, options)`, `("repr", e)` | `json.dumps` as chat templates call it; `repr` |
| `("int", e, default, base)`, `("float", e, default)`, `("str", e)` | the filters of Jinja; `str` |
| `("len", e)`, `("bool", e)`, `("shape", e)` | length, truth, the structure of a nested field |
| `("in", a, b)`, `("cmp", op, a, b)` | containment, comparison |
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from jinja2.filters import do_float, do_int

from premask.render.shape import structure

Expr: TypeAlias = tuple[Any, ...]

Fill: TypeAlias = Callable[[Sequence[Any]], tuple[str, tuple[int, ...]] | None]
"""From a conversation's fields to its text and the UTF-8 bytes of its pieces that are no literals."""

DERIVING_METHODS = frozenset(
    "strip lstrip rstrip split rsplit splitlines partition rpartition replace upper lower title capitalize swapcase "  # noqa: SIM905
    "casefold removeprefix removesuffix expandtabs zfill center ljust rjust join".split()
)
"""Methods of `str` whose results are strings, or sequences of strings."""

ASKING_METHODS = frozenset(
    "startswith endswith find rfind index rindex count isalnum isalpha isascii isdecimal isdigit isidentifier islower "  # noqa: SIM905
    "isnumeric isprintable isspace istitle isupper".split()
)
"""Methods of `str` whose results are numbers or truth values."""

METHODS = DERIVING_METHODS | ASKING_METHODS
COMPARISONS = frozenset(("==", "!=", "<", "<=", ">", ">="))


def to_json(value: Any, options: tuple[tuple[str, Any], ...]) -> str:
    """`json.dumps` with the options that the `tojson` filter of chat templates passes."""
    return json.dumps(value, **dict(options))


LARGEST = 2**20
"""Characters that a replay may make; what makes more is left to Jinja's own rendering, which has a budget."""


class TooLarge(Exception):
    """A replay would make more text than it may."""


def replaced(text: str, old: str, new: str, count: int = -1) -> str:
    """`text.replace(old, new, count)`. Raises TooLarge where little makes much."""
    if (len(text) + 1) * len(new) > LARGEST and len(text) + text.count(old) * len(new) > LARGEST:
        raise TooLarge
    return text.replace(old, new, count)


def expanded(text: str, size: int = 8) -> str:
    """`text.expandtabs(size)`. Raises TooLarge where little makes much."""
    if len(text) + text.count("\t") * size > LARGEST:
        raise TooLarge
    return text.expandtabs(size)


def compile_expression(expression: Expr) -> Callable[[Sequence[Any]], Any]:
    """One function from a conversation's fields to the value of an expression.

    Subexpressions that occur more than once are computed once. The function raises TooLarge for fields of which the
    expression would make more than `LARGEST` characters.
    """
    writer = _Writer([expression])
    result = writer.write(expression)
    return _compiled(["def run(f):", *writer.lines, f" return {result}"], writer)


def _compiled(lines: Sequence[str], writer: "_Writer") -> Callable[[Sequence[Any]], Any]:
    exec(compile("\n".join(lines), "<fill>", "exec"), writer.names)  # noqa: S102 - see the module's docstring
    run: Callable[[Sequence[Any]], Any] = writer.names["run"]
    return run


def compile_fill(pieces: Sequence[str | Expr], guards: Mapping[Expr, Any] = MappingProxyType({})) -> Fill:
    """One function from a conversation's fields to a text, its pieces joined, and the bytes of those that are derived.

    It asks the questions `guards` first, in order, and returns None at the first answer that is another. It raises
    TooLarge where its pieces make more than `LARGEST` characters, before they are joined.
    """
    expressions = [piece for piece in pieces if not isinstance(piece, str)]
    writer = _Writer([*guards, *expressions])
    for question, answer in guards.items():
        asked = writer.write(question)
        writer.lines.append(f" if {asked} != {writer.constant(answer)}: return")
    results = [writer.write(e) for e in expressions]
    writer.names |= {"M": LARGEST - sum(len(p) for p in pieces if isinstance(p, str)), "L": TooLarge}
    values = iter(range(len(results)))
    joined = [writer.constant(p) if isinstance(p, str) else f"v{next(values)}" for p in pieces]
    numbers = range(len(results))
    lines = [
        "def run(f):",
        *writer.lines,
        *(f" v{n} = {result}" for n, result in enumerate(results)),
        *(f" n{n} = len(v{n})" for n in numbers),
        f" if {' + '.join(f'n{n}' for n in numbers) or 0} > M: raise L",
        f" t = ''.join(({''.join(j + ', ' for j in joined)}))",
        f" if t.isascii(): return t, ({''.join(f'n{n}, ' for n in numbers)})",
        f" return t, ({''.join(f'len(v{n}.encode()), ' for n in numbers)})",
    ]
    return _compiled(lines, writer)


class _Writer:
    """Writes expressions as Python source; `names` holds the constants, `lines` the shared subexpressions."""

    def __init__(self, expressions: Iterable[Expr]) -> None:
        self.names: dict[str, Any] = {"J": to_json, "S": structure, "R": replaced, "T": expanded}
        self.names |= {"I": do_int, "F": do_float}
        self.lines: list[str] = []
        self.uses: Counter[Expr] = Counter()
        self.shared: dict[Expr, str] = {}
        for e in expressions:
            self._count(e)

    def _count(self, e: Expr) -> None:
        if e[0] not in ("field", "const"):
            self.uses[e] += 1
            if self.uses[e] == 1:
                for operand in _operands(e):
                    self._count(operand)

    def write(self, e: Expr) -> str:
        """The source of `e`, as an expression."""
        if self.uses[e] < 2:
            return self._source(e)
        if e not in self.shared:
            source = self._source(e)
            self.shared[e] = f"t{len(self.shared)}"
            self.lines.append(f" {self.shared[e]} = {source}")
        return self.shared[e]

    def constant(self, value: Any) -> str:
        """A name for a constant."""
        name = f"c{len(self.names)}"
        self.names[name] = value
        return name

    def _source(self, e: Expr) -> str:
        match e:
            case ("field", int(i)):
                return f"f[{i}]"
            case ("const", value):
                return self.constant(value)
            case ("path", base, *keys):
                return self.write(base) + "".join(f"[{self.constant(key)}]" for key in keys)
            case ("cat", *parts):
                return f"''.join(({''.join(self.write(p) + ', ' for p in parts)}))"
            case ("call", ("replace" | "expandtabs") as name, *operands):
                return f"{'R' if name == 'replace' else 'T'}({', '.join(map(self.write, operands))})"
            case ("call", name, base, *arguments) if name in METHODS:
                return f"{self.write(base)}.{name}({', '.join(self.write(a) for a in arguments)})"
            case ("item", base, int(i)):
                return f"{self.write(base)}[{i}]"
            case ("slice", base, *bounds) if all(b is None or isinstance(b, int) for b in bounds):
                return f"{self.write(base)}[{':'.join('' if b is None else str(b) for b in bounds)}]"
            case ("json", base, options):
                return f"J({self.write(base)}, {self.constant(options)})"
            case (("int" | "float") as function, base, *arguments):
                numbers = "".join(f", {self.constant(argument)}" for argument in arguments)
                return f"{function[0].upper()}({self.write(base)}{numbers})"
            case (("len" | "bool" | "repr" | "str") as function, base):
                return f"{function}({self.write(base)})"
            case ("shape", base):
                return f"S({self.write(base)})"
            case ("in", a, b):
                return f"({self.write(a)} in {self.write(b)})"
            case ("cmp", operator, a, b) if operator in COMPARISONS:
                return f"({self.write(a)} {operator} {self.write(b)})"
        raise AssertionError(f"bug in premask: unknown expression {e[0]!r}")


def _operands(e: Expr) -> list[Expr]:
    """The operands of `e` that are expressions themselves."""
    match e:
        case ("path" | "item" | "slice" | "json" | "len" | "bool" | "repr" | "shape", base, *_):
            return [base]
        case ("int" | "float" | "str", base, *_):
            return [base]
        case ("call" | "cmp", _, *operands) | ("cat" | "in", *operands):
            return operands
    return []
