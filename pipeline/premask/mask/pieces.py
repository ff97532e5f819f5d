"""Conversations in pieces: where they may be cut, and the pieces as conversations of their own.

A conversation is a head, the system and developer messages that it begins with, and exchanges: each begins where
somebody speaks after the assistant or a tool, a user among them, and holds everything up to the next. A piece is the
head and some exchanges in a row, so that it begins as a conversation does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from premask.read import Conversation

_INSTRUCTING = ("system", "developer")
_ASKING = ("user", *_INSTRUCTING)

_SPACES = "".join(c for c in map(chr, range(0x3001)) if c.isspace())


@dataclass(frozen=True, slots=True)
class Exchanges:
    """One conversation, ready to be cut."""

    row: int
    conversation: Conversation
    """Every message with a weight of its own."""
    head: int
    """Messages of the head."""
    starts: list[int]
    """`[E + 1]` first message of every exchange, and the number of messages."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def piece(self, first: int, last: int) -> Conversation:
        """The head and the exchanges from `first` up to `last`."""
        messages, weights = self.conversation.messages, self.conversation.weights or []
        part = slice(self.starts[first], self.starts[last])
        return replace(
            self.conversation,
            messages=messages[: self.head] + messages[part],
            weights=weights[: self.head] + weights[part],
        )

    def turn(self, exchange: int) -> int:
        """The number of assistant messages before an exchange."""
        return turns_of(self.conversation.messages[: self.starts[exchange]])


def turns_of(messages: Sequence[dict[str, Any]]) -> int:
    """The number of assistant messages."""
    return sum(message["role"] == "assistant" for message in messages)


def exchanges(row: int, conversation: Conversation, train_on: Literal["all", "last", "none"]) -> Exchanges:
    """The exchanges of a conversation; what is trained by default is stated, since a piece may end elsewhere."""
    messages = conversation.messages
    roles = [message["role"] for message in messages]
    head = next((n for n, role in enumerate(roles) if role not in _INSTRUCTING), len(roles))
    borders = [
        n
        for n in range(head + 1, len(roles))
        if roles[n] in _ASKING and roles[n - 1] not in _ASKING and _asks(roles, n)
    ]
    answers = [n for n, role in enumerate(roles) if role == "assistant"]
    default = {"all": answers, "last": answers[-1:], "none": []}[train_on]
    stated = conversation.weights or [None] * len(messages)
    weights: list[float | None] = [float(n in default) if weight is None else weight for n, weight in enumerate(stated)]
    return Exchanges(row, replace(conversation, weights=weights), head, [head, *borders, len(messages)])


def _asks(roles: Sequence[str], first: int) -> bool:
    """Whether a user speaks, from the message `first` on, before anybody answers."""
    return next((role for role in islice(roles, first, None) if role not in _INSTRUCTING), "") == "user"


def all_trained(conversation: Conversation) -> Conversation:
    """The conversation with every turn trained: masked so, it tells its length."""
    return replace(conversation, weights=[1.0] * len(conversation.messages))


def within_reach(conversation: Conversation, most: int | None) -> Conversation:
    """The conversation up to the first message that cannot end within the first `most` bytes of its text.

    A template may strip white space, so that only the rest is counted, a byte a character. None is no limit.
    """
    total = 0
    for n, message in enumerate(conversation.messages):
        total += ink(message.get("content"))
        if most is not None and total > most:
            return beginning(conversation, n)
    return conversation


def beginning(conversation: Conversation, messages: int) -> Conversation:
    """The first so many messages of a conversation."""
    weights = conversation.weights and conversation.weights[:messages]
    return replace(conversation, messages=conversation.messages[:messages], weights=weights)


def ink(content: Any) -> int:
    """Characters of a message's content, white space aside."""
    texts = [content] if isinstance(content, str) else [part.get("text") or "" for part in content or []]
    return sum(len(text) - sum(map(text.count, _SPACES)) for text in texts)
