"""What reading yields: a `Conversation` in one schema, or a `Rejected` row with its reason.

A conversation is plain JSON values in OpenAI's shape, with exactly the keys the row came with: adding a key or a null
that was not there would change what a chat template renders. Cost of a digest: one serialization (about 1 us per KB).
"""

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, TypeAlias, get_args

import orjson

Message: TypeAlias = dict[str, Any]

Reason: TypeAlias = Literal[
    "broken_json",
    "broken_csv",
    "invalid_utf8",
    "lone_surrogate",
    "row_too_large",
    "not_an_object",
    "unknown_shape",
    "wrong_type",
    "too_deep",
    "number_too_large",
    "conflicting_fields",
    "unknown_role",
    "unsupported_content",
    "empty_conversation",
    "no_assistant_turn",
    "unwanted_answer",
]

REASONS: tuple[str, ...] = get_args(Reason)
"""Every reason for which reading rejects a row."""


@dataclass(slots=True)
class Conversation:
    """One source row, validated: the messages and all else that a chat template may look at."""

    messages: list[Message]
    """At least one, at least one by the assistant. `role` is one of system, developer, user, assistant, tool and
    function; `content` is text, null (beside tool calls or reasoning only) or a list of text parts."""

    tools: list[dict[str, Any]] | None = None
    """`{"type": "function", "function": {"name": ...}}` for every tool; never empty."""

    template_args: dict[str, Any] = field(default_factory=dict)
    """The row's `chat_template_kwargs`."""

    weights: list[float | None] | None = None
    """`[messages]` loss weight of every message: None where not stated, 0 masks; None when no message states one."""

    whole: bool = False
    """The one message is a text without roles, to be trained from its first token to its last, by no template."""

    def digest(self) -> bytes:
        """16-byte BLAKE2b of the canonical JSON: equal for equal conversations, whatever the order of their keys."""
        values: list[Any] = [self.messages, self.tools, self.template_args, self.weights]
        if self.whole:
            values.append(True)
        return blake2b(orjson.dumps(values, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


@dataclass(slots=True)
class Rejected:
    """A source row that cannot be used, and why."""

    reason: str
    """Snake case; from `REASONS` when reading rejects it."""

    detail: str
    """Where in the row, what was expected, what was found, and the remedy."""
