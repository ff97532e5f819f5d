"""A list of messages, as people write it, to OpenAI's shape: roles, contents, loss weights.

In: `[{"role", "content", ...}]` or ShareGPT's `[{"from", "value", ...}]`. Out: new lists; the input is never changed,
but a message that needs no change is passed on as it is. Text messages of two keys, nearly all there are, take the
short way through `read_messages` (about 0.1 us each); whatever else a message holds is the business of `_read_message`.
"""

import math
from typing import Any, TypeAlias

from premask.read.conversation import Message
from premask.read.faults import MISSING, Fault, check_json, wrong_type
from premask.read.tools import read_call, read_call_text, read_tool_calls

Weights: TypeAlias = list[float | None] | None

ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))
"""The roles of a conversation that was read."""

ALIASES = {role: role for role in ROLES} | {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""Every role that may be written, but `function_call` (an assistant turn that holds nothing but calls)."""

LOSS_KEYS = frozenset(("train", "training", "weight", "loss_weight", "loss"))
"""Keys that state a message's loss weight, in the words of premask, Axolotl, OpenAI, LLaMA-Factory and others."""

_TEXT_KEYS = ("name", "tool_call_id", "reasoning_content", "reasoning", "thinking")
_REASONING = ("reasoning", "thinking")
_FIX = "correct the row, or drop it"


def read_messages(items: Any, where: str) -> tuple[list[Message], Weights]:
    """Read a list of messages; the weights are None when no message states one.

    Raises:
        Fault: a wrong type anywhere, an unknown role, unsupported content, an empty list.

    """
    if type(items) is not list:
        raise wrong_type(where, "a list of messages", items, _FIX)
    if not items:
        raise Fault("empty_conversation", where, "at least one message", "none", "drop the row")
    messages: list[Message] = []
    weights: dict[int, float] = {}
    for index, item in enumerate(items):
        if type(item) is dict and len(item) == 2:
            role = item.get("role")
            if type(role) is str and role in ROLES and type(item.get("content")) is str:
                messages.append(item)
                continue
            role, value = item.get("from"), item.get("value")
            if type(role) is str and role in ALIASES and type(value) is str:
                messages.append({"role": ALIASES[role], "content": value})
                continue
        message, weight = _read_message(item, f"{where}[{index}]")
        messages.append(message)
        if weight is not None:
            weights[index] = weight
    return messages, [weights.get(index) for index in range(len(messages))] if weights else None


def _read_message(item: Any, where: str) -> tuple[Message, float | None]:
    if type(item) is not dict:
        raise wrong_type(where, "a message such as {'role': 'user', 'content': '...'}", item, _FIX)
    renamed: dict[str, str] = {}
    if "role" not in item:
        renamed["from"] = "role"
    if "content" not in item:
        renamed["value"] = "content"
    fields: Message = item
    message = {renamed.get(key, key): value for key, value in fields.items() if key not in LOSS_KEYS}
    for key in _TEXT_KEYS:
        if key in message and message[key] is not None and type(message[key]) is not str:
            raise wrong_type(f"{where}.{key}", "text", message[key], _FIX)
    if message.get("tool_calls") is not None:
        message["tool_calls"] = read_tool_calls(message["tool_calls"], f"{where}.tool_calls")
    if message.get("function_call") is not None:  # OpenAI's key before there were several calls
        _add_calls(message, [read_call(message.pop("function_call"), f"{where}.function_call")])
    _read_role(message, where)
    _read_content(message, where)
    for key, value in message.items():
        if type(value) is dict or (type(value) is list and key != "tool_calls"):
            check_json(value, f"{where}.{key}")
        elif type(value) is bytes:
            raise wrong_type(f"{where}.{key}", "values that JSON can hold", value, "write it as text, or drop it")
    return message, _read_weight(item, where)


def _read_role(message: Message, where: str) -> None:
    """Put the role in OpenAI's words; the calls of a `function_call` turn become its `tool_calls`."""
    role = message.get("role", MISSING)
    if type(role) is not str:
        raise wrong_type(f"{where}.role", "the role as text", role, _FIX)
    if role == "function_call":
        calls = read_call_text(message.get("content", MISSING), f"{where}.content")
        message.update(role="assistant", content="")
        _add_calls(message, calls)
    elif role in ALIASES:
        message["role"] = ALIASES[role]
    else:
        known = ", ".join(sorted([*ALIASES, "function_call"]))
        remedy = "rename the role to one of these, map it to one (role_map), or drop the message"
        raise Fault("unknown_role", f"{where}.role", f"one of {known}", repr(role[:40]), remedy)


def _read_content(message: Message, where: str) -> None:
    content = message.get("content", MISSING)
    if type(content) is list:
        _read_parts(message, content, f"{where}.content")
    elif content is None or content is MISSING:
        speaks = ("tool_calls", "reasoning_content", *_REASONING)
        if message["role"] != "assistant" or not any(message.get(key) for key in speaks):
            remedy = "write '' for an empty message; only tool calls or reasoning may stand without content"
            raise wrong_type(f"{where}.content", "text", content, remedy)
    elif type(content) is not str:
        remedy = "write numbers and objects as text (an object as its JSON text)"
        raise wrong_type(f"{where}.content", "text or a list of parts", content, remedy)


def _read_parts(message: Message, parts: list[Any], where: str) -> None:
    """Sort content parts: text stays, reasoning and tool calls go to the message's own keys for them."""
    texts: list[dict[str, Any]] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, part in enumerate(parts):
        here = f"{where}[{index}]"
        if type(part) is not dict:
            raise wrong_type(here, "a part such as {'type': 'text', 'text': '...'}", part, _FIX)
        kind = part.get("type", MISSING)
        if kind == "text":
            texts.append(_read_text_part(part, here))
        elif kind in _REASONING and message["role"] == "assistant":
            thoughts.append(_text_of(part, here, ("value", "text", kind)))
        elif kind == "tool_call" and message["role"] == "assistant":
            calls += read_call_text(part.get("value", MISSING), f"{here}.value")
        elif type(kind) is not str:
            raise wrong_type(f"{here}.type", "text", kind, _FIX)
        else:
            expected = "parts of type text (and reasoning, thinking or tool_call in an assistant message)"
            found, remedy = repr(kind[:40]), "premask prepares text only: drop the part or the row"
            raise Fault("unsupported_content", f"{here}.type", expected, found, remedy)
    message["content"] = texts or ""
    if thoughts:
        before = message.get("reasoning_content")
        message["reasoning_content"] = "\n".join([before, *thoughts] if before else thoughts)
    if calls:
        _add_calls(message, calls)


def _read_text_part(part: dict[str, Any], where: str) -> dict[str, Any]:
    if type(part.get("text")) is str:
        return part
    text = _text_of(part, where, ("text", "value"))
    return {"type": "text", "text": text} | {key: part[key] for key in part if key not in ("type", "text", "value")}


def _text_of(part: dict[str, Any], where: str, keys: tuple[str, ...]) -> str:
    for key in keys:
        text = part.get(key)
        if type(text) is str:
            return text
        if text is not None:
            raise wrong_type(f"{where}.{key}", "text", text, _FIX)
    raise wrong_type(where, f"the text under {' or '.join(keys)}", part, _FIX)


def _add_calls(message: Message, calls: list[dict[str, Any]]) -> None:
    message["tool_calls"] = [*(message.get("tool_calls") or []), *calls]


def _read_weight(item: Message, where: str) -> float | None:
    """Read the loss weight a message states under any of `LOSS_KEYS`: a boolean switches, a number weighs."""
    if LOSS_KEYS.isdisjoint(item):
        return None
    stated = {key: value for key, value in item.items() if key in LOSS_KEYS and value is not None}
    if not stated:
        return None
    numbers = set()
    for key, value in stated.items():
        if type(value) not in (bool, int, float) or not 0 <= value < math.inf:
            remedy = "write false or 0 to mask the message, true or a weight to train it"
            raise wrong_type(f"{where}.{key}", "a boolean, or a number of at least 0", value, remedy)
        if type(value) is not bool:
            numbers.add(float(value))
    if len(numbers) > 1:
        found = ", ".join(f"{key} {value}" for key, value in stated.items())
        raise Fault("conflicting_fields", where, "one loss weight", found, "keep one of the keys")
    if any(value is False for value in stated.values()):
        return 0.0
    return numbers.pop() if numbers else 1.0
