"""The sandboxed Jinja environment of chat templates, as transformers sets it up.

Same class, same options, same functions (transformers 5.23, `utils/chat_template_utils.py`), with one difference: the
clock. `strftime_now` shows the date that the recipe pins, so that the same inputs give the same bytes on any day.
"""

import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from premask.errors import UsageError
from premask.render.bounds import BoundedEnvironment, count_iterations


class GenerationTag(Extension):
    """`{% generation %} ... {% endgeneration %}`: renders its body, which `mark_generation` may mark."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        """The tag as a call block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_generation"), [], [], body).set_lineno(line)

    def _generation(self, caller: Callable[[], Any]) -> Any:
        mark = getattr(self.environment, "mark_generation", None)
        return mark(caller) if mark else caller()


class TemplateDict:
    """`dict(...)` in a template, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """A new dictionary."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(*args, **kwargs)


class TemplateNamespace(Namespace):
    """`namespace(...)` in a template; names with a leading underscore are refused."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no `self`, so that `namespace(self=...)` works
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}: the name starts with an underscore")


def raise_exception(message: str) -> None:
    """What a template calls to refuse a conversation."""
    raise jinja2.exceptions.TemplateError(message)


def tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The `tojson` filter: plain JSON, nothing escaped for HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def set_up(environment: ImmutableSandboxedEnvironment, date: datetime.date) -> None:
    """Add the functions that chat templates may call."""
    moment = datetime.datetime.combine(date, datetime.time())
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = moment.strftime
    environment.globals["dict"] = TemplateDict()
    environment.globals["namespace"] = TemplateNamespace


def _by_chance(*_: Any, **__: Any) -> NoReturn:
    raise jinja2.exceptions.SecurityError("the template writes text by chance")


OPTIONS: Mapping[str, Any] = {
    "trim_blocks": True,
    "lstrip_blocks": True,
    "extensions": [GenerationTag, loopcontrols],
}


MAX_CHARACTERS = 2**20
"""No chat template is longer; the longest known has 20 thousand."""


def compile_template(source: str, date: datetime.date) -> jinja2.Template:
    """A chat template, compiled for ordinary rendering within bounds (`bounds.py`).

    Raises UsageError where the template is not valid Jinja.
    """
    if len(source) > MAX_CHARACTERS:
        raise UsageError(
            f"chat template: expected at most {MAX_CHARACTERS:,} characters, found {len(source):,}. "
            "Give another template with --template"
        )
    environment = BoundedEnvironment(**OPTIONS)
    set_up(environment, date)
    environment.globals["lipsum"] = _by_chance
    environment.bound_filters()
    environment.begin()
    try:
        code = environment.compile(count_iterations(environment.parse(source)))
        return environment.template_class.from_code(environment, code, environment.make_globals(None), None)
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise UsageError(
            f"chat template: expected a template that can be compiled, found: {type(error).__name__}: {error}. "
            "Give another template with --template"
        ) from error
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(
            f"chat template, line {error.lineno}: expected valid Jinja, found: {error.message}. "
            "Give another template with --template"
        ) from error
