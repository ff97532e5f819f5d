"""Which markers to look for among ids: those of a chat template, or those that somebody gives by hand, or both.

A part given by hand says which turns are trained; what ends them the template knows best. So where the given response
part is how the template begins an assistant's turn, the template's terminators and the headers of all its roles count
too. Where it is not (text formatted by hand), what can be known is: the end-of-sequence token ends a turn, and the
given instruction part and the control tokens that both parts begin with begin something else.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from premask.encode.encoder import Encoder
from premask.encode.spelling import spell_vocabulary
from premask.errors import UsageError
from premask.mask.controls import Vocabulary
from premask.mask.grammar import Grammar, Probe
from premask.mask.responses import SpeltMarkers, control, spelt_marker, spelt_markers
from premask.mask.search import Markers


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """The texts of the markers."""

    headers: tuple[str, ...]
    closings: tuple[str, ...]
    openings: tuple[str, ...]
    anchors: Mapping[str, str] = field(default_factory=dict)
    """What always stands before a header or opening."""
    unfollowed: tuple[str, ...] = ()
    """What rows may have that these markers cannot follow."""


def sought_by_parts(instruction: str, response: str, vocabulary: Vocabulary, eos: str | None) -> Sought:
    """The markers of text that was formatted by hand."""
    shared = ""
    for start, token in vocabulary.find_all(response):
        if start != len(shared) or not instruction.startswith(shared + token):
            break
        shared += token
    return Sought(
        headers=(response,),
        closings=(eos,) if eos else (),
        openings=(instruction, shared) if shared else (instruction,),
    )


def sought_by_grammar(grammar: Grammar, parts: tuple[str, str] | None, vocabulary: Vocabulary) -> Sought | None:
    """The markers of a template; `parts` are the instruction and response part that are given with it.

    None where the given response part is not how the template begins a turn. UsageError where nothing is given and
    the template has no markers by which its turns can be found.
    """
    headers = tuple(marker.text.decode() for marker in grammar.markers.headers)
    openings = tuple(o for texts in grammar.openings.values() for o in texts)
    if parts is None and "" not in grammar.searchable:
        raise UsageError(
            "The turns of this chat template cannot be found by markers"
            + (f" (it has {', '.join(map(repr, headers))})" if headers else "")
            + ". Give instruction_part and response_part, or prepare the conversations themselves: `premask prepare`."
        )
    if parts is not None:
        instruction, response = parts
        if not _fits(response.strip(), [header.strip() for header in headers]):
            return None
        openings = (*openings, instruction, *headers)
        headers = (response, *(h for h in headers if h.startswith(response)))
    probes = [probe for group in grammar.probes.values() for probe in group]
    return Sought(
        headers=headers,
        closings=tuple(grammar.closings),
        openings=openings,
        anchors={text: anchor_of(text, probes, vocabulary) for text in (*headers, *openings)},
        unfollowed=tuple(sorted(set(grammar.probes) - grammar.searchable - {"", "parallel calls"})),
    )


def _fits(response: str, headers: Sequence[str]) -> bool:
    """Whether a response part is how a template begins a turn, or the beginning or end of it."""
    return bool(response) and any(
        header.startswith(response) or response.startswith(header) or response.endswith(header) for header in headers
    )


_WORD = re.compile(r"[a-z]\d[a-z](?![a-z0-9])")
"""The words of the probes."""


def anchor_of(text: str, probes: Sequence[Probe], vocabulary: Vocabulary) -> str:
    """What every rendering has before a marker, back to a message's own words; empty where that differs."""
    gaps = []
    for probe in probes:
        for found in re.finditer(re.escape(text), probe.text):
            words = list(_WORD.finditer(probe.text, 0, found.start()))
            if words:
                gaps.append(probe.text[words[-1].end() : found.start()])
    columns = zip(*(gap[::-1] for gap in gaps), strict=False)
    size = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    for at, token in vocabulary.find_all(gaps[0]) if gaps else ():
        if at < len(gaps[0]) - size < at + len(token):  # never from the middle of a control token on
            size = len(gaps[0]) - at - len(token)
    return gaps[0][len(gaps[0]) - size :] if gaps else ""


def spell_markers(
    sought: Sought, encoder: Encoder, tokenizer_json: bytes, vocabulary: Vocabulary, restarts: Sequence[str]
) -> SpeltMarkers:
    """Spell markers as a tokenizer does. `restarts` are tokens that begin an example wherever they stand: BOS, padding.

    Raises UsageError where the response part has no tokens.
    """
    table = [*spell_vocabulary(encoder, tokenizer_json)]
    for i in (*vocabulary.controls.values(), *vocabulary.tags.values()):
        table[i] = control(i)
    prefix = _joined("a", encoder, table).removesuffix(b"a")  # what the tokenizer puts before a text

    def spell(text: str) -> bytes:
        return _joined(text, encoder, table).removeprefix(prefix)

    def spelt(texts: Sequence[str]) -> dict[bytes, str]:
        found = {spell(text): text for text in texts if spell(text)}
        return {marker: found[marker] for marker in sorted(found, key=len, reverse=True)}

    headers, openings = spelt(sought.headers), spelt([*sought.openings, *restarts])
    openings = {marker: text for marker, text in openings.items() if marker not in headers}
    closings = [*reversed(spelt(sought.closings))]  # of several at one place the last counts
    if not headers:
        found = ", ".join(map(repr, sought.headers))
        raise UsageError(f"response_part: expected a text that has tokens, found {found}.")
    anchors = []
    for marker, text in (*headers.items(), *openings.items()):
        whole = spell(sought.anchors.get(text, "") + text)
        anchors.append(whole.removesuffix(marker) if whole.endswith(marker) else b"")
    spelt_groups = (tuple(spelt_marker(text) for text in texts) for texts in (headers, closings, openings))
    return spelt_markers(table, Markers(*spelt_groups), anchors, [spell(text) for text in restarts])


def _joined(text: str, encoder: Encoder, table: Sequence[bytes]) -> bytes:
    """A text as its tokens spell it, which is not always as it is written.

    A token may swallow the white space beside it (Phi-3's `<|assistant|>`), and a tokenizer may put a space before it.
    """
    return b"".join(table[i] for i in encoder.encode([text]).ids.tolist())
