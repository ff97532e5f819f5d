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

from premask.dtypes import BoolArray, Int64Array
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
    """Where tokens stand in a batch: `[C]` texts and first bytes, in order."""

    rows: Int64Array
    starts: Int64Array


def unexpected(
    encoded: Encoded, due: Places, stretches: Places, ends: Int64Array, controls: BoolArray, tags: BoolArray
) -> BoolArray:
    """`[N]` which texts hold control tokens elsewhere than the template wrote them.

    `due` are the template's own; tags may also stand inside `stretches`, which end at `ends`. `controls` and `tags`
    `[V]` say which ids are which; tags count among the controls.
    """
    texts = len(encoded.offsets) - 1
    found = np.flatnonzero(controls[encoded.ids])
    rows = np.searchsorted(encoded.offsets, found, "right") - 1
    key = _keys(rows, encoded.starts[found].astype(np.int64))
    due_key = _keys(due.rows, due.starts)
    if np.array_equal(key, due_key):  # as in nearly every batch
        return np.zeros(texts, bool)
    stray = ~np.isin(key, due_key)
    inside = np.searchsorted(_keys(stretches.rows, stretches.starts), key, "right") - 1
    allowed = (inside >= 0) & tags[encoded.ids[found]]
    if len(ends):
        allowed &= (stretches.rows[inside] == rows) & (encoded.starts[found] < ends[inside])
    bad = np.zeros(texts, bool)
    bad[rows[stray & ~allowed]] = True
    bad[due.rows[~np.isin(due_key, key)]] = True
    return bad


def _keys(rows: Int64Array, starts: Int64Array) -> Int64Array:
    """One number that orders places by text, then byte."""
    return (rows << 32) | starts
