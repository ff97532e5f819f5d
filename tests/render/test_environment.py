"""The sandbox, beside transformers' own."""

import datetime

import jinja2
import pytest
import transformers.utils.chat_template_utils as reference

from premask.errors import UsageError
from premask.render.environment import compile_template

DATE = datetime.date(2024, 2, 29)
MESSAGES = [{"role": "user", "content": "a<ü", "n": [1, 2.5, None, True]}]


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 2, 29)


def outcome(render):
    try:
        return render(messages=[dict(m) for m in MESSAGES], tools=None)
    except Exception as error:
        return type(error)


def both(source, monkeypatch):
    monkeypatch.setattr(reference, "datetime", Clock)
    return outcome(compile_template(source, DATE).render), outcome(reference._compile_jinja_template(source).render)


HARMLESS = [
    "{{ messages|tojson }}{{ messages|tojson(indent=2) }}{{ messages[0]|tojson(ensure_ascii=true, sort_keys=true) }}",
    "{{ messages[0].content|tojson(separators=(',', ':')) }}{{ messages[0].content|e }}{{ '<'|safe }}",
    "{{ strftime_now('%d %b %Y %H:%M') }}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% set ns = namespace(a=1) %}{% set ns.b = 2 %}{{ ns.a + ns.b }}{{ namespace(self=3)['self'] }}",
    "{{ dict(a=1) }}{{ dict.fromkeys('ab', 1) }}{{ dict([('a', 1)])['a'] }}",
    "  {% if true %}\n  x\n  {%- endif %}\n{# note #}\n y",
    "{{ raise_exception('no') }}",
    "{{ undefined_thing }}{{ messages[0].nothing }}{{ messages[9] }}",
    "{{ messages[9].content }}",
    "{{ 1 / 0 }}",
]
HOSTILE = [
    "{{ ''.__class__ }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ dict.mro() }}",
    "{{ dict.__class__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception['__globals__'] }}",
    "{{ strftime_now.__self__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0.__class__.__mro__}'.format_map({'0': 1}) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ messages[0].pop('content') }}",
    "{{ messages.clear() }}",
    "{{ range(1000000) }}",
    "{% for i in range(100001) %}{% endfor %}",
    "{% set ns = namespace(__class__=1) %}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns }}",
    "{{ namespace({'_a': 1})._a }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{{ self.__init__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__func__ }}{{ m._func }}",
]


@pytest.mark.parametrize("source", HARMLESS)
def test_renders_as_transformers_does(source, monkeypatch):
    ours, theirs = both(source, monkeypatch)
    assert ours == theirs


@pytest.mark.parametrize("source", HOSTILE)
def test_refuses_what_transformers_refuses(source, monkeypatch):
    """Nothing of Python is seen: an error, or nothing written; the same as in transformers, error for error."""
    ours, theirs = both(source, monkeypatch)
    assert ours == theirs or (isinstance(ours, type) and issubclass(ours, jinja2.exceptions.SecurityError))
    assert isinstance(ours, type) or ours.strip() == "" or ours.startswith("<Namespace")


def test_the_clock_is_pinned():
    assert compile_template("{{ strftime_now('%Y-%m-%d') }}", DATE).render() == "2024-02-29"


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ 'a", "{% for %}", "{{ a|nofilter }}", "{% generation %}", "{% nothing %}"]
)
def test_what_is_not_valid_jinja_is_said_with_its_line(source):
    with pytest.raises(UsageError, match="line 2: expected valid Jinja, found") as raised:
        compile_template("ok\n" + source, DATE)
    assert "--template" in str(raised.value)
