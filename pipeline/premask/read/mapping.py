"""A shape by hand: where a file keeps what the known shapes keep under other names, as a recipe says it.

    {"id": 7, "data": {"turns": [{"speaker": "bot", "utterance": "Hi."}]}, "meta": {"persona": "You are ..."}}

    Shape(columns={"messages": "data.turns", "system": "meta.persona"},
          message_keys={"role": "speaker", "content": "utterance"}, role_map={"bot": "assistant"})

A path is the name of a column, or names of nested keys with dots between them (a column whose own name holds the dots
wins). Rows are brought into the known names, then read like any others; `PLAIN` costs nothing.
"""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from premask.errors import UsageError
from premask.read.conversation import Rejected
from premask.read.faults import MISSING
from premask.read.messages import ALIASES
from premask.read.tools import parse_text

COLUMNS = (
    *("messages", "conversations", "instruction", "input", "output", "response", "history"),
    *("prompt", "completion", "text", "system", "tools", "chat_template_kwargs"),
)
"""Every column that `convert` looks at."""

MESSAGE_KEYS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name", "train", "weight")
"""Keys of a message that another name can be given for."""

_LISTS = ("messages", "conversations", "prompt", "completion")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What of a row stands where, beyond the names that are known. UsageError for a name that means nothing."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Path in the row by known column, such as `{"messages": "data.turns"}`; it wins over one of the known name."""

    message_keys: Mapping[str, str] = field(default_factory=dict)
    """Key in a message by known key, such as `{"content": "utterance"}`."""

    role_map: Mapping[str, str] = field(default_factory=dict)
    """Known role by the role as it is written, such as `{"bot": "assistant"}`."""

    drop_nulls: bool = False
    """Remove null values, with their keys, from every object inside a row. Tables write nulls where a row had no such
    key; a null that was written on purpose goes with them, since nothing tells it apart."""

    def __post_init__(self) -> None:
        _require_known("columns", self.columns, COLUMNS)
        _require_known("message_keys", self.message_keys, MESSAGE_KEYS)
        _require_known("role_map", self.role_map.values(), (*ALIASES, "function_call"))

    def read(self, row: dict[str, Any]) -> dict[str, Any]:
        """Bring a row into the known names. The row itself is never changed."""
        if self.drop_nulls:
            row = {name: without_nulls(value) for name, value in row.items()}
        if self.columns:
            found = {name: _at(row, path) for name, path in self.columns.items()}
            kept = {name: value for name, value in row.items() if name not in found}
            row = kept | {name: value for name, value in found.items() if value is not MISSING}
        if self.message_keys or self.role_map:
            row = row | {name: self._messages(row[name]) for name in _LISTS if name in row}
        return row

    def _messages(self, value: Any) -> Any:
        items = json_list(value)
        return [self._message(item) for item in items] if type(items) is list else value

    def _message(self, item: Any) -> Any:
        if type(item) is not dict:
            return item
        renamed = {written: known for known, written in self.message_keys.items() if written in item}
        message = {
            renamed.get(key, key): value for key, value in item.items() if key in renamed or key not in renamed.values()
        }
        for key in ("role", "from"):
            if type(message.get(key)) is str:
                message[key] = self.role_map.get(message[key], message[key])
        return message

    def named(self, rejected: Rejected) -> Rejected:
        """Word a rejection with the row's own names of its columns."""
        for name, path in self.columns.items():
            missing = f"row: expected the column {name},"
            if rejected.detail.startswith(missing):
                expected = f"row: expected {path} (mapped to {name}),"
                return Rejected(rejected.reason, rejected.detail.replace(missing, expected, 1))
            rest = rejected.detail.removeprefix(name)
            if rest != rejected.detail and rest[:1] in (":", "[", "."):
                return Rejected(rejected.reason, path + rest)
        return rejected


def columns_of(shape: Shape) -> frozenset[str]:
    """The columns of a file that `convert` may look at: no others need be read."""
    paths = shape.columns.values()
    return frozenset((*COLUMNS, *paths, *(path.split(".")[0] for path in paths)))


def json_list(value: Any) -> Any:
    """A list that is written as its JSON text, as tables often hold it; any other value as it is."""
    if type(value) is str and value.lstrip()[:1] == "[":
        items = parse_text(value)
        return items if type(items) is list else value
    return value


def without_nulls(value: Any) -> Any:
    """Copy a JSON value without the keys whose values are null; nulls in lists stay."""
    if type(value) is dict:
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if type(value) is list:
        return [without_nulls(inner) for inner in value]
    return value


def _at(row: dict[str, Any], path: str) -> Any:
    """The value at a path; MISSING where there is none."""
    if path in row:
        return row[path]
    value: Any = row
    for key in path.split("."):
        if type(value) is not dict or key not in value:
            return MISSING
        value = value[key]
    return value


def _require_known(option: str, names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {close[0]}?" if close else "choose one of these"
            raise UsageError(f"{option}: expected {', '.join(known)}, found {name!r}; {remedy}")


PLAIN = Shape()
"""Nothing stands anywhere else."""
