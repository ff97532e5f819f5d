"""The forms of a message that a template takes, found by probing, and conversations brought into them.

Templates disagree on how the same message is written: content as a string or as a list of parts, no content or an
empty one beside tool calls, arguments as an object or as JSON text. What one template needs, another refuses. Each form
is tried on the template once; rows are then written in the form that it renders. No text is added or lost.

As in transformers 5, a key whose value is null is left out, and the older names of the reasoning become
`reasoning_content`, with `thinking` beside it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from premask.errors import UsageError
from premask.read import Conversation
from premask.render.bounds import OutOfTime, TooMuch

Render = Callable[[Conversation], str]
Nulls: TypeAlias = Literal["absent", "empty", "null"]

_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True)
class Forms:
    """How a template takes messages."""

    strings: bool = True
    """Content as a string; otherwise as a list with one part of text."""
    parts: frozenset[str] = frozenset()
    """Roles that take lists of text parts; those of the others are joined by a line break."""
    nulls: Nulls = "absent"
    """No content beside tool calls: the key left out, null, or an empty text."""
    objects: bool = True
    """Arguments of a tool call as an object; otherwise as JSON text."""


def discover_forms(render: Render) -> Forms:
    """Probe a template. Where no form renders, the usual is kept, and rows will say why they fail.

    UsageError where the template goes beyond its bounds on a probe of a few words.
    """
    user: dict[str, Any] = {"role": "user", "content": "q1q"}
    answer: dict[str, Any] = {"role": "assistant", "content": "a1a"}
    strings = _shows(render, [user, answer], ("q1q", "a1a"))
    in_parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in (user, answer)]
    if not strings and not _shows(render, in_parts, ("q1q", "a1a")):
        strings = True
    found = _with_tool_forms(render, Forms(strings=strings))
    chat = [user, answer]
    probes = {
        "user": chat,
        "assistant": chat,
        "system": [{"role": "system", "content": "s1s"}, *chat],
        "developer": [{"role": "developer", "content": "s1s"}, *chat],
        "tool": _tool_probe(None).messages,
    }
    taking = [role for role, messages in probes.items() if _takes_parts(render, messages, role, found)]
    return replace(found, parts=frozenset(taking))


def _takes_parts(render: Render, messages: list[dict[str, Any]], role: str, forms: Forms) -> bool:
    """Whether of a list with two parts of text each is written, and nothing else of the list."""

    def rendered(*texts: str) -> str | None:
        parts = [{"type": "text", "text": text} for text in texts]
        changed = [{**m, "content": parts} if m["role"] == role else m for m in messages]
        conversation = Conversation(messages=changed, tools=None, template_args={}, weights=None)
        return _try(render, adapt(conversation, replace(forms, parts=frozenset((role,)))))

    chat = Conversation(messages=messages, tools=None, template_args={}, weights=None)
    plain = _try(render, adapt(chat, forms))
    if role == "assistant" and not forms.strings:
        return True
    two = rendered("x1x", "x2x")
    if plain is None or two is None:
        return False
    return "x1x" in two and "x2x" in two and two.count("text") == plain.count("text")


def _with_tool_forms(render: Render, forms: Forms) -> Forms:
    """Which of null or empty content, and objects or text as arguments, a template renders best."""
    for objects in (True, False):
        for nulls in get_args(Nulls):
            tried = replace(forms, nulls=nulls, objects=objects)
            text = _try(render, adapt(_tool_probe(None), tried))
            if text is not None and "f9f" in text and "v9v" in text and "None" not in text and "{'" not in text:
                return tried
    alone = Conversation(
        messages=[{"role": "user", "content": "q1q"}, {"role": "assistant", "content": None}],
        tools=None,
        template_args={},
        weights=None,
    )
    text = _try(render, adapt(alone, forms))
    return forms if text is not None and "None" not in text else replace(forms, nulls="empty")


def _tool_probe(content: str | None) -> Conversation:
    call = {"type": "function", "id": "c9c9c9c9c", "function": {"name": "f9f", "arguments": {"x": "v9v"}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "q1q"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "content": "r1r", "name": "f9f", "tool_call_id": "c9c9c9c9c"},
        {"role": "assistant", "content": "a1a"},
    ]
    return Conversation(messages=messages, tools=None, template_args={}, weights=None)


def _shows(render: Render, messages: list[dict[str, Any]], texts: Sequence[str]) -> bool:
    text = _try(render, Conversation(messages=messages, tools=None, template_args={}, weights=None))
    return text is not None and all(t in text for t in texts) and "{'" not in text


def _try(render: Render, conversation: Conversation) -> str | None:
    try:
        return render(conversation)
    except (MemoryError, OutOfTime):
        raise
    except TooMuch as error:
        raise UsageError(f"chat template: {error}; give another template with --template") from error
    except Exception:  # a template may raise anything: then it does not take this form
        return None


def adapt(conversation: Conversation, forms: Forms) -> Conversation:
    """A conversation in the forms of a template; the same object where nothing has to change."""
    if forms.strings and conversation.plain:
        return conversation
    messages = [_adapt(message, forms) for message in conversation.messages]
    if all(new is old for new, old in zip(messages, conversation.messages, strict=True)):
        return conversation
    return replace(conversation, messages=messages)


def _adapt(message: dict[str, Any], forms: Forms) -> dict[str, Any]:
    content = message.get("content")
    adapted = {key: value for key, value in message.items() if value is not None}
    if isinstance(content, str) and not forms.strings:
        adapted["content"] = [{"type": "text", "text": content}]
    elif isinstance(content, list) and message["role"] not in forms.parts and forms.strings:
        adapted["content"] = "\n".join(part["text"] for part in content)
    elif content is None and forms.nulls == "null":
        adapted = {key: value for key, value in message.items() if key == "content" or value is not None}
    elif content is None and forms.nulls == "empty":
        adapted["content"] = "" if forms.strings else []
    if not forms.objects and message.get("tool_calls"):
        adapted["tool_calls"] = [_with_text_arguments(call) for call in message["tool_calls"]]
    reasoning = next((adapted[key] for key in _REASONING if key in adapted), None)
    if reasoning is not None:
        adapted = {"thinking": reasoning, **adapted, "reasoning_content": reasoning}
    return message if adapted == message and list(adapted) == list(message) else adapted


def _with_text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    if isinstance(function.get("arguments"), str):
        return call
    text = json.dumps(function.get("arguments", {}), ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}
