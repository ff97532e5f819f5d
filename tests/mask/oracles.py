"""Three ways to say which tokens are trained, none of which knows how premask finds out.

All render with transformers' own function, take token positions from `tokenizers`, and loop.

- **scan**: message text is defused (every `<`, `[`, `#`, `|` of it becomes a private character, one for one), so that
  whatever the family's regular expression finds in the rendered text was written by the template. Valid if the defused
  rendering, fused again, is the rendering: then both have one structure. Judges ids and every label.
- **prefix**: a turn starts where the whole rendering parts from the rendering of the messages before it with the
  generation prompt, and ends where the rendering of the messages up to it ends. Valid where those are prefixes. Judges
  every label.
- **sentinel**: every text of the conversation becomes a unique word; the literals between the words must be those of
  the real rendering. Judges tokens of message text only: all of the assistant's, none of anybody else's.
"""

import datetime
import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from premask.dtypes import Examples
from premask.mask.masker import Masked
from premask.read import Conversation

DATE = datetime.datetime(2025, 1, 1)
FUSES = {c: chr(0xE000 + n) for n, c in enumerate("<[#|｜")}
DEFUSE, FUSE = str.maketrans(FUSES), str.maketrans({v: k for k, v in FUSES.items()})
WHITE_SPACE = "".join(c for c in map(chr, range(0x3001)) if c.isspace() and not "\x1c" <= c <= "\x1f")
"""Unicode's `White_Space`; Python counts four separators more."""
LOOKED_FOR = re.compile("(</?think>)")
"""What templates look for in the assistant's text."""


