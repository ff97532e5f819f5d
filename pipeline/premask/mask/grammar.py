"""The turn grammar of a chat template, discovered by rendering probes: nothing here knows a model family.

Probes are short conversations with words that cannot be mistaken. Their traced renderings say how every role's turn
begins, what the generation prompt is, how a turn ends, and what the template does to its input. The markers that
follow from them are tried out on the probes themselves: only where the search reproduces the provenance is it used as
proof, feature by feature (tools, reasoning ...), since many templates write those in ways that markers alone cannot
follow.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from premask.encode.encoder import Encoder
from premask.mask.controls import Vocabulary
from premask.mask.parts import Part, Tags
from premask.mask.search import Marker, Markers, differing, haystack, search
from premask.mask.turns import Turns, find_turns, runs
from premask.mask.written import REASONING_KEYS
from premask.read import Conversation
from premask.render.forms import Forms, adapt
from premask.render.program import Program, Rendering
from premask.render.values import TStr

Message = dict[str, Any]


def features(conversation: Conversation) -> frozenset[str]:
    """What a conversation has beyond alternating user and assistant turns of text: a property of its shape alone."""
    messages = conversation.messages
    roles = [m["role"] for m in messages]
    calling = [m for m in messages if m.get("tool_calls")]
    reasoning = any(m.get(key) is not None for m in messages for key in REASONING_KEYS)
    found = {
        "system": roles[0] in ("system", "developer"),
        "late system": any(role in ("system", "developer") for role in roles[1:]),
        "tools": bool(conversation.tools or calling) or any(role in ("tool", "function") for role in roles),
        "parallel calls": any(len(m["tool_calls"]) > 1 for m in calling),
        "text beside calls": any(m.get("content") is not None for m in calling),
        "reasoning": reasoning,
        "template arguments": bool(conversation.template_args),  # of a row: they may change any marker
        "out of turn": roles[0] == "assistant" or any(a == b != "tool" for a, b in itertools.pairwise(roles)),
    }
    return frozenset(name for name, has in found.items() if has)


def conversations_to_probe() -> dict[str, list[Conversation]]:
    """Conversations by feature; the empty name is plain chat."""
    user, again = {"role": "user", "content": "q1q"}, {"role": "user", "content": "q2q"}
    answer, last = {"role": "assistant", "content": "a1a"}, {"role": "assistant", "content": "a2a"}
    system = {"role": "system", "content": "s1s"}
    call = {"type": "function", "id": "c9c9c9c9c", "function": {"name": "f9f", "arguments": {"x": "v9v"}}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "content": "r1r", "name": "f9f", "tool_call_id": "c9c9c9c9c"}
    thinking = {"role": "assistant", "content": "a1a", "reasoning_content": "t1t"}
    thought = {"role": "assistant", "content": "a2a", "reasoning_content": "t2t"}
    parameters = {"type": "object", "properties": {"x": {"type": "string", "description": "d9d"}}, "required": ["x"]}
    tool = {"type": "function", "function": {"name": "f9f", "description": "d8d", "parameters": parameters}}

    def chat(*messages: Message, tools: list[dict[str, Any]] | None = None) -> Conversation:
        return Conversation(messages=list(messages), tools=tools, template_args={}, weights=None)

    return {
        "": [chat(user, answer), chat(user, answer, again, last)],
        "system": [chat(system, user, answer), chat(system, user, answer, again, last)],
        "late system": [chat(user, answer, system, again, last)],
        "tools": [
            chat(user, calling, result, last, tools=[tool]),
            chat(user, calling, result, answer, again, last, tools=[tool]),
            chat(user, calling, result, calling, result, last, tools=[tool]),
            chat(user, calling, tools=[tool]),
        ],
        "parallel calls": [chat(user, {**calling, "tool_calls": [call, call]}, result, result, last, tools=[tool])],
        "text beside calls": [
            chat(user, {**calling, "content": text}, *after, tools=[tool])
            for text in ("", "a3a")
            for after in ([result, last], [])
        ],
        "reasoning": [chat(user, thinking), chat(user, thinking, again, thought)],
        "out of turn": [chat(user, answer, last), chat(user, again, answer)],
    }


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe as it was rendered."""

    conversation: Conversation
    text: str
    pieces: list[str | TStr]
    turns: Turns


@dataclass(frozen=True, slots=True)
class Grammar:
    """What was discovered of a template."""

    forms: Forms
    probes: dict[str, list[Probe]]
    """Renderings by feature."""
    refused: dict[str, str]
    """Features whose probes do not render, or are not proven, and why."""
    headers: list[str]
    """What precedes an assistant's own words, without what a longer prompt goes on with."""
    closings: list[str]
    """Terminators."""
    openings: dict[str, list[str]]
    """How the turns of the other roles begin."""
    prompt: str
    """The generation prompt behind a user message."""
    tags: Tags
    """What opens and closes the thinking part of a turn."""
    markers: Markers
    searchable: frozenset[str] = field(default_factory=frozenset)
    """Features (the empty one included) for which the search by markers reproduces the provenance."""

    def can_search(self, conversation: Conversation) -> bool:
        """Whether a conversation has only features that are searchable."""
        return "" in self.searchable and features(conversation) <= self.searchable


