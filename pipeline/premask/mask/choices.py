"""The choices of a recipe, applied to the turns of one path: which of their pieces are trained."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from premask.dtypes import BoolArray, Int64Array
from premask.mask.parts import Part
from premask.mask.turns import Stretch, Turns, runs


class Choices(Protocol):
    """The options of a recipe that decide what is trained (`recipe.Recipe` has them)."""

    @property
    def train_on(self) -> Literal["all", "last", "none"]: ...
    @property
    def terminator(self) -> Literal["all", "last", "none"]: ...
    @property
    def reasoning(self) -> Literal["train", "mask"]: ...
    @property
    def tool_calls(self) -> Literal["train", "mask"]: ...
    @property
    def straddle(self) -> Literal["mask", "train"]: ...
    @property
    def control_tokens(self) -> Literal["escape", "reject", "allow"]: ...
    @property
    def turns(self) -> Literal["together", "separate"]: ...
    @property
    def mask(self) -> Literal["sampled", "generation"]: ...


@dataclass(frozen=True, slots=True)
class Path:
    """What masking needs of one path through a template. Pieces are counted as the path's leaf has them."""

    starts: Int64Array
    """`[s]` first piece of every span that may be trained."""
    ends: Int64Array
    """`[s]` piece behind."""
    messages: Int64Array
    """`[s]` the message it belongs to."""
    default: BoolArray
    """`[s]` whether it is trained where the message itself does not say."""
    turn_starts: Int64Array
    """`[t]` first piece of every stretch that the model emits, trained or not."""
    turn_ends: Int64Array
    """`[t]` piece behind."""
    word_starts: Int64Array
    """`[t]` first piece of the same, with what the assistant itself wrote of the generation prompt."""
    texts: Int64Array
    """`[x]` the pieces that are the conversation's own text."""
    control_pieces: Int64Array
    """`[c]` pieces in which the template writes a control token."""
    control_bytes: Int64Array
    """`[c]` where in its piece."""
    control_texts: list[str]
    """The tokens themselves, `c` of them."""
    searchable: bool
    """Whether the search by markers has to find the same turns."""
    turns: int
    """Assistant messages in the conversation."""
    counts: dict[str, int]
    """What to report of every conversation on this path."""


def choose(turns: Turns, texts: list[int], roles: list[str], searchable: bool, choices: Choices) -> Path:
    """The spans of one path under the choices of a recipe; `texts` are the pieces that are the conversation's own."""
    assistants = [i for i, role in enumerate(roles) if role == "assistant"]
    last = assistants[-1] if assistants else -1
    if choices.mask == "generation":
        spans = [(start, end, _message_at(turns, start, last)) for start, end in turns.generation]
    else:
        chosen = runs([s for s in turns.stretches if _chosen(s, last, choices)])
        spans = [(s.start, s.end, s.message) for s in chosen]
    messages = _column(m for _, _, m in spans)
    whole = runs(turns.stretches)
    return Path(
        starts=_column(start for start, _, _ in spans),
        ends=_column(end for _, end, _ in spans),
        messages=messages,
        default={"all": messages >= 0, "last": messages == last, "none": messages < 0}[choices.train_on],
        turn_starts=_column(s.start for s in whole),
        turn_ends=_column(s.end for s in whole),
        word_starts=_column(_words_from(s, turns, frozenset(texts)) for s in whole),
        texts=_column(texts),
        control_pieces=_column(piece for piece, _, _ in turns.controls),
        control_bytes=_column(byte for _, byte, _ in turns.controls),
        control_texts=[text for _, _, text in turns.controls],
        searchable=searchable,
        turns=len(assistants),
        counts={
            "unterminated_turns": turns.unterminated,
            "reasoning_dropped": turns.reasoning_dropped,
            "tools_dropped": int(turns.tools_dropped),
        },
    )


def _column(values: Iterable[int]) -> Int64Array:
    return np.fromiter(values, np.int64)


def _words_from(stretch: Stretch, turns: Turns, texts: frozenset[int]) -> int:
    """The first piece of a turn's own words: texts that end as the generation prompt does begin before the turn."""
    start = stretch.start
    while start - 1 in texts and turns.owners[start - 1] == stretch.message:
        start -= 1
    return start


def _chosen(stretch: Stretch, last: int, choices: Choices) -> bool:
    if stretch.part is Part.TERMINATOR:
        return choices.terminator == "all" or (choices.terminator == "last" and stretch.message == last)
    if stretch.part is Part.REASONING:
        return choices.reasoning == "train"
    if stretch.part is Part.TOOL_CALLS:
        return choices.tool_calls == "train"
    return True


def _message_at(turns: Turns, piece: int, last: int) -> int:
    """The turn around a piece, for regions that the template marks itself."""
    following = [s.message for s in turns.stretches if s.end > piece]
    return following[0] if following else last
