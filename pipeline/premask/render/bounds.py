"""What a chat template may cost: a template is code from elsewhere, and the sandbox alone lets it run for ever.

Every render has a budget of steps. A call, an iteration and a filter cost one; text and lists that are made cost by
their length, and are paid for before they are made where one operation can make far more than it was given. So time and
memory are bounded, and the same conversation ends the same way on every machine: its row is rejected (`TooMuch`). A
second bound on processor time, far above the first, is for whatever steps do not see; it depends on the machine, so it
ends the run (`OutOfTime`) and never decides about a row. No signals: it holds in any thread.
"""

import functools
import re
import string
import time
from collections.abc import Callable, Iterator, Sized
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from premask.errors import DataError
from premask.read import Conversation
from premask.render.recording import Traced

STEPS = 5_000_000
"""Steps of a render, and one more for every character of its conversation. Real ones take a few thousand."""

SECONDS = 60.0
"""Processor time of a render."""

DEPTH = 64
"""Calls within calls: far below Python's own limit, which depends on who calls."""

LARGEST = 100_000
"""The largest width, count or precision; Jinja's sandbox allows ranges of this length."""

BITS = 4096
"""Size of the largest integer."""

_CHARACTERS = 32
_ITEMS = 8
"""Made for one step."""

_NODE = 128
"""Characters that a value costs when it is written, whatever it holds."""

_OFTEN = 2**16
"""Characters after which a long reckoning is paid in part."""

_STRUCTURAL = frozenset(("attr", "batch", "count", "default", "d", "dictsort", "first", "groupby", "items", "last"))
_STRUCTURAL |= frozenset(("length", "list", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "select"))
_STRUCTURAL |= frozenset(("selectattr", "slice", "sort", "sum", "unique"))
"""Filters that do not turn what they are given into text."""

_SIZED = frozenset(("batch", "center", "indent", "round", "slice", "tojson", "truncate", "wordwrap"))
"""Filters whose numbers are sizes."""


class TooMuch(SecurityError):
    """A template wants more than a render may cost."""


class OutOfTime(DataError):
    """A render takes longer than any should."""


