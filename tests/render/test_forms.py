import dataclasses

import jinja2
import pytest

from premask.read import Conversation
from premask.render.forms import Forms, adapt, discover_forms

ALL = frozenset(("user", "assistant", "system", "developer", "tool"))
USUAL = Forms(parts=ALL)
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "ü"}}}


def one(message, forms=USUAL):
    return adapt(Conversation([message]), forms).messages[0]


def discovered(source):
    template = jinja2.Environment(autoescape=False).from_string(source)  # noqa: S701
    return discover_forms(lambda c: template.render(messages=c.messages, tools=c.tools))


def test_what_needs_no_change_is_the_same_object():
    conversation = Conversation(
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [{"type": "text", "text": "b"}], "tool_calls": [CALL]},
        ]
    )
    assert adapt(conversation, USUAL) is conversation


def test_a_key_whose_value_is_null_is_left_out():
    message = {"role": "assistant", "content": None, "name": None, "tool_calls": [CALL]}
    assert one(message) == {"role": "assistant", "tool_calls": [CALL]}
    assert one(message, Forms(nulls="empty")) == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert one(message, Forms(nulls="null"))["content"] is None
    assert one(message, Forms(nulls="empty", strings=False))["content"] == []


def test_reasoning_has_the_names_that_transformers_gives_it():
    for name in ("reasoning_content", "thinking", "reasoning"):
        message = one({"role": "assistant", "content": "a", name: "r"})
        assert message["reasoning_content"] == message["thinking"] == "r"
    both = one({"role": "assistant", "content": "a", "reasoning": "x", "thinking": "y", "reasoning_content": None})
    assert (both["reasoning_content"], both["thinking"], both["reasoning"]) == ("y", "y", "x")


def test_contents_as_the_template_takes_them():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert one({"role": "user", "content": parts}, Forms())["content"] == "a\nb"
    assert one({"role": "user", "content": parts}, Forms(parts=frozenset(("user",))))["content"] == parts
    assert one({"role": "tool", "content": parts}, Forms(parts=frozenset(("user",))))["content"] == "a\nb"
    in_parts = one({"role": "user", "content": "a"}, Forms(strings=False))
    assert in_parts["content"] == [{"type": "text", "text": "a"}]


def test_arguments_as_text():
    message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    call = one(message, Forms(objects=False))["tool_calls"][0]
    assert call["function"]["arguments"] == '{"x": "ü"}'
    assert CALL["function"]["arguments"] == {"x": "ü"}
    again = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert one(again, Forms(objects=False))["tool_calls"][0] is call


@pytest.mark.parametrize("strings", [True, False])
@pytest.mark.parametrize("nulls", ["absent", "null", "empty"])
@pytest.mark.parametrize("objects", [True, False])
def test_adapting_twice_changes_nothing_more(strings, nulls, objects):
    forms = Forms(strings, ALL, nulls, objects)
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "thinking": "t", "tool_calls": [CALL]},
        {"role": "tool", "content": [{"type": "text", "text": "r"}]},
    ]
    once = adapt(Conversation(messages), forms)
    assert adapt(once, forms) is once


LOOP = "{% for m in messages %}%s{% endfor %}"
TEXT = "{{ m.content if m.content is string else m.content|map(attribute='text')|join }}"
CALLS = "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments%s }}{% endfor %}"


def test_forms_of_small_templates():
    plain = discovered(LOOP.replace("%s", "{{ m.role }}{{ m.content }}" + CALLS.replace("%s", "|tojson")))
    assert plain == Forms(parts=frozenset())
    lists = discovered(LOOP.replace("%s", "{{ m.role }}" + TEXT.replace("m.content", "(m.content or '')")))
    assert lists.strings and lists.parts >= {"user", "assistant", "system"}
    only = discovered(LOOP.replace("%s", "{% for p in m.content %}{{ p.text or raise('no') }}{% endfor %}"))
    assert not only.strings
    text = discovered(LOOP.replace("%s", "{{ m.content }}" + CALLS.replace("%s", " + ''")))
    assert not text.objects
    joined = discovered(LOOP.replace("%s", "{{ m['content'] + '' }}" + CALLS.replace("%s", "|tojson")))
    assert joined.nulls == "empty"
    null = "{{ '' if m['content'] is none else m['content'][0] + m['content'][1:] }}"
    asked = discovered(LOOP.replace("%s", null + "{{ 1 / 0 if m['content'] == '' }}" + CALLS.replace("%s", "|tojson")))
    assert asked.nulls == "null"


def test_a_template_that_renders_nothing_keeps_the_usual_forms():
    assert discovered("{{ nothing.at.all }}") == dataclasses.replace(Forms(), nulls="empty")
