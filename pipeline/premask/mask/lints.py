"""What a template does that the user of a dataset should know, in plain words. Read off the probes of `grammar.py`."""

import re
from collections.abc import Iterator

from premask.mask.controls import Vocabulary
from premask.mask.grammar import Grammar, Probe

_LIKE_A_TOKEN = re.compile(r"<[|｜][^<>\s]{1,60}>|<[^<>\s/]{1,60}[|｜]>")
"""`<|x|>`, `<|x>` and `<x|>`: how control tokens are written."""


def warnings(grammar: Grammar, vocabulary: Vocabulary) -> Iterator[str]:
    """The remarks that concern every dataset made with this template, the gravest first; none for a sound template."""
    if "" not in grammar.probes:
        yield f"a plain chat does not render: {grammar.refused.get('', 'the template refuses it')}"
        return
    yield from _missing(grammar, vocabulary)
    yield from _endings(grammar, vocabulary)


def lints(grammar: Grammar, vocabulary: Vocabulary) -> Iterator[str]:
    """Every remark on a template, the gravest first."""
    yield from warnings(grammar, vocabulary)
    if "" not in grammar.probes:
        return
    yield from _reasoning(grammar.probes.get("reasoning", []))
    yield from _tools(grammar)
    yield from _history(grammar.probes[""])
    yield from _forms(grammar)
    yield from _texts(grammar.probes[""])
    unsearched = sorted((set(grammar.probes) - grammar.searchable) - {""})
    if "" not in grammar.searchable:
        yield "no usable markers: rows are proven by provenance and their bytes alone"
    elif unsearched:
        yield f"markers alone cannot follow {', '.join(unsearched)}: such rows are proven by provenance and their bytes"


def _endings(grammar: Grammar, vocabulary: Vocabulary) -> Iterator[str]:
    chats = grammar.probes[""]
    if any(probe.turns.unterminated for probe in chats):
        yield (
            "a turn has no terminator to learn: the model would not stop. If a token of the next header ends a turn, "
            "name it with stop_tokens"
        )
    for closing in grammar.closings:
        found = vocabulary.find(closing)
        if not found:
            yield f"the terminator {closing!r} is plain text to this tokenizer, not a token"
        elif vocabulary.stops and closing not in vocabulary.stops:
            yield (
                f"the terminator {closing} is not among the tokens on which generation stops "
                f"({', '.join(sorted(vocabulary.stops))})"
            )


def _missing(grammar: Grammar, vocabulary: Vocabulary) -> Iterator[str]:
    """Texts that look like control tokens, which the template writes and the tokenizer does not have."""
    literals = {p for group in grammar.probes.values() for probe in group for p in probe.pieces if isinstance(p, str)}
    written = {text for literal in literals for text in _LIKE_A_TOKEN.findall(literal)}
    missing = sorted(text for text in written if not vocabulary.find_all(text))
    if missing:
        yield (
            f"the template writes {', '.join(missing[:6])}{' ...' if len(missing) > 6 else ''}, which this tokenizer "
            "does not have: plain text to it. Is this the model's own template?"
        )


def _reasoning(probes: list[Probe]) -> Iterator[str]:
    if not probes:
        return
    if probes[0].turns.reasoning_dropped:
        yield "reasoning_content is not written: the thinking of such rows is left out, and counted"
    elif probes[-1].turns.reasoning_dropped:
        yield (
            "the thinking of earlier turns is dropped: use turns=separate if those turns should be trained as they "
            "were generated"
        )


def _tools(grammar: Grammar) -> Iterator[str]:
    if "tools" not in grammar.probes:
        yield f"tool calls are not supported: {grammar.refused.get('tools', '')}"
    elif any(probe.turns.tools_dropped for probe in grammar.probes["tools"]):
        yield "tool schemas are not written: the model does not see which tools there are"


def _history(chats: list[Probe]) -> Iterator[str]:
    if len(chats) > 1 and not _is_prefix(chats[0], chats[1]):
        yield "earlier turns are rendered otherwise when later ones follow (not prefix-stable)"


def _is_prefix(short: Probe, long: Probe) -> bool:
    """Whether a conversation's text, up to its last turn's end, begins the text of its continuation."""
    end = max((s.end for s in short.turns.stretches), default=0)
    text = "".join(p if isinstance(p, str) else str(p.value) for p in short.pieces[:end])
    return long.text.startswith(text)


def _forms(grammar: Grammar) -> Iterator[str]:
    if not grammar.forms.strings:
        yield "content is taken as a list of parts: strings are given as one part of text"
    if grammar.forms.strings and not grammar.forms.parts >= {"user", "assistant"}:
        yield "content is taken as a string: parts of text are joined by a line break"
    if grammar.forms.nulls == "empty":
        yield "null content would be refused or written as the word None: it is given as an empty text"
    if not grammar.forms.objects:
        yield "arguments of tool calls are given as JSON text"


def _texts(chats: list[Probe]) -> Iterator[str]:
    before, _, _ = chats[0].text.partition("q1q")
    if len(before.split()) > 8:
        yield f"the template adds words of its own before the first message ({len(before):,} characters)"
