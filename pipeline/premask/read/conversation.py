"""What reading yields: a `Conversation` in one schema, or a `Rejected` row with its reason.

A conversation is plain JSON values in OpenAI's shape, with exactly the keys the row came with: adding a key or a null
that was not there would change what a chat template renders. Cost of a digest: one serialization, and a
SHA-256, which processors have an instruction for (BLAKE2b took three times as long).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal, TypeAlias, get_args, overload

import orjson

Message: TypeAlias = dict[str, Any]

Plain: TypeAlias = tuple[tuple[str, ...], list[str]]
"""Roles and texts of messages that are a role and a text, in this order, and nothing else: nearly all there are."""

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

    plain: Plain | None = field(default=None, init=False, compare=False, repr=False)
    """`plain_of(messages)`, where it was looked at; `replace` does not take it over."""

    def digest(self) -> bytes:
        """16 bytes of a SHA-256 of what is said: equal for equal conversations, however they are written or weighted.

        The order of keys makes no difference, nor do null values in a message, nor whether a text stands in a list: the
        same words must not be learned and then asked for in validation.
        """
        messages = self.messages if self.plain else [_said(message) for message in self.messages]
        values: list[Any] = [messages, self.tools, self.template_args]
        if self.whole:
            values.append(True)
        return sha256(orjson.dumps(values, option=orjson.OPT_SORT_KEYS)).digest()[:16]


class Conversations(Sequence[Conversation]):
    """The conversations of a batch. Plain ones, nearly all there are, are objects only while somebody looks at them.

    `plain` `[N]` has roles and texts where these are all that a row says; `others` has the other rows, by number.
    """

    def __init__(self, plain: Sequence[Plain | None], others: Mapping[int, Conversation]) -> None:
        self.plain = plain
        self.others = others

    @classmethod
    def of(cls, conversations: Sequence[Conversation]) -> "Conversations":
        """Conversations as a batch; itself where it is one."""
        if isinstance(conversations, cls):
            return conversations
        return cls([None] * len(conversations), dict(enumerate(conversations)))

    def __len__(self) -> int:
        return len(self.plain)

    @overload
    def __getitem__(self, number: int) -> Conversation: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Conversation]: ...

    def __getitem__(self, number: int | slice) -> Conversation | Sequence[Conversation]:
        if isinstance(number, slice):
            return [self[n] for n in range(len(self))[number]]
        plain = self.plain[number]
        if plain is None:
            return self.others[range(len(self))[number]]
        conversation = Conversation([{"role": role, "content": text} for role, text in zip(*plain, strict=True)])
        conversation.plain = plain
        return conversation

    def mapped(self, function: Callable[[Conversation], Conversation]) -> "Conversations":
        """The batch with `function` of every conversation that is not plain."""
        return Conversations(self.plain, {number: function(each) for number, each in self.others.items()})


def plain_of(messages: list[Any]) -> Plain | None:
    """Roles and texts of messages; None unless each is `{"role": "...", "content": "..."}`, in this order.

    One look at every message, about 0.2 us, for all that come later and would look again.
    """
    roles: list[str] = []
    texts: list[str] = []
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            return None
        (first, role), (second, text) = message.items()
        if first != "role" or second != "content" or type(role) is not str or type(text) is not str:
            return None
        roles.append(role)
        texts.append(text)
    return tuple(roles), texts


def _said(message: Message) -> Message:
    """A message in one form, whatever form it has."""
    content = message.get("content")
    if type(content) is list and len(content) == 1 and content[0].keys() == {"type", "text"}:
        message = message | {"content": content[0]["text"]}
    if None in message.values():
        return {key: value for key, value in message.items() if value is not None}
    return message


@dataclass(slots=True)
class Rejected:
    """A source row that cannot be used, and why."""

    reason: str
    """Snake case; from `REASONS` when reading rejects it."""

    detail: str
    """Where in the row, what was expected, what was found, and the remedy."""
