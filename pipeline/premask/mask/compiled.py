"""Markers for rows of which only the ids are known: from a template's grammar, from parts given by hand, or both.

A part given by hand says which turns are trained; what ends them the template knows best. So where the given response
part is how the template begins an assistant's turn, the template's terminators and the headers of all its roles count
too. Where it is not (text formatted by hand), what can be known is: the end-of-sequence token ends a turn, and the
given instruction part, the control tokens that both parts begin with, and the begin-of-sequence token begin
something else.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from premask.encode.encoder import Encoder
from premask.encode.spelling import spell_vocabulary
from premask.errors import UsageError
from premask.mask.borders import HEADER, OPENING, SAMPLE, Border
from premask.mask.controls import Vocabulary
from premask.mask.grammar import Grammar, Probe
from premask.mask.parts import Part
from premask.mask.responses import ResponseMarkers
from premask.mask.trails import Element, Spelling, ending


@dataclass(frozen=True, kw_only=True)
class Sought:
    """The texts of the markers."""

    headers: tuple[str, ...]
    closings: tuple[str, ...]
    openings: tuple[str, ...]
    closed: bool = False
    """Every turn ends with one of the closings."""
    exclusive: bool = False
    """No other role's turn does."""
    unfollowed: tuple[str, ...] = field(default=())
    """What rows may have that these markers cannot follow."""
    anchors: Mapping[str, str] = field(default_factory=dict)
    """What always stands before a header or opening."""


def sought_by_parts(response: str, instruction: str, vocabulary: Vocabulary, eos: str | None) -> Sought:
    """The markers of text that was formatted by hand."""
    shared = _shared_controls(response, instruction, vocabulary)
    openings = (instruction, shared) if shared else (instruction,)
    return Sought(headers=(response,), closings=(eos,) if eos else (), openings=openings)


def sought_by_grammar(grammar: Grammar, parts: tuple[str, str] | None) -> Sought | None:
    """The markers of a template, and of the response and instruction part given with it.

    None where the given response part is not how the template begins a turn. UsageError where nothing is given and
    the template has no markers by which its turns can be found.
    """
    headers, openings = tuple(grammar.headers), tuple(o for texts in grammar.openings.values() for o in texts)
    if parts is None and "" not in grammar.searchable:
        raise UsageError(
            "The turns of this chat template cannot be found by markers"
            + (f" (it has {', '.join(map(repr, headers))})" if headers else "")
            + ". Give instruction_part and response_part, or prepare the conversations themselves: `premask prepare`."
        )
    if parts is not None:
        response, instruction = parts
        if not _fits(response.strip(), [header.strip() for header in headers]):
            return None
        openings = (*openings, instruction, *headers)
        headers = (response, *(h for h in headers if h.startswith(response)))
    probes = [probe for group in grammar.probes.values() for probe in group]
    unfollowed = set(grammar.probes) - grammar.searchable - {"", "parallel calls"}
    return Sought(
        headers=headers,
        closings=tuple(grammar.closings),
        openings=openings,
        closed=bool(grammar.closings) and not any(probe.turns.unterminated for probe in probes),
        exclusive=all(_exclusive(probe, grammar.closings) for probe in probes),
        unfollowed=tuple(sorted(unfollowed)),
        anchors={text: anchor for text in (*headers, *openings) if (anchor := anchor_of(text, probes))},
    )


def _fits(response: str, headers: Sequence[str]) -> bool:
    """Whether a response part is how a template begins a turn, or the beginning or end of it."""
    return bool(response) and any(
        header.startswith(response) or response.startswith(header) or response.endswith(header) for header in headers
    )


def _exclusive(probe: Probe, closings: Sequence[str]) -> bool:
    """Whether the terminators in a rendering are those of the assistant's turns, one that it begins with aside."""
    first = max((len(closing) for closing in closings if probe.text.startswith(closing)), default=0)
    turns = sum(stretch.part is Part.TERMINATOR for stretch in probe.turns.stretches)
    return sum(probe.text.count(closing, first) for closing in closings) == turns


