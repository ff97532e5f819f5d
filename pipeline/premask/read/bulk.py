"""Many rows at a time to conversations: what `parse` and `convert` make of every row.

Plain rows, nearly all there are, are decoded by their type (`typed.py`) or, where columns or keys are others, told by a
few looks at many of them together, each of which is one call of C code that Python has. Only rows that stand out are
looked at one by one.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, pairwise
from operator import itemgetter
from typing import Any

from premask.read.conversation import Conversation, Conversations, Plain, Rejected
from premask.read.lines import parse_all
from premask.read.mapping import PLAIN, Shape
from premask.read.messages import ALIASES, ROLES
from premask.read.rows import Raw
from premask.read.shapes import BESIDE, Format, convert
from premask.read.typed import typed_rows

_PLAIN: Mapping[Format, tuple[str, tuple[str, str], Mapping[str, str]]] = {
    "messages": ("messages", ("role", "content"), {role: role for role in ROLES}),
    "sharegpt": ("conversations", ("from", "value"), ALIASES),
}
"""Of a format, the column of messages, the keys of a plain message, and what its roles are called in a conversation."""

CHUNK = 128
"""Rows that are looked at together: what stays in a core's cache from one look to the next."""


def read_conversations(
    format: Format, raws: Sequence[Raw], shape: Shape = PLAIN
) -> tuple[Sequence[int], Conversations, dict[int, Rejected]]:
    """Parse and convert rows: each to what `parse` and `convert` make of it.

    Returns the numbers of the rows that are conversations, in order; these; and why any other row is none, by number.
    """
    plain: list[Plain | None] = []
    others: dict[int, Conversation] = {}
    rejected: dict[int, Rejected] = {}
    for first in range(0, len(raws), CHUNK):
        chunk = raws[first : first + CHUNK]
        found = typed_rows(chunk) if shape is PLAIN and format == "messages" else [None] * len(chunk)
        plain += found
        if None not in found:
            continue
        rest = [number for number, each in enumerate(found, first) if each is None]
        rows = parse_all([raws[number] for number in rest])
        told = _plain_rows(rows, *_PLAIN[format]) if shape is PLAIN and format in _PLAIN else [None] * len(rows)
        for number, row, each in zip(rest, rows, told, strict=True):
            plain[number] = each
            result = None if each else convert(format, row, shape) if isinstance(row, dict) else row
            if isinstance(result, Rejected):
                rejected[number] = result
            elif result:
                others[number] = result
    if not rejected:
        return range(len(raws)), Conversations(plain, others), rejected
    kept = [number for number in range(len(raws)) if number not in rejected]
    places = {place: others[number] for place, number in enumerate(kept) if number in others}
    return kept, Conversations([plain[number] for number in kept], places), rejected


def _plain_rows(
    rows: Sequence[Any], column: str, keys: tuple[str, str], roles: Mapping[str, str]
) -> list[Plain | None]:
    """The rows that are nothing but messages of a role and a text, one of them the assistant's; None for any other."""
    found: list[Plain | None] = [None] * len(rows)
    numbers, lists = _listed(rows, column)
    while lists:
        odd, speakers, texts = _said(list(chain.from_iterable(lists)), keys, roles)
        ends = list(accumulate(map(len, lists)))
        if odd:
            dropped = {bisect_right(ends, message) for message in odd}
            kept = [place for place in range(len(lists)) if place not in dropped]
            numbers, lists = [numbers[place] for place in kept], [lists[place] for place in kept]
            continue
        for number, (first, end) in zip(numbers, pairwise([0, *ends]), strict=True):
            who = tuple(speakers[first:end])
            if "assistant" in who:
                found[number] = who, texts[first:end]
        break
    return found


def _listed(rows: Sequence[Any], column: str) -> tuple[Sequence[int], list[list[Any]]]:
    """The rows that have a list, not an empty one, under `column` and say nothing beside it: numbers, and lists."""
    numbers: Sequence[int] = range(len(rows))
    if set(map(type, rows)) != {dict}:
        numbers = [number for number, row in enumerate(rows) if type(row) is dict]
        rows = [rows[number] for number in numbers]
    kinds = list(map(tuple, rows))
    fine = {kind for kind in set(kinds) if column in kind and BESIDE.isdisjoint(kind)}
    if not fine.issuperset(kinds):
        numbers = [number for number, kind in zip(numbers, kinds, strict=True) if kind in fine]
        rows = [row for row, kind in zip(rows, kinds, strict=True) if kind in fine]
    lists = list(map(itemgetter(column), rows))
    if set(map(type, lists)) != {list} or not all(lists):
        kept = [place for place, each in enumerate(lists) if type(each) is list and each]
        numbers, lists = [numbers[place] for place in kept], [lists[place] for place in kept]
    return numbers, lists


def _said(
    messages: Sequence[Any], keys: tuple[str, str], roles: Mapping[str, str]
) -> tuple[list[int], list[str], list[str]]:
    """Some messages that are not plain, at least one if there are any; else the roles and texts of all."""
    if set(map(type, messages)) != {dict}:
        return [n for n, message in enumerate(messages) if type(message) is not dict], [], []
    kinds = list(map(tuple, messages))
    if set(kinds) != {keys}:
        return [n for n, kind in enumerate(kinds) if kind != keys], [], []
    values = list(chain.from_iterable(map(dict.values, messages)))
    if set(map(type, values)) != {str}:
        return [n // 2 for n, value in enumerate(values) if type(value) is not str], [], []
    speakers: list[Any] = list(map(roles.get, values[::2]))
    if None in speakers:
        return [n for n, speaker in enumerate(speakers) if speaker is None], [], []
    return [], speakers, values[1::2]
