"""One example per assistant turn, for templates that rewrite history.

A turn is rendered as the last of its conversation: the context is exactly what the model sees when it generates that
turn (thinking of earlier turns dropped where the template drops it), and only that turn is trained.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from premask.read import Conversation

CHUNK_CHARACTERS = 4 * 2**20
"""Text that is masked together: every turn brings its whole context, so a row may become hundreds of times as much."""


@dataclass(frozen=True, slots=True)
class Separated:
    """One turn of a row."""

    row: int
    turn: int
    """Which of the conversation's assistant turns, from 0."""
    conversation: Conversation
    """The messages up to and including the turn; all but the turn masked."""


def separated(row: int, conversation: Conversation, train_on: Literal["all", "last", "none"]) -> Iterator[Separated]:
    """The turns of a conversation that are trained, each with its context."""
    turns = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    weights = conversation.weights or [None] * len(conversation.messages)
    for turn, message in enumerate(turns):
        weight = weights[message]
        if weight is None:
            weight = float(train_on == "all" or (train_on == "last" and message == turns[-1]))
        if weight:
            own: list[float | None] = [*[0.0] * message, weight]
            beginning = replace(conversation, messages=conversation.messages[: message + 1], weights=own)
            yield Separated(row, turn, beginning)


def in_chunks(parts: Sequence[Separated]) -> Iterator[range]:
    """Neighbouring parts that are masked together, by number; at least one range, which may be empty."""
    first, held = 0, 0
    for n, part in enumerate(parts):
        size = sum(len(str(message.get("content"))) for message in part.conversation.messages)
        if n > first and held + size > CHUNK_CHARACTERS:
            yield range(first, n)
            first, held = n, 0
        held += size
    yield range(first, len(parts))
