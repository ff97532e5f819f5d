"""Hostile chat templates end soon, cost little memory, run no code; ordinary ones never notice the bounds."""

import contextlib
import datetime
import threading
import time
import tracemalloc
from typing import Any

import jinja2
import pytest

from premask.errors import DataError, UsageError
from premask.read import Conversation
from premask.render import bounds
from premask.render.bounds import OutOfTime, TooMuch, begin
from premask.render.environment import MAX_CHARACTERS, compile_template
from premask.render.program import ENDURED, Program
from premask.render.tracing import TracingEnvironment

DATE = datetime.date(2025, 1, 1)
CHAT = Conversation(
    messages=[{"role": "user", "content": "Is it? " * 5}, {"role": "assistant", "content": "It is."}],
    tools=None,
    template_args={},
)

ENDLESS = {
    "nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% for k in range(100000) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for i in range(100000) %}{% for j in range(100000) if false %}{% endfor %}{% endfor %}",
    "a macro that calls itself twice": "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "a recursive loop": "{% for i in [[1]] recursive %}{{ loop([i]) }}{{ loop([i]) }}{% endfor %}",
    "a filter over a range": "{% for i in range(100000) %}{{ range(100000)|list|length }}{% endfor %}",
    "map over a range": "{% for i in range(100000) %}{{ range(100000)|map('string')|join|length }}{% endfor %}",
    "sorting": "{% for i in range(100000) %}{{ range(100000)|sort|first }}{% endfor %}",
    "many slices": "{% for i in range(1000) %}{% for p in 'x'|slice(100000) %}{% endfor %}{% endfor %}",
}

GREEDY = {
    "a product": "{{ 'x' * 10000000000 }}",
    "a product with a list": "{{ ([0] * 10000000000)|length }}",
    "a product of the content": "{{ messages[0].content * 10000000000 }}",
    "doubling by +": "{% set n = namespace(s='xxxx') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(s='xxxx') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling a list": "{% set n = namespace(s=[0]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling by set": "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}"
    "{% set b %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = b %}{% endfor %}",
    "doubling by join": "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}"
    "{% set n.s = [n.s, n.s]|join %}{% endfor %}",
    "doubling by nesting": "{% set n = namespace(s=['xxxxxxxx']) %}{% for i in range(99) %}"
    "{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
    "nesting as JSON": "{% set n = namespace(s=['xxxxxxxx']) %}{% for i in range(99) %}"
    "{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s|tojson }}",
    "replace, the method": "{% set x = 'x' * 100000 %}{{ x.replace('x', x) }}",
    "replace, the filter": "{% set x = 'x' * 100000 %}{{ x|replace('x', x) }}",
    "replace by map": "{% set x = 'x' * 100000 %}{{ [x]|map('replace', 'x', x)|join }}",
    "replace of the content": "{% set x = 'x' * 1000000 %}{% set n = namespace(s=messages[0].content) %}"
    "{% for i in range(9) %}{% set n.s = n.s|replace(' ', x) %}{% endfor %}",
    "join, the method": "{% set x = 'x' * 1000000 %}{{ x.join(range(5000)|map('string')) }}",
    "join, the filter": "{% set x = 'x' * 1000000 %}{{ range(100000)|join(x) }}",
    "a width": "{{ 'x'.center(10000000000) }}",
    "a width in a filter": "{{ 'x'|center(10000000000) }}",
    "a width in a format": "{{ '{:10000000000}'.format('x') }}",
    "a nested width in a format": "{{ '{:{}}'.format('x', 10000000000) }}",
    "a width in a percent": "{{ '%10000000000d' % 1 }}",
    "a starred width": "{{ '%*d' % (10000000000, 1) }}",
    "a width in the format filter": "{{ '%10000000000s'|format('x') }}",
    "zeros": "{{ '1'.zfill(10000000000) }}",
    "tabs": "{{ ('\t' * 1000).expandtabs(10000000000) }}",
    "an indent": "{{ 'x\ny'|indent(10000000000) }}",
    "an indent of JSON": "{{ [[[1]]]|tojson(indent=10000000000) }}",
    "a batch": "{{ [1]|batch(10000000000, 'x')|list|length }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "squaring": "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "rounding": "{{ 1|round(1000000000, 'floor') }}",
    "bytes": "{{ (1).to_bytes(10000000000, 'big') }}",
    "translation": "{% set x = 'x' * 100000 %}{{ x.translate({120: x}) }}",
    "text by chance": "{{ lipsum(n=1000000000) }}",
    "the same text again and again": "{% set x = 'x' * 1000000 %}{% for i in range(100000) %}{{ x }}{% endfor %}",
    "many slices of a text": "{% set x = 'x' * 1000000 %}{% set n = namespace(l=[]) %}"
    "{% for i in range(100000) %}{% set n.l = n.l + [x[1:]] %}{% endfor %}",
    "wrapped words": "{% set x = 'x' * 100000 %}{{ x|wordwrap(1, wrapstring=x) }}",
}

