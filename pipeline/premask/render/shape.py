"""The shape of a conversation, and its fields.

What is not text (roles, keys, types, lengths of lists, numbers, booleans) is the **shape**: a hashable key. What is
text is the **fields**: a flat list, in the order of the shape. Two conversations of one shape differ in their fields
only, so whatever a template does depends on the shape and on what it observes of the fields.

Values whose structure is the user's own (tool schemas, arguments of a tool call, nested values under keys that no chat
format knows) are one field each, however deep: a template that looks inside asks for their `structure` first.
"""

from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeAlias

from premask.read import Conversation, plain_of

Path: TypeAlias = tuple[str | int, ...]
"""Where a field stands: `(message index, key, ...)`; tool schemas stand at `("tools", index)`."""

_CHAT_KEYS = frozenset(
    ("role", "content", "reasoning_content", "reasoning", "thinking", "tool_calls", "tool_call_id", "name", "function")
)
"""Keys under which the structure belongs to the chat format, not to the user."""


def is_field(key: str | int, value: Any) -> bool:
    """Whether the value under `key` is one field: a string, or a nested value of the user's own structure."""
    if type(value) is str:
        return True
    return isinstance(value, dict | list) and type(key) is str and key not in _CHAT_KEYS


def flatten(conversation: Conversation) -> tuple[Hashable, list[Any]]:
    """The shape of a conversation and its fields, in the order of `field_paths`."""
    tools = conversation.tools
    if conversation.plain and tools is None and not conversation.template_args:
        return conversation.plain
    key: list[Hashable] = [] if tools is None else [len(tools)]
    fields: list[Any] = [] if tools is None else list(tools)
    for message in conversation.messages:
        if plain := plain_of([message]):  # its role alone stands for it
            key += plain[0]
            fields += plain[1]
            continue
        key.append(None)
        for name, value in message.items():
            key.append(name)
            if name == "role":
                key.append(value)
            elif type(value) is str:
                fields.append(value)
            else:
                key.append(_flatten(name, value, fields))
        key.append(None)
    if conversation.template_args:
        key.append(structure(conversation.template_args, values=True))
    return tuple(key), fields


def _flatten(key: str | int, value: Any, fields: list[Any]) -> Hashable:
    if is_field(key, value):
        fields.append(value)
        return ("field", type(value))
    if isinstance(value, dict):
        return tuple((k, _flatten(k, v, fields)) for k, v in value.items())
    if isinstance(value, list):
        return (list, *(_flatten(i, v, fields) for i, v in enumerate(value)))
    return _scalar(value)


def _scalar(value: Any) -> Hashable:
    # The type tells True from 1; the text of a float tells -0.0 from 0.0, which are equal yet print differently.
    return (float, repr(value)) if type(value) is float else (type(value), value)


def structure(value: Any, values: bool = False) -> Hashable:
    """The structure of a nested value: everything but its strings; with `values`, its strings as well."""
    if type(value) is str:
        return (str, value) if values else str
    if isinstance(value, dict):
        return (dict, *((k, structure(v, values)) for k, v in value.items()))
    if isinstance(value, list):
        return (list, *(structure(v, values) for v in value))
    return _scalar(value)


def names(known: Hashable) -> Iterator[str]:
    """Every string in a shape or a structure: keys, roles, template arguments. A template writes them as literals."""
    if isinstance(known, str):
        yield known
    elif isinstance(known, tuple):
        for part in known:
            yield from names(part)


def map_fields(
    conversation: Conversation, function: Callable[[int, Path, Any], Any]
) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """Messages and tools with `function(number, path, value)` in place of every field, numbered as in `flatten`."""
    count = 0

    def visit(key: str | int, value: Any, path: Path) -> Any:
        nonlocal count
        if is_field(key, value):
            count += 1
            return function(count - 1, path, value)
        if isinstance(value, dict):
            return {k: visit(k, v, (*path, k)) for k, v in value.items()}
        if isinstance(value, list):
            return [visit(i, v, (*path, i)) for i, v in enumerate(value)]
        return value

    # Tools first, so that the beginning of a conversation numbers its fields as the whole does.
    tools = conversation.tools
    mapped = None if tools is None else [visit("tool", tool, ("tools", i)) for i, tool in enumerate(tools)]
    messages = [
        {name: value if name == "role" else visit(name, value, (index, name)) for name, value in message.items()}
        for index, message in enumerate(conversation.messages)
    ]
    return messages, mapped


def field_paths(conversation: Conversation) -> list[Path]:
    """Where each field of `flatten(conversation)` stands, in order."""
    paths: list[Path] = []
    map_fields(conversation, lambda number, path, value: paths.append(path))
    return paths


def copied(value: Any) -> Any:
    """A copy of JSON values, for a template to change: Jinja's sandbox lets some filters add to a list in place."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value
