"""Expressions over the fields of one conversation: how a traced string was derived, and what a template asked of it.

An expression is a nested tuple `(operator, operand, ...)`; its leaves are `("field", i)`, the i-th field of a
conversation (`shape.py`), and `("const", value)`, a value of the template. Expressions are data: `compile_expressions`
turns them into one Python function whose source holds operators and numbers only. Every constant reaches it through
its namespace, so no text of a template or a user is ever part of the source.

| operator | meaning |
|---|---|
| `("path", e, key, ...)` | `e[key][...]`, a string inside a nested field |
| `("cat", e, ...)` | the operands joined |
| `("call", name, e, arg, ...)` | the method `name` of `str`, one of `METHODS` |
| `("item", e, i)`, `("slice", e, a, b, c)` | an item or a slice, by number |
| `("json", e, options)`, `("repr", e)` | `json.dumps` as chat templates call it; `repr` |
| `("len", e)`, `("bool", e)`, `("shape", e)` | length, truth, the structure of a nested field |
| `("in", a, b)`, `("cmp", op, a, b)` | containment, comparison |
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from premask.render.shape import structure

Expr: TypeAlias = tuple[Any, ...]

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


def compile_expressions(expressions: Sequence[Expr]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """One function from a conversation's fields to the values of all `expressions`, in order.

    Subexpressions that occur more than once are computed once.
    """
    writer = _Writer(expressions)
    results = [writer.write(e) for e in expressions]
    lines = ["def run(f):", *writer.lines, f" return ({''.join(r + ', ' for r in results)})"]
    exec(compile("\n".join(lines), "<fill>", "exec"), writer.names)  # noqa: S102 - see the module's docstring
    run: Callable[[Sequence[Any]], tuple[Any, ...]] = writer.names["run"]
    return run


class _Writer:
    """Writes expressions as Python source; `names` holds the constants, `lines` the shared subexpressions."""

    def __init__(self, expressions: Iterable[Expr]) -> None:
        self.names: dict[str, Any] = {"J": to_json, "S": structure}
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

    def _constant(self, value: Any) -> str:
        name = f"c{len(self.names)}"
        self.names[name] = value
        return name

    def _source(self, e: Expr) -> str:
        match e:
            case ("field", int(i)):
                return f"f[{i}]"
            case ("const", value):
                return self._constant(value)
            case ("path", base, *keys):
                return self.write(base) + "".join(f"[{self._constant(key)}]" for key in keys)
            case ("cat", *parts):
                return f"''.join(({''.join(self.write(p) + ', ' for p in parts)}))"
            case ("call", name, base, *arguments) if name in METHODS:
                return f"{self.write(base)}.{name}({', '.join(self.write(a) for a in arguments)})"
            case ("item", base, int(i)):
                return f"{self.write(base)}[{i}]"
            case ("slice", base, *bounds) if all(b is None or isinstance(b, int) for b in bounds):
                return f"{self.write(base)}[{':'.join('' if b is None else str(b) for b in bounds)}]"
            case ("json", base, options):
                return f"J({self.write(base)}, {self._constant(options)})"
            case (("len" | "bool" | "repr") as function, base):
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
        case ("call" | "cmp", _, *operands) | ("cat" | "in", *operands):
            return operands
    return []