class BoundedGenerator(CodeGenerator):
    """Jinja's code generator, with a step in front of what makes text or copies lists."""

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        super()._output_child_pre(node, frame, finalize)
        self.write("environment.shown(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")
        super()._output_child_post(node, frame, finalize)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """`a ~ b`."""
        self.write("environment.bounded(")
        super().visit_Concat(node, frame)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        """`a[b]`; a slice copies."""
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.bounded(")
        super().visit_Getitem(node, frame)
        self.write(")")


def count_iterations(tree: nodes.Template) -> nodes.Template:
    """A template whose loops spend a step every time around, also where their condition skips the rest."""
    for node in tree.find_all(nodes.For):
        step = nodes.EnvironmentAttribute("step")
        if node.test is None:
            node.body.insert(0, nodes.ExprStmt(step).set_lineno(node.lineno))
        else:
            node.test = nodes.And(step, node.test).set_lineno(node.lineno)
    return tree


def begin(template: jinja2.Template, conversation: Conversation) -> None:
    """Before `template`, which a BoundedEnvironment compiled, renders `conversation`."""
    environment = template.environment
    if not isinstance(environment, BoundedEnvironment):
        raise AssertionError("bug in premask: a template without bounds")
    environment.begin(conversation)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which rendering costs. Renders one conversation at a time."""

    code_generator_class: type[CodeGenerator] = BoundedGenerator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def begin(self, conversation: Conversation | None = None) -> None:
        """Before a render, and before compiling, which evaluates constants."""
        self.left, self.depth, self.spent = STEPS, 0, 0
        self.until = time.thread_time() + SECONDS
        if conversation is not None:
            values = [conversation.messages, conversation.tools, conversation.template_args]
            self.left += sum(map(_size, _nodes(values)))

    def bound_filters(self) -> None:
        """Put a price on every filter."""
        self.filters = {name: self._bound_filter(name, function) for name, function in self.filters.items()}

    def spend(self, steps: int) -> None:
        """Raise TooMuch where the budget is used up, OutOfTime where the clock is."""
        self.left -= steps
        if self.left < 0:
            self._refuse("goes on for longer, or makes more text, than any conversation needs")
        self.spent += 1
        if not self.spent & 255 and time.thread_time() > self.until:
            raise OutOfTime(
                f"chat template: expected a conversation to be rendered in milliseconds, found it unfinished after "
                f"{SECONDS:.0f} seconds of processor time; give another template with --template"
            )

    @property
    def step(self) -> bool:
        """One more time around a loop, paid for; always True. A property, because calls are dear in a sandbox."""
        self.spend(1)
        return True

    def afford(self, characters: int) -> None:
        """Raise TooMuch where so much text could not be paid for."""
        if characters // _CHARACTERS > self.left:
            self._refuse("makes more text than any conversation needs")

    def bounded(self, value: Any) -> Any:
        """`value`, which has just been made, paid for."""
        made = value.value if isinstance(value, Traced) else value
        if isinstance(made, str | bytes):
            self.spend(len(made) // _CHARACTERS)
        elif isinstance(made, list | tuple):
            self.spend(len(made) // _ITEMS)
        return value

    def shown(self, value: Any) -> Any:
        """`value`, which is about to become text, paid for."""
        if isinstance(value, list | tuple | dict):
            self.weigh(value)
            return value
        return self.bounded(value)

    def weigh(self, value: Any) -> int:
        """Pay for all that `value` holds, shared parts every time; how many values that are."""
        count = characters = 0
        for node in _nodes(value):
            count, characters = count + 1, characters + _NODE + _size(node)
            if characters > _OFTEN:
                self.spend(characters // _CHARACTERS)
                characters = 0
        self.spend(characters // _CHARACTERS)
        return count

    # Jinja's own operators and calls.

    def concat(self, pieces: Any) -> Any:
        """The output of a macro, a block or the whole template."""
        parts = list(pieces)
        self.afford(sum(map(len, parts)))
        return self.bounded("".join(parts))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`."""
        if operator == "%" and isinstance(left, str | bytes):
            self._check_percent(left, right)
        elif operator == "**" and _are_integers(left, right) and left.bit_length() * right > BITS:
            self._refuse("raises a number to a huge power")
        elif operator == "*":
            self._check_product(left, right)
        elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            self.afford(len(left) + len(right))
        return self.bounded(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call."""
        if self.depth >= DEPTH:
            self._refuse(f"calls itself more than {DEPTH} times over")
        self.spend(1)
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps `format`
        receiver = getattr(method, "__self__", None)
        if isinstance(receiver, str | bytes | int):
            args = self._check_method(receiver, getattr(method, "__name__", ""), args, kwargs)
        self.depth += 1
        try:
            return self.bounded(super().call(context, obj, *args, **kwargs))
        finally:
            self.depth -= 1

    def _bound_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        passed = int(hasattr(function, "jinja_pass_arg"))

        @functools.wraps(function)
        def bound(*args: Any, **named: Any) -> Any:
            self.spend(1)
            own = tuple(list(arg) if isinstance(arg, Iterator) and name == "join" else arg for arg in args[passed:])
            if own:
                self._check_filter(name, own[0], own[1:], named)
            return self.bounded(function(*args[:passed], *own, **named))

        return bound

    # What one operation can make of little.

    def _check_filter(self, name: str, value: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        further = [*args, *named.values()]
        largest = self._check_numbers(further) if name in _SIZED else 0
        count = 0 if name in _STRUCTURAL else self.weigh([value, *further])
        texts = [arg for arg in further if isinstance(arg, str)]
        if name in ("indent", "tojson"):
            lines = value.count("\n") + 1 if isinstance(value, str) else 16 * count  # indented as deep as it is nested
            self.afford(lines * (largest + sum(map(len, texts))))
        elif name == "replace":
            self._check_replace(value, *further[:2])
        elif name in ("join", "wordwrap"):
            sized = isinstance(value, Sized) and not isinstance(value, Traced)
            self.afford((len(value) if sized else 0) * sum(map(len, texts)))
        elif name == "format" and isinstance(value, str):
            self._check_percent(value, further)

    def _check_method(self, receiver: Any, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        if name in ("format", "format_map"):
            self._check_format(str(receiver), [*args, *named.values()])
            return args
        self._check_numbers([*args, *named.values()])
        if name == "replace":
            self._check_replace(receiver, *args[:2])
        elif name == "join" and args:
            items = list(args[0])
            self.afford(sum(len(i) for i in items if isinstance(i, str | bytes)) + len(receiver) * len(items))
            return (items, *args[1:])
        elif name == "expandtabs":
            self.afford(len(receiver) * (1 + max([8, *(a for a in [*args, *named.values()] if type(a) is int)])))
        elif name == "translate" and args and isinstance(args[0], dict):
            self.afford(len(receiver) * max([1, *(len(v) for v in args[0].values() if isinstance(v, str))]))
        return args

    def _check_numbers(self, values: list[Any]) -> int:
        largest = max((abs(value) for value in values if type(value) is int), default=0)
        if largest > LARGEST:
            self._refuse(f"asks for a size of {largest}" if largest < 10**20 else "asks for a huge size")
        return largest

    def _check_product(self, left: Any, right: Any) -> None:
        if _are_integers(left, right):
            if left.bit_length() + right.bit_length() > BITS:
                self._refuse("makes a huge number")
            return
        for value, times in ((left, right), (right, left)):
            if isinstance(value, str | bytes | list | tuple) and isinstance(times, int):
                self.afford(len(value) * times)

    def _check_replace(self, text: Any, old: Any = None, new: Any = None) -> None:
        if all(isinstance(value, str) for value in (text, old, new)):
            self.afford(len(text) + text.count(old) * len(new))
        elif isinstance(text, bytes) and isinstance(new, bytes):
            self.afford((len(text) + 1) * (len(new) + 1))

    def _check_percent(self, text: Any, values: Any) -> None:
        shown = text if isinstance(text, str) else text.decode(errors="replace")
        for width in re.findall(r"%(?:\([^)]*\))?[^%a-zA-Z(]*", shown):
            self._check_numbers([int(number) for number in re.findall(r"\d+", width[-20:])])
            if "*" in width:
                self._check_numbers(list(values) if isinstance(values, list | tuple) else [values])
        self.weigh(values)

    def _check_format(self, text: str, values: list[Any]) -> None:
        for _, _, spec, _ in string.Formatter().parse(text):
            self._check_numbers([int(number[:20]) for number in re.findall(r"\d+", spec or "")])
            if spec and "{" in spec:
                self._check_numbers(values)
        self.weigh(values)

    def _refuse(self, what: str) -> NoReturn:
        raise TooMuch(f"the template {what}")


def _are_integers(left: Any, right: Any) -> bool:
    return isinstance(left, int) and isinstance(right, int)


def _nodes(value: Any) -> Iterator[Any]:
    """Everything in a nested value, keys and shared parts included."""
    stack = [value]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, dict):
            stack += node.keys()
            stack += node.values()
        elif isinstance(node, list | tuple):
            stack += node


def _size(node: Any) -> int:
    return len(node) if isinstance(node, str | bytes) else 0