@dataclass(frozen=True)
class Template:
    """A template with the tokenizer of its family, as the oracles need them."""

    source: str
    variables: dict[str, str]
    turn: str
    tokenizer: Callable[[tuple[AddedToken, ...]], bytes]
    added: tuple[AddedToken, ...]
    parts: bool = False
    text_arguments: bool = False
    nulls: bool = False
    lists: str = ""
    final: str = ""
    """What the template writes behind the whole conversation."""
    given: str = ""
    """How the generation prompt ends where the template leaves that end to the message."""
    borrowed: tuple[str, ...] = ()
    """Stop tokens that are written as the next turn's header only."""
    prefixes: bool = True
    """Whether its generation prompt is to be believed."""

    @property
    def tags(self) -> set[str]:
        """Added tokens that are not special and come in pairs."""
        ordinary = {t.content for t in self.added if not t.special}
        opening = {t for t in ordinary if t.replace("<", "</", 1) in ordinary}
        return opening | {t.replace("<", "</", 1) for t in opening}

    @functools.cached_property
    def plain(self) -> Tokenizer:
        """The tokenizer without added tokens."""
        return Tokenizer.from_str(self.tokenizer(()).decode())

    @functools.cached_property
    def full(self) -> Tokenizer:
        return Tokenizer.from_str(self.tokenizer(self.added).decode())

    def render(self, messages: list[dict[str, Any]], conversation: Conversation, prompt: bool = False) -> str:
        """As transformers renders. Raises what the template raises."""
        _compile_jinja_template(self.source).globals["strftime_now"] = (
            DATE.strftime
        )  # the cached one, which renders below
        arguments = {**self.variables, **conversation.template_args}
        (text,), _ = render_jinja_template(
            [self.formed(messages)],
            tools=conversation.tools,
            chat_template=self.source,
            add_generation_prompt=prompt,
            **arguments,
        )
        return text

    def formed(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages in the forms that the template takes, by the family's own table."""
        return [self._formed(m) for m in messages]

    def _formed(self, message: dict[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        empty = None if self.nulls else ""
        message = {key: value for key, value in message.items() if value is not None}  # as `apply_chat_template` does
        if content is None:
            message["content"] = content = empty
        if self.parts and isinstance(content, str):
            content = [{"type": "text", "text": content}]
        elif isinstance(content, list) and not self.parts and message["role"] not in self.lists.split():
            content = "\n".join(part["text"] for part in content)
        if "content" in message:
            message["content"] = content
        if self.text_arguments:
            for call in message.get("tool_calls") or []:
                if not isinstance(call["function"]["arguments"], str):
                    text = json.dumps(call["function"]["arguments"], ensure_ascii=False)
                    message["tool_calls"] = [
                        {**c, "function": {**c["function"], "arguments": text}} if c is call else c
                        for c in message["tool_calls"]
                    ]
        return message


@dataclass(frozen=True)
class Judged:
    """What an oracle expects of a row."""

    text: str
    spans: list[tuple[int, int]]
    """Characters of the trained stretches."""
    structure: str
    """The text with message text defused."""


def mapped(value: Any, function: Callable[[str], str]) -> Any:
    """`function` of every string inside, keys included."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, dict):
        return {function(k): mapped(v, function) for k, v in value.items()}
    return [mapped(v, function) for v in value] if isinstance(value, list) else value


def defused(message: dict[str, Any], keep_tags: bool) -> dict[str, Any]:
    """A message that spells nothing; an assistant's keeps its thinking tags if so asked."""

    def defuse(text: str) -> str:
        if not (keep_tags and message["role"] == "assistant"):
            return text.translate(DEFUSE)
        return "".join(p if LOOKED_FOR.fullmatch(p) else p.translate(DEFUSE) for p in LOOKED_FOR.split(text))

    fixed = ("role", "tool_call_id")
    return {k: v if k in fixed else mapped(v, defuse) for k, v in message.items()}


def structure(template: Template, conversation: Conversation) -> tuple[str, str, Conversation] | None:
    """The text, the same with messages defused, and the defused conversation; None where a template reacts to that."""
    text = template.render(conversation.messages, conversation)
    for keep_tags in (False, True):
        harmless = replace(
            conversation,
            messages=[defused(m, keep_tags) for m in conversation.messages],
            tools=mapped(conversation.tools, lambda s: s.translate(DEFUSE)),
        )
        try:
            seen = template.render(harmless.messages, harmless)
        except Exception:
            seen = ""
        if seen.translate(FUSE) == text:
            return text, seen, harmless
    return None


def judge(template: Template, conversation: Conversation) -> tuple[str, Judged] | None:
    """By the first oracle that applies, and which one it was.

    Arguments of a row may change the prompt, which a family's regular expression does not know: those rows go by
    prefix. Where a template writes nothing before the assistant's words (`plain`), only sentinels say where they are.
    """
    found = structure(template, conversation)
    if found is None:
        return None
    text, seen, _ = found
    if not template.turn:
        texts = sentinel(template, conversation)
        spans = None if texts is None else _bare(template, conversation, text, texts)
        return None if spans is None else ("sentinel", Judged(text, spans, seen))
    if conversation.template_args and template.prefixes:
        spans = prefix(template, conversation)
        if spans is not None:
            return "prefix", Judged(text, spans, seen)
        if _prompt(template, conversation) != _prompt(template, None):
            return None
    return "scan", Judged(text, scan(template, seen, text), seen)


def _prompt(template: Template, conversation: Conversation | None) -> str:
    """What the template appends behind a user's message, under the template arguments of a row."""
    user = Conversation(
        messages=[{"role": "user", "content": "Hello"}],
        template_args={} if conversation is None else conversation.template_args,
    )
    asked = template.render(user.messages, user, prompt=True)
    return asked.partition("Hello")[2]


def features(conversation: Conversation) -> set[str]:
    """What a template may refuse in a conversation."""
    messages, found = conversation.messages, set()
    roles = [m["role"] for m in messages]
    calling = [m for m in messages if m.get("tool_calls")]
    found |= {"developer"} if "developer" in roles else set()
    found |= {"system"} if roles[0] == "system" else set()
    found |= {"late system"} if "system" in roles[1:] else set()
    found |= {"result"} if "tool" in roles else set()
    found |= {"call"} if calling else set()
    found |= {"several calls"} if any(len(m["tool_calls"]) > 1 for m in calling) else set()
    found |= {"text beside a call"} if any(m.get("content") for m in calling) else set()
    found |= {"reasoning"} if any(m.get("reasoning_content") for m in messages) else set()
    found |= {"orphan result"} if "tool" in roles and not calling else set()
    found |= {"schemas"} if conversation.tools else set()
    talk = [r for r in roles if r not in ("system", "developer", "tool")]
    pairs = [(a, b) for a, b in itertools.pairwise(talk) if not (a == "assistant" and calling)]
    found |= {"out of turn"} if any(a == b for a, b in pairs) or talk[0] != "user" else set()
    return found


def scan(template: Template, seen: str, text: str) -> list[tuple[int, int]]:
    """By the family's regular expression, over a rendering whose message text is defused.

    What the prompt gives is not emitted, also where it is the message that writes it (`given`).
    """
    spans = [m.span("body") for m in re.finditer(template.turn, seen, re.DOTALL)]
    ends = [a + len(seen[a:b].rstrip()) for a, b in spans]
    given = [text.startswith(template.given, a) and not seen.endswith(template.given, 0, a) for a, _ in spans]
    starts = [a + len(template.given) * by_message for (a, _), by_message in zip(spans, given, strict=True)]
    return list(zip(starts, ends, strict=True))


def _bare(
    template: Template, conversation: Conversation, text: str, texts: list[tuple[int, int, int]]
) -> list[tuple[int, int]] | None:
    """Turns that are nothing but a text and `eos_token`."""
    eos = template.variables["eos_token"]
    said = [(s, e) for number, s, e in texts if conversation.messages[number]["role"] == "assistant"]
    return [(s, e + len(eos)) for s, e in said] if all(text.startswith(eos, e) for _, e in said) else None


def prefix(template: Template, conversation: Conversation) -> list[tuple[int, int]] | None:
    """By rendering beginnings; None where one is not a prefix."""
    found = structure(template, conversation)
    if found is None:
        return None
    text, seen, harmless = found
    own = {t.content for t in template.added}
    spans = []
    for k, message in enumerate(harmless.messages):
        if message["role"] != "assistant":
            continue
        try:
            asked = template.render(harmless.messages[:k], harmless, prompt=True)
            before = template.render(harmless.messages[:k], harmless).removesuffix(template.final)
            whole = template.render(harmless.messages[: k + 1], harmless)
        except Exception:
            return None
        whole = whole.removesuffix(template.final)
        if not (asked.startswith(before) and seen.startswith(before) and seen.startswith(whole)):
            return None
        end = len(whole.rstrip())
        borrowed = next((s for s in template.borrowed if seen.startswith(s, end)), "")
        start = len(asked) if text.startswith(asked.translate(FUSE)) else shared(asked, seen)
        if template.given and start < len(asked):  # no part of a text is shared, unless it ends the prompt
            said = message.get("content")
            words = seen.rfind(said.strip(), len(before), len(whole)) if isinstance(said, str) and said.strip() else -1
            start = min(start, words if words >= 0 else start)
        token = next((m.start() for m in _finditer(own, seen) if m.start() < start < m.end()), start)
        spans.append((token, end + len(borrowed)))
    return spans


def shared(a: str, b: str) -> int:
    """The length of the longest common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def sentinel(template: Template, conversation: Conversation) -> list[tuple[int, int, int]] | None:
    """Message number, start and end of every text in the rendering; None where the literals differ."""
    words: list[tuple[str, int, str]] = []

    def replaced(number: int, value: Any) -> Any:
        def word(text: str) -> str:
            words.append((f"Zq{len(words)}qZ", number, text))
            return words[-1][0]

        if isinstance(value, str):
            return word(value)
        if isinstance(value, list):
            return [{**p, "text": word(p["text"])} if isinstance(p, dict) and "text" in p else p for p in value]
        return value

    messages = []
    for number, message in enumerate(conversation.messages):
        fields = {k: replaced(number, message[k]) for k in ("content", "reasoning_content") if k in message}
        messages.append({**message, **fields})
    try:
        seen = template.render(messages, conversation)
        text = template.render(conversation.messages, conversation)
    except Exception:
        return None
    pattern, of_group = [], []
    for part in re.split(r"(Zq\d+qZ)", seen):
        word = next((w for w in words if w[0] == part), None)
        if word is None:
            pattern.append(re.escape(part))
        else:
            quoted = json.dumps(word[2], ensure_ascii=False)[1:-1]
            forms = {word[2], word[2].strip(), word[2].lstrip("\n"), word[2].strip("\n"), quoted}
            pattern.append("(" + "|".join(re.escape(f) for f in sorted(forms, key=len, reverse=True)) + ")")
            of_group.append(word[1])
    match = re.fullmatch("".join(pattern), text, re.DOTALL)
    if match is None:
        return None
    return [(number, *match.span(n + 1)) for n, number in enumerate(of_group)]


def tokenized(template: Template, judged: Judged) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and character ranges: the template's own control tokens, and plain text between them.

    Tags stand for themselves within the assistant's words; anything else that a message spells is plain text.
    """
    own = {t.content: t for t in template.added}
    swallowing = {t.content for t in template.added if t.rstrip}
    places = {m.start(): m.group() for m in _finditer(own, judged.structure)}
    for start, end in judged.spans:
        start -= len(template.given) * judged.text.endswith(template.given, 0, start)
        for m in _finditer(template.tags, judged.text[start:end]):
            places.setdefault(start + m.start(), m.group())
    ids: list[int] = []
    ranges: list[tuple[int, int]] = []
    at = 0
    for start, token in [*sorted(places.items()), (len(judged.text), "")]:
        if start < at:  # a tag's text inside a longer token
            continue
        encoding = template.plain.encode(judged.text[at:start], add_special_tokens=False)
        ids += encoding.ids
        ranges += [(at + s, at + e) for s, e in encoding.offsets]
        if token:
            ids.append(template.full.token_to_id(token))
            ranges.append((start, start + len(token)))
        at = start + len(token)
        if token in swallowing:
            at += len(judged.text[at:]) - len(judged.text[at:].lstrip(WHITE_SPACE))
    return ids, ranges


def _finditer(tokens: Any, text: str) -> Iterator[re.Match[str]]:
    return re.finditer("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)", text)


def weighted(conversation: Conversation, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans of the turns whose message has no weight of 0; there must be one span a turn."""
    if conversation.weights is None:
        return spans
    turns = [i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
    assert len(turns) == len(spans)
    return [span for i, span in zip(turns, spans, strict=True) if conversation.weights[i] != 0]


def labels(ids: list[int], ranges: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """The definition: a token is trained if its characters lie in a trained stretch, and it is not the first."""
    return [
        i if k and any(start <= s and e <= end and s < e for start, end in spans) else -100
        for k, (i, (s, e)) in enumerate(zip(ids, ranges, strict=True))
    ]


@dataclass
class Tally:
    """What was compared."""

    kept: int = 0
    tokens: int = 0
    trained: int = 0
    oracles: Counter[str] = field(default_factory=Counter)
    """Rows that each oracle judged; `none` where no one could."""
    rejected: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Tally") -> None:
        for name in ("kept", "tokens", "trained"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.oracles.update(other.oracles)
        self.rejected.update(other.rejected)


def arrays(examples: Examples, n: int) -> tuple[list[int], list[int]]:
    """Ids and labels of an example, spans written out one by one."""
    ids = examples.ids[examples.offsets[n] : examples.offsets[n + 1]].tolist()
    labels = [-100] * len(ids)
    for start, end in examples.spans[examples.span_offsets[n] : examples.span_offsets[n + 1]].tolist():
        labels[start:end] = ids[start:end]
    return ids, labels


def examine(template: Template, conversations: Sequence[Conversation], masked: Masked, prefixes: bool = True) -> Tally:
    """Compare every kept row with every oracle that applies. Raises AssertionError at the first difference.

    `prefixes=False` leaves out the prefix oracle for rows that another one judges.
    """
    tally = Tally(rejected=Counter(f.reason for f in masked.failures.values()))
    examples = masked.examples
    assert sorted([*examples.rows.tolist(), *masked.failures]) == list(range(len(conversations)))
    for n, row in enumerate(examples.rows.tolist()):
        conversation = conversations[row]
        ids, labels_ = arrays(examples, n)
        tally.kept += 1
        tally.tokens += len(ids)
        tally.trained += sum(label != -100 for label in labels_)
        found = judge(template, conversation)
        tally.oracles[found[0] if found else "none"] += 1
        if found is None:
            continue
        _, judged = found
        expected, ranges = tokenized(template, judged)
        spans = weighted(conversation, judged.spans)
        _same(template, judged, ids, expected, "ids", ranges)
        _same(template, judged, labels_, labels(ids, ranges, spans), "labels", ranges)
        if prefixes and template.prefixes and (own := prefix(template, conversation)) is not None:
            assert own == judged.spans, f"row {row}: by prefix {own}, by {found[0]} {judged.spans}: {judged.text!r}"
            tally.oracles["prefix too"] += found[0] != "prefix"
        if conversation.weights is None and (texts := sentinel(template, conversation)) is not None:
            _nobody_elses(template, conversation, judged, texts, ranges, labels_)
            tally.oracles["sentinel too"] += found[0] != "sentinel"
    return tally


def _same(
    template: Template, judged: Judged, found: list[int], expected: list[int], what: str, ranges: list[tuple[int, int]]
) -> None:
    if found == expected:
        return
    at = next(
        (k for k, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected))
    )
    start, end = ranges[min(at, len(ranges) - 1)]
    raise AssertionError(
        f"{what} differ at token {at}: expected {expected[at : at + 5]}, found {found[at : at + 5]}, at "
        f"{judged.text[max(0, start - 80) : start]!r} >>> {judged.text[start:end]!r} <<< {judged.text[end:][:60]!r}"
    )


def _nobody_elses(
    template: Template,
    conversation: Conversation,
    judged: Judged,
    texts: list[tuple[int, int, int]],
    ranges: list[tuple[int, int]],
    labels_: list[int],
) -> None:
    """All of the assistant's text that the prompt does not give is trained, none of anybody else's."""
    begins = {begin for begin, _ in judged.spans}
    for number, start, end in texts:
        mine = conversation.messages[number]["role"] == "assistant"
        start += len(template.given) * (start + len(template.given) in begins)
        for (s, e), label in zip(ranges, labels_, strict=True):
            if start <= s and e <= end and s < e and s > 0:
                assert (label != -100) == mine, f"message {number}: {judged.text[s:e]!r} in {judged.text[start:end]!r}"
