"""What decides how long examples are, and what overflow needs of a masker."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from premask.dtypes import Examples, Int32Array
from premask.read import Conversation
from premask.render.program import Failure


class MaskedTurns(Protocol):
    """A masked batch (`masker.Masked`)."""

    @property
    def examples(self) -> Examples: ...
    @property
    def messages(self) -> Int32Array:
        """`[S]` the message behind every span of the examples."""

    @property
    def failures(self) -> dict[int, Failure]: ...
    @property
    def counts(self) -> Counter[str]: ...


Mask: TypeAlias = Callable[[Sequence[Conversation]], MaskedTurns]
"""Masks a batch (`masker.Masker.mask`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a recipe says of lengths, and what is known of its tokenizer."""

    max_length: int
    """Tokens of an example, at the most."""

    overflow: Literal["drop", "split", "truncate"]
    trim_tail: bool
    train_on: Literal["all", "last", "none"]
    turns: Literal["together", "separate"]

    reach: int | None
    """Bytes that `max_length` tokens hold at the most, where that is known: what lies beyond is not even encoded."""
