"""The forms of a message that a template takes, found by probing, and conversations brought into them.

Templates disagree on how the same message is written: content as a string or as a list of parts, null or "" beside
tool calls, arguments as an object or as JSON text. What one template needs, another refuses, or prints as the word None.
Each form is tried on the template once; rows are then written in the form that it renders. No text is added or lost.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from premask.read import Conversation

Render = Callable[[Conversation], str]


@dataclass(frozen=True, slots=True)
class Forms:
    """How a template takes messages."""

    strings: bool = True
    """Content as a string; otherwise as a list with one part of text."""
    parts: bool = True
    """Lists of text parts; otherwise their texts are joined by a line break."""
    nulls: bool = True
    """Null content beside tool calls; otherwise an empty string."""
    objects: bool = True
    """Arguments of a tool call as an object; otherwise as JSON text."""


def discover_forms(render: Render) -> Forms:
    """Probe a template. Raises nothing: where no form renders, the usual one is kept and rows will say why they fail."""
    user = {"role": "user", "content": "q1q"}
    answer = {"role": "assistant", "content": "a1a"}
    strings = _shows(render, [user, answer], ("q1q", "a1a"))
    in_parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in (user, answer)]
    if not strings and not _shows(render, in_parts, ("q1q", "a1a")):
        strings = True
    two = [{"type": "text", "text": "q1q"}, {"type": "text", "text": "q2q"}]
    answer = answer if strings else in_parts[1]
    parts = _shows(render, [{"role": "user", "content": two}, answer], ("q1q", "q2q"))
    found = Forms(strings=strings, parts=parts or not strings)
    return replace(found, **_tool_forms(render, found))


def _tool_forms(render: Render, forms: Forms) -> dict[str, bool]:
    """Which of null or empty content, and objects or text as arguments, a template renders best."""
    for objects in (True, False):
        for nulls in (True, False):
            conversation = adapt(_tool_probe(None), replace(forms, nulls=nulls, objects=objects))
            text = _try(render, conversation)
            if text is not None and "f9f" in text and "v9v" in text and "None" not in text and "{'" not in text:
                return {"objects": objects, "nulls": nulls}
    alone = Conversation(
        messages=[{"role": "user", "content": "q1q"}, {"role": "assistant", "content": None}],
        tools=None,
        template_args={},
        weights=None,
    )
    text = _try(render, adapt(alone, forms))
    return {"objects": True, "nulls": text is not None and "None" not in text}


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
    except Exception:  # a template may raise anything: then it does not take this form
        return None


def adapt(conversation: Conversation, forms: Forms) -> Conversation:
    """A conversation in the forms of a template; the same object where nothing has to change.

    Older names of the reasoning become `reasoning_content`, and `thinking` beside it, as in transformers 5.
    """
    messages = [_adapt(message, forms) for message in conversation.messages]
    if all(new is old for new, old in zip(messages, conversation.messages, strict=True)):
        return conversation
    return replace(conversation, messages=messages)


def _adapt(message: dict[str, Any], forms: Forms) -> dict[str, Any]:
    content = message.get("content")
    if len(message) == 2 and type(content) is str and forms.strings:
        return message
    changed: dict[str, Any] = {}
    if isinstance(content, str) and not forms.strings:
        changed["content"] = [{"type": "text", "text": content}]
    elif isinstance(content, list) and not forms.parts:
        changed["content"] = "\n".join(part["text"] for part in content)
    elif content is None and "content" in message and not forms.nulls:
        changed["content"] = "" if forms.strings else []
    if not forms.objects and message.get("tool_calls"):
        changed["tool_calls"] = [_with_text_arguments(call) for call in message["tool_calls"]]
    reasoning = next((r for k in ("reasoning_content", "thinking", "reasoning") if (r := message.get(k)) is not None), None)
    if reasoning is not None:
        return {"thinking": reasoning, **message, "reasoning_content": reasoning, **changed}
    return {**message, **changed} if changed else message


def _with_text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    if isinstance(function.get("arguments"), str):
        return call
    text = json.dumps(function.get("arguments", {}), ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}
