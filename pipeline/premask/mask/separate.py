"""One example per assistant turn, for templates that rewrite history.

A turn is rendered as the last of its conversation: the context is exactly what the model sees when it generates that
turn (thinking of earlier turns dropped where the template drops it), and only that turn is trained.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from premask.read import Conversation


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
