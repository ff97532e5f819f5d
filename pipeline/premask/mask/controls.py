"""Control tokens: which they are, and message text that spells one.

A **control token** shapes the conversation: an added token that is special, or that the template itself writes. A
**tag** (`<think>`, `<tool_call>`) is an added token with a closing mate that is not special: the model emits it, so
it stays a token inside assistant messages. Any other added token (GPT-NeoX's runs of spaces) is ordinary text.

The template's own control tokens are known by piece and byte, so text that spells one shows as a token where none is
due: one comparison of two sorted lists over the batch. Only such rows are encoded again, with everything but the
template's own control tokens taken for plain text (`encode/escape.py`).
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from premask.dtypes import BoolArray, Int32Array, Int64Array
from premask.encode.encoder import AddedToken, Encoded


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer that mean something to a chat template."""

    controls: dict[str, int]
    """Control tokens by their text."""
    tags: dict[str, int]
    """Reasoning and tool tags by their text."""
    stops: frozenset[str]
    """Tokens on which generation stops."""

    def find(self, text: str) -> list[tuple[int, str]]:
        """Every control token in a text, in order: its first character and its text; the longest wins, as in
        encoding.
        """
        return _find(text, self._of_controls)

    def find_all(self, text: str) -> list[tuple[int, str]]:
        """As `find`, tags included."""
        return _find(text, self._of_all)

    @functools.cached_property
    def _of_controls(self) -> re.Pattern[str] | None:
        return _pattern(self.controls)

    @functools.cached_property
    def _of_all(self) -> re.Pattern[str] | None:
        return _pattern(self.controls | self.tags)

    def ids(self, size: int) -> BoolArray:
        """`[size]` which ids are control tokens or tags."""
        table = np.zeros(size, bool)
        table[[*self.controls.values(), *self.tags.values()]] = True
        return table


def classify(added: Sequence[AddedToken], template: str, stops: frozenset[str]) -> Vocabulary:
    """Sort a tokenizer's added tokens into control tokens, tags and (left out) ordinary text."""
    names = {token.content for token in added}
    controls, tags = {}, {}
    for token in added:
        if not token.content.strip():
            continue
        if token.special or token.content in stops:
            controls[token.content] = token.id
        elif _mate(token.content) in names:
            tags[token.content] = token.id
        elif token.content in template:
            controls[token.content] = token.id
    return Vocabulary(controls, tags, stops)


def _mate(tag: str) -> str | None:
    """`</x>` of `<x>` and the other way round, square brackets likewise."""
    match = re.fullmatch(r"([<\[])(/?)([^<>\[\]/]+)([>\]])", tag)
    if match is None:
        return None
    opening, slash, name, closing = match.groups()
    return f"{opening}{'' if slash else '/'}{name}{closing}"


def _pattern(tokens: dict[str, int]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))) if tokens else None


def _find(text: str, pattern: re.Pattern[str] | None) -> list[tuple[int, str]]:
    return [(m.start(), m.group()) for m in pattern.finditer(text)] if pattern else []


@dataclass(frozen=True, slots=True)
class Places:
    """Where something stands in a batch: `[C]` texts and first bytes, counted over the batch, ascending."""

    rows: Int64Array
    starts: Int64Array


class ControlIds:
    """Which ids are control tokens or tags."""

    def __init__(self, table: BoolArray) -> None:
        self.table = table
        """`[V]` whether an id is one."""
        ids = np.flatnonzero(table)
        self._low, self._high = (int(ids[0]), int(ids[-1])) if len(ids) else (1, 0)
        self._close = self._high - self._low < len(table) // 16  # as those behind a vocabulary are

    def find(self, ids: Int32Array) -> Int64Array:
        """Where control tokens and tags stand in `ids` `[T]`, ascending. Comparing is far faster than looking up."""
        if not self._close:
            return np.flatnonzero(self.table.take(ids))
        among = ids >= self._low
        if self._high + 1 < len(self.table):
            among &= ids <= self._high
        near = np.flatnonzero(among)
        return near[self.table[ids[near]]]


def unexpected(
    encoded: Encoded, found: Int64Array, due: Places, stretches: Places, ends: Int64Array, tags: BoolArray
) -> BoolArray:
    """`[N]` which texts hold control tokens elsewhere than the template wrote them.

    `found` are the tokens of the batch that are control tokens or tags (`ControlIds.find`), `due` the template's own;
    tags (`tags` `[V]` says which ids are such) may also stand inside `stretches`, which end at `ends`.
    """
    bad = np.zeros(len(encoded.offsets) - 1, bool)
    places = encoded.starts[found].astype(np.int64)
    if np.array_equal(places, due.starts):  # as in nearly every batch
        return bad
    rows = np.searchsorted(encoded.offsets, found, "right") - 1
    stray = ~np.isin(places, due.starts)
    inside = np.searchsorted(stretches.starts, places, "right") - 1
    allowed = (inside >= 0) & tags[encoded.ids[found]]
    if len(ends):
        allowed &= (stretches.rows[inside] == rows) & (places < ends[inside])
    bad[rows[stray & ~allowed]] = True
    bad[due.rows[~np.isin(due.starts, places)]] = True
    return bad
