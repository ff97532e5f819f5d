"""Conversations in pieces: where they may be cut, and the pieces as conversations of their own.

A conversation is a head, the system and developer messages that it begins with, and exchanges: each begins where
somebody speaks after the assistant or a tool, a user among them, and holds everything up to the next. A piece is the
head and some exchanges in a row, so that it begins as a conversation does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

import orjson

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
    turns: list[int]
    """`[E + 1]` the number of assistant messages before every exchange, and in all."""
    sizes: list[int]
    """`[E + 1]` bytes of the tools and messages before every exchange, and in all, as JSON."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def size(self, first: int, last: int) -> int:
        """Bytes of a piece, about."""
        return self.sizes[0] + self.sizes[last] - self.sizes[first]

    def piece(self, first: int, last: int) -> Conversation:
        """The head and the exchanges from `first` up to `last`."""
        messages, weights = self.conversation.messages, self.conversation.weights or []
        part = slice(self.starts[first], self.starts[last])
        return replace(
            self.conversation,
            messages=messages[: self.head] + messages[part],
            weights=weights[: self.head] + weights[part],
        )


def turns_of(messages: Sequence[dict[str, Any]]) -> int:
    """The number of assistant messages."""
    return sum(message["role"] == "assistant" for message in messages)


def exchanges(row: int, conversation: Conversation, train_on: Literal["all", "last", "none"]) -> Exchanges:
    """The exchanges of a conversation; what is trained by default is stated, since a piece may end elsewhere."""
    roles = [message["role"] for message in conversation.messages]
    head = next((n for n, role in enumerate(roles) if role not in _INSTRUCTING), len(roles))
    borders = [
        n
        for n in range(head + 1, len(roles))
        if roles[n] in _ASKING and roles[n - 1] not in _ASKING and _asks(roles, n)
    ]
    starts = [head, *borders, len(roles)]
    turns = [0, *accumulate(role == "assistant" for role in roles)]
    sizes = [*accumulate(map(_size, conversation.messages), initial=_size(conversation.tools))]
    return Exchanges(
        row,
        stated(conversation, train_on),
        head,
        starts,
        [turns[start] for start in starts],
        [sizes[start] for start in starts],
    )


def _size(value: Any) -> int:
    return len(orjson.dumps(value))


def stated(conversation: Conversation, train_on: Literal["all", "last", "none"]) -> Conversation:
    """The conversation with a weight stated for every message: as it is, and by default as `train_on` says."""
    messages = conversation.messages
    answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    default = set({"all": answers, "last": answers[-1:], "none": []}[train_on])
    own = conversation.weights or [None] * len(messages)
    weights: list[float | None] = [float(n in default) if weight is None else weight for n, weight in enumerate(own)]
    return replace(conversation, weights=weights)


def _asks(roles: Sequence[str], first: int) -> bool:
    """Whether a user speaks, from the message `first` on, before anybody answers."""
    rest = (roles[n] for n in range(first, len(roles)))
    return next((role for role in rest if role not in _INSTRUCTING), "") == "user"


def all_trained(conversation: Conversation) -> Conversation:
    """The conversation with every turn trained: masked so, it tells its length."""
    return replace(conversation, weights=[1.0] * len(conversation.messages))


def within_reach(conversation: Conversation, most: int | None) -> Conversation:
    """The conversation up to the first message that cannot end within the first `most` bytes of its text.

    A template may strip white space, so that only the rest is counted, a byte a character. None is no limit.
    """
    contents = [texts_of(message.get("content")) for message in conversation.messages]
    if most is None or sum(len(text) for texts in contents for text in texts) <= most:
        return conversation
    total = 0
    for n, texts in enumerate(contents):
        total += sum(map(ink, texts))
        if total > most:
            return beginning(conversation, n)
    return conversation


def beginning(conversation: Conversation, messages: int) -> Conversation:
    """The first so many messages of a conversation."""
    weights = conversation.weights and conversation.weights[:messages]
    return replace(conversation, messages=conversation.messages[:messages], weights=weights)


def texts_of(content: Any) -> list[str]:
    """The texts of a message's content."""
    return [content] if isinstance(content, str) else [part.get("text") or "" for part in content or []]


def ink(text: str) -> int:
    """Characters of a text, white space aside."""
    return len(text) - sum(map(text.count, _SPACES))
