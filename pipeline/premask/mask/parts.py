"""The parts of a turn: content, thinking, tool calls, terminator; and the cuts between them.

A piece tells by its field what it is. Thinking may also stand between tags inside a text (or begin in the generation
prompt), so where a choice depends on it pieces are cut at the tags, and whether a text holds them is asked.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from premask.render.values import TStr

Text: TypeAlias = str | TStr


class Part(IntEnum):
    """What a stretch of a turn is."""

    CONTENT = 0
    REASONING = 1
    TOOL_CALLS = 2
    TERMINATOR = 3


@dataclass(frozen=True, slots=True)
class Tags:
    """The texts that open and close the thinking part of a turn."""

    opening: str = "<think>"
    closing: str = "</think>"


@dataclass(frozen=True, slots=True)
class Cut:
    """A piece of a turn, or a part of one."""

    source: int
    """Which of the turn's pieces it comes from."""
    text: Text
    part: Part


def cut_parts(pieces: Sequence[Text], field_part: Callable[[Text], Part], tags: Tags | None, header: str) -> list[Cut]:
    """The parts of a turn's pieces (its terminator left out), cut at thinking tags if `tags` are given.

    `field_part` says what a piece is by the field it comes from; `header` is what the turn shares with the generation
    prompt, which may have opened the thinking already.
    """
    inside = tags is not None and tags.opening in header.rpartition(tags.closing)[2]
    cuts: list[Cut] = []
    for source, piece in enumerate(pieces):
        part = field_part(piece)
        if tags is None or part is not Part.CONTENT:
            cuts.append(Cut(source, piece, part))
            continue
        for text, thinking, goes_on in list(_at_tags(piece, inside, tags)):
            cuts.append(Cut(source, text, Part.REASONING if thinking else part))
            inside = goes_on
    return _with_scaffold(cuts)


def _at_tags(piece: Text, inside: bool, tags: Tags) -> Iterator[tuple[Text, bool, bool]]:
    """A piece cut behind every closing and before every opening tag: text, whether it is thinking, and what follows."""
    rest: Text = piece
    while True:
        tag = tags.closing if inside else tags.opening
        head, found, tail = _partition(rest, tag)
        if found is None:
            yield rest, inside, inside
            return
        if inside:
            yield from ((text, True, False) for text in (head, found) if _visible(text))
        elif _visible(head):
            yield head, False, True
        if not inside:
            yield found, True, True
        inside, rest = not inside, tail
        if isinstance(rest, str) and not rest:
            return


def _partition(text: Text, tag: str) -> tuple[Text, Text | None, Text]:
    """`text` at the first `tag`; the middle is None where there is none. Whether there is one is asked."""
    if isinstance(text, str):
        head, middle, tail = text.partition(tag)
        return head, middle or None, tail
    return text.partition(tag) if text.contains(tag) else (text, None, "")


def _visible(text: Text) -> bool:
    """Literals that are empty go; a traced text stays, since other conversations may have something there."""
    return isinstance(text, TStr) or bool(text)


def _with_scaffold(cuts: list[Cut]) -> list[Cut]:
    """The literals before a tool call, between two, and behind the last one belong to the tool calls."""
    parts = [cut.part for cut in cuts]
    for i, cut in enumerate(cuts):
        if cut.part is not Part.CONTENT or not isinstance(cut.text, str):
            continue
        following = next((c.part for c in cuts[i + 1 :] if isinstance(c.text, TStr)), None)
        before = parts[i - 1] if i else None
        if following is Part.TOOL_CALLS or (following is None and before is Part.TOOL_CALLS):
            parts[i] = Part.TOOL_CALLS
    return [Cut(cut.source, cut.text, part) for cut, part in zip(cuts, parts, strict=True)]