CURIOUS = {
    "the class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "the class by a filter": "{{ (''|attr('__class__'))|attr('__mro__') }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals of a method": "{{ strftime_now.__self__.__class__ }}",
    "the environment": "{{ self._TemplateReference__context.environment }}",
    "a format string": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "a format string by a filter": "{{ ('{0.__class__}'|attr('format'))(messages) }}",
    "a map over attributes": "{{ [messages]|map(attribute='__class__')|list }}",
    "changing the messages": "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "changing a message": "{{ messages[0].update({'content': 'x'}) }}",
    "another template": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}",
    "a base": "{% extends 'x' %}",
}


def render(source: str, conversation: Conversation = CHAT, **variables: Any) -> str:
    template = compile_template(source, DATE)
    begin(template, conversation)
    return template.render(messages=conversation.messages, **variables)


def trace(source: str) -> None:
    from premask.render.recording import Recorder

    TracingEnvironment(DATE).compile_traced(source).render(Recorder(recording=False), CHAT, {})


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_an_endless_template_ends(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "STEPS", 100_000)
    began = time.thread_time()
    with pytest.raises(TooMuch):
        render(source)
    assert time.thread_time() - began < 10


@pytest.mark.parametrize("source", GREEDY.values(), ids=GREEDY)
def test_a_greedy_template_gets_little(source: str) -> None:
    began = time.thread_time()
    tracemalloc.start()
    try:
        with pytest.raises((jinja2.exceptions.SecurityError, OverflowError)):
            render(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**29
    assert time.thread_time() - began < 30


@pytest.mark.parametrize("source", CURIOUS.values(), ids=CURIOUS)
def test_a_curious_template_sees_nothing(source: str) -> None:
    before = [dict(message) for message in CHAT.messages]
    with contextlib.suppress(jinja2.exceptions.TemplateError, TypeError):
        seen = render(source)  # what the sandbox refuses may also be undefined, which is written as nothing
        assert seen in ("", "[Undefined]")
    assert before == CHAT.messages


@pytest.mark.parametrize("name", ["nested loops", "doubling by ~", "replace of the content", "the class", "a power"])
def test_the_traced_render_is_bounded_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a template does only when asked for a prompt is seen by the traced render alone."""
    monkeypatch.setattr(bounds, "STEPS", 100_000)
    with pytest.raises((jinja2.exceptions.SecurityError, BaseException)) as caught:
        trace({**ENDLESS, **GREEDY, **CURIOUS}[name])
    assert not isinstance(caught.value, MemoryError | RecursionError)


def test_time_is_bounded_where_steps_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SECONDS", 0.2)
    monkeypatch.setattr(bounds, "STEPS", 10**12)
    with pytest.raises(OutOfTime, match=r"milliseconds, found it unfinished after .*--template"):
        render(ENDLESS["filtered loops"])


def test_bounds_hold_off_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "STEPS", 100_000)
    caught: list[Exception] = []

    def run() -> None:
        try:
            render(ENDLESS["nested loops"])
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert [type(error) for error in caught] == [TooMuch]


def test_compiling_is_bounded() -> None:
    with pytest.raises(UsageError, match=r"at most 1,048,576 characters, found 1,048,577"):
        compile_template("x" * (MAX_CHARACTERS + 1), DATE)
    with pytest.raises(UsageError, match="expected a template that can be compiled"):
        compile_template("{{" + "(" * 20_000 + ")" * 20_000 + "}}", DATE)
    with pytest.raises(UsageError, match="expected a template that can be compiled"):
        compile_template("{% for i in x %}" * 200 + "{% endfor %}" * 200, DATE)


def test_a_long_conversation_is_no_hostile_one() -> None:
    """Every message looks at every other, as templates do that search for the last question."""
    source = "{% for m in messages %}{% for n in messages[::-1] %}{% endfor %}{{ m.content|trim }}{% endfor %}"
    messages = [{"role": "user", "content": " word" * 50}, {"role": "assistant", "content": "x"}] * 700
    assert len(render(source, Conversation(messages, None, {}))) == 700 * 250


def test_a_huge_message_is_no_hostile_one() -> None:
    content = "word " * 8_000_000
    source = "{% for m in messages %}{{ '<' ~ m.content.strip() + '>' }}{{ m.content|replace('w', 'v') }}{% endfor %}"
    assert len(render(source, Conversation([{"role": "user", "content": content}], None, {}))) == 80_000_001


def program(source: str) -> Program[None]:
    return Program(source, {}, DATE, lambda rendering: ([piece.text for piece in rendering.pieces], None))


def test_a_row_that_costs_too_much_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "STEPS", 10_000)
    bombing = "{% if 'bomb' in m.content %}{{ 'x' * 10000000 }}{% endif %}"
    source = "{% for m in messages %}{{ m.content }}" + bombing + "{% endfor %}"
    bomb = Conversation([{"role": "user", "content": "a bomb"}, CHAT.messages[1]], None, {})
    rendered = program(source).render([CHAT, bomb, CHAT])
    assert list(rendered.failures) == [1]
    assert rendered.failures[1].reason == "template_error"
    assert rendered.failures[1].detail == "the template makes more text than any conversation needs"
    assert rendered.texts[0] == rendered.texts[2] == "Is it? " * 5 + "It is."


REPLAYED = {
    "a replacement": "{{ m.content.replace('', last) }}",
    "one that is not shown": "{{ m.content.replace('', last)|length > 0 }}",
    "a question": "{{ 'b' if 'b' in m.content.replace('', last) }}{{ m.content }}",
    "tabs": "{{ m.content.expandtabs(90000) }}",
    "a text many times over": "{% for i in range(2000) %}{{ m.content }}{% endfor %}",
}


@pytest.mark.parametrize("what", REPLAYED)
def test_a_replay_costs_no_more_than_a_render(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a row is too much does not depend on rows before it, which taught the program its path."""
    monkeypatch.setattr(bounds, "STEPS", 100_000)
    source = "{% set last = messages[-1].content %}{% for m in messages[:1] %}" + REPLAYED[what] + "{% endfor %}"
    small, large = ("x", "y"), ("\tx" * 2000, "y" * 20_000)
    rows = [
        Conversation([{"role": r, "content": c} for r, c in zip(("user", "assistant"), texts, strict=True)], None, {})
        for texts in (small, large, small)
    ]
    afterwards, alone = program(source).render(rows), program(source).render(rows[1:2])
    assert list(afterwards.failures) == [1] and list(alone.failures) == [0]
    assert afterwards.failures[1] == alone.failures[0]
    assert "makes more text" in alone.failures[0].detail or "goes on for longer" in alone.failures[0].detail
    assert afterwards.texts[0] == afterwards.texts[2] != ""


def test_a_large_row_that_can_be_paid_for_is_rendered_as_ever() -> None:
    taught = program("{% for m in messages %}{{ m.content.replace('', '--') }}{% endfor %}")
    rows = [Conversation([{"role": "user", "content": c}], None, {}) for c in ("ab", "ab" * 300_000, "a")]
    rendered = taught.render(rows)
    assert rendered.failures == {} and rendered.texts[0] == "--a--b--"
    assert rendered.texts[1] == "--a--b" * 300_000 + "--"
    assert rendered.which.tolist() == [0, 1, 0]


def test_a_template_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "STEPS", 10_000)
    with pytest.raises(DataError, match=rf"goes on for longer.*, on {ENDURED + 1} of the rows .*--template"):
        program(ENDLESS["nested loops"]).render([CHAT] * 100)


def test_no_memory_is_no_fault_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(bounds.BoundedEnvironment, "shown", no_memory)
    with pytest.raises(MemoryError):
        program("{{ messages[0].content }}").render([CHAT])