def discover(
    program: Callable[[Callable[[Rendering], tuple[list[str | TStr], "Found"]]], "Program[Found]"],
    vocabulary: Vocabulary,
    encoder: Encoder,
    forms: Forms,
) -> Grammar:
    """Probe a template. `program` makes one that uses the given analysis."""

    def analyse(rendering: Rendering) -> tuple[list[str | TStr], Found]:
        pieces, turns = find_turns(rendering, vocabulary, None)
        return pieces, Found(pieces, turns)

    tried = program(analyse)
    probes: dict[str, list[Probe]] = {}
    refused: dict[str, str] = {}
    for name, conversations in conversations_to_probe().items():
        for conversation in (adapt(c, forms) for c in conversations):
            rendered = tried.render([conversation])
            if rendered.failures:
                refused.setdefault(name, rendered.failures[0].detail)
                continue
            found = rendered.paths[0]
            probes.setdefault(name, []).append(Probe(conversation, rendered.texts[0], found.pieces, found.turns))
    every = [probe for group in probes.values() for probe in group]
    headers = _headers(every, vocabulary)
    closings = sorted({text for p in every for text in _closings(p)})
    openings = _openings(every)
    prompts = sorted({prompt for p in every for prompt in p.turns.prompts if prompt.strip()})
    markers = Markers(
        headers=tuple(_marker(h, vocabulary) for h in sorted({*headers, *prompts}, key=len)),
        closings=tuple(_marker(c, vocabulary) for c in closings),
        openings=tuple(_marker(o, vocabulary) for texts in openings.values() for o in texts),
        prompts=tuple(_marker(prompt, vocabulary) for prompt in prompts),
    )
    return Grammar(
        forms=forms,
        probes=probes,
        refused=refused,
        headers=headers,
        closings=closings,
        openings=openings,
        prompt=_prompt(tried, forms),
        tags=_tags(probes.get("reasoning", []), headers, vocabulary),
        markers=markers,
        searchable=frozenset(n for n, group in probes.items() if _reproduces(group, markers, encoder)),
    )


@dataclass(frozen=True, slots=True)
class Found:
    """The analysis of a probe."""

    pieces: list[str | TStr]
    turns: Turns


def _headers(probes: list[Probe], vocabulary: Vocabulary) -> list[str]:
    """What precedes the assistant's own words, shortest first: as rendered, and without the tags at its end."""
    found = {header for probe in probes for _, header in probe.turns.headers}
    for header in list(found):
        tags = [at for at, token in vocabulary.find_all(header) if token in vocabulary.tags]
        found.add(header[: min(tags, default=len(header))])
    return sorted((header for header in found if header.strip()), key=len)


def _marker(text: str, vocabulary: Vocabulary) -> Marker:
    first = vocabulary.find(text)[:1]
    token = vocabulary.controls[first[0][1]] if first and first[0][0] == 0 else None
    return Marker(text.encode(), token)


def _text(piece: str | TStr) -> str:
    return piece if isinstance(piece, str) else str.__str__(piece.value)


def _closings(probe: Probe) -> set[str]:
    return {
        "".join(_text(p) for p in probe.pieces[s.start : s.end])
        for s in probe.turns.stretches
        if s.part is Part.TERMINATOR
    }


def _openings(probes: list[Probe]) -> dict[str, list[str]]:
    """By role, the literals before the first text of its messages."""
    found: dict[str, set[str]] = {}
    for probe in probes:
        for index, message in enumerate(probe.conversation.messages):
            if message["role"] == "assistant":
                continue
            pieces = [p for p, o in zip(probe.pieces, probe.turns.owners, strict=True) if o == index]
            opening = ""
            for piece in pieces:
                if not isinstance(piece, str):
                    break
                opening += piece
            if opening.strip() and len(opening) < sum(len(_text(p)) for p in pieces):
                found.setdefault(message["role"], set()).add(opening)
    return {role: sorted(texts, key=len) for role, texts in found.items()}


def _tags(probes: list[Probe], headers: list[str], vocabulary: Vocabulary) -> Tags:
    """The texts around reasoning: what stands between header and reasoning, and the first token (or word) behind it."""
    for probe in probes:
        texts = [_text(piece) for piece in probe.pieces]
        for i, text in enumerate(texts):
            if text != "t1t":
                continue
            before = "".join(texts[:i]).rpartition("q1q")[2]
            opening = before.rpartition(headers[0])[2].strip() if headers else before.strip()
            behind = texts[i + 1] if i + 1 < len(texts) else ""
            tokens = vocabulary.find_all(behind)
            closing = tokens[0][1] if tokens else behind.split()[0] if behind.split() else ""
            if opening and closing:
                return Tags(opening, closing)
    return Tags()


def _prompt(program: "Program[Found]", forms: Forms) -> str:
    """What the template appends behind a user message when asked for a generation prompt."""
    user = adapt(
        Conversation(messages=[{"role": "user", "content": "q1q"}], tools=None, template_args={}, weights=None), forms
    )
    try:
        without, asked = program.render_plain(user), program.render_plain(user, add_generation_prompt=True)
    except Exception:
        return ""
    shared = next(
        (i for i, (a, b) in enumerate(zip(without, asked, strict=False)) if a != b), min(len(without), len(asked))
    )
    return asked[shared:]


def _reproduces(probes: list[Probe], markers: Markers, encoder: Encoder) -> bool:
    """Whether the search finds exactly the turns that provenance found."""
    if not markers.headers:
        return False
    texts = [p.text for p in probes]
    encoded = encoder.encode(texts)
    hay = haystack(texts, encoded.ids, encoded.starts)
    starts, ends = [], []
    for base, probe in zip(hay.bases, probes, strict=False):
        borders = np.concatenate(([0], np.cumsum([len(_text(p).encode()) for p in probe.pieces])))
        for run in runs(probe.turns.stretches):
            starts.append(base + borders[run.start])
            ends.append(base + borders[run.end])
    found = search(hay, markers)
    expected = np.array(starts, np.int64), np.array(ends, np.int64)
    return not differing(found[:2], expected, hay.bases).any()