_WORD = re.compile(r"[a-z]\d[a-z](?![a-z0-9])")
"""The words of the probes."""


def anchor_of(text: str, probes: Sequence[Probe]) -> str | None:
    """What every rendering has before a marker, back to a message's own words; None where it is nowhere behind one."""
    gaps = []
    for probe in probes:
        for found in re.finditer(re.escape(text), probe.text):
            words = list(_WORD.finditer(probe.text, 0, found.start()))
            if words:
                gaps.append(probe.text[words[-1].end() : found.start()])
    if not gaps:
        return None
    alike = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*(gap[::-1] for gap in gaps), strict=False))
    return "".join(column[0] for column in alike)[::-1]


def _shared_controls(response: str, instruction: str, vocabulary: Vocabulary) -> str:
    """The control tokens that both parts begin with."""
    shared = ""
    for start, token in vocabulary.find_all(response):
        if start != len(shared) or not instruction.startswith(shared + token):
            break
        shared += token
    return shared


def compile_markers(
    sought: Sought, encoder: Encoder, tokenizer_json: bytes, vocabulary: Vocabulary, bos: str | None
) -> ResponseMarkers:
    """Compile markers against a tokenizer. `bos` begins another sample wherever it stands."""
    table = spell_vocabulary(encoder, tokenizer_json)
    spelling = Spelling(table, frozenset([*vocabulary.controls.values(), *vocabulary.tags.values()]))
    texts = [(HEADER, t) for t in sought.headers] + [(OPENING, t) for t in sought.openings]
    borders = [
        Border(kind=kind, trail=spelling.trail(elements), **_anchor(sought.anchors.get(text), vocabulary))
        for kind, text in dict.fromkeys([*texts, *([(SAMPLE, bos)] if bos else [])])
        if (elements := _elements(text, encoder, spelling))
    ]
    if not any(border.kind == HEADER for border in borders):
        found = ", ".join(map(repr, sought.headers))
        raise UsageError(f"response_part: expected a text that has tokens, found {found}")
    return ResponseMarkers(
        borders=tuple(borders),
        closings=tuple(spelling.trail(e) for text in sought.closings if (e := _elements(text, encoder, spelling))),
        spelt=np.array([0 if i in spelling.controls else ending(t) for i, t in enumerate(table)], np.int32),
        closed=sought.closed,
        exclusive=sought.exclusive,
    )


def _anchor(anchor: str | None, vocabulary: Vocabulary) -> dict[str, Any]:
    """An anchor as a border has it: the control token that it ends in, or its line breaks."""
    if not anchor:
        return {}
    ink = anchor.rstrip()
    last = vocabulary.find(ink)[-1:]
    if last and last[0][0] + len(last[0][1]) == len(ink):
        return {"behind": vocabulary.controls[last[0][1]]}
    return {"breaks": len(anchor) - len(anchor.rstrip("\n"))}


def _elements(text: str, encoder: Encoder, spelling: Spelling) -> list[Element]:
    """A marker as its tokens spell it, which is not always as it is written.

    A token may swallow the white space beside it (Phi-3's `<|assistant|>`), and a tokenizer may put a space before a
    text; that space is left out, since a marker stands within one.
    """
    elements: list[Element] = []
    for i in encoder.encode([text]).ids.tolist():
        if i in spelling.controls:
            elements.append(i)
        elif elements and isinstance(elements[-1], bytes):
            elements[-1] += spelling.table[i]
        else:
            elements.append(spelling.table[i])
    prefix = b"".join(spelling.table[i] for i in encoder.encode(["a"]).ids.tolist()).removesuffix(b"a")
    if elements and isinstance(elements[0], bytes):
        elements[0] = elements[0].removeprefix(prefix)
    return [element for element in elements if element != b""]
