"""The markers that Unsloth's `train_on_responses_only` takes when none are given.

Restated from the behaviour of `get_chat_template_parts` of `unsloth_zoo` (PyPI, 2026.10.9), for `mask="unsloth"` only:
three turns with words that cannot be mistaken are rendered, and what stands between the words is cut down to the
headers of user and assistant. premask's own discovery is in `mask/grammar.py`.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from premask.errors import UsageError
from premask.mask.unsloth import Tokenize, core_of, longest_shared

USER, ANSWER = "\u2060USERPROBE7q\u2060", "\u2060ASSTPROBE4z\u2060"
GIVE_PARTS = "Give instruction_part and response_part."

Wrap = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class _Template:
    """A chat template as it is probed."""

    render: Callable[[list[dict[str, Any]], bool], str]
    """Messages to text, with or without a generation prompt."""
    specials: Sequence[str]
    """Special and added tokens, longest first."""
    bos: str
    eos: str

    def leading(self, text: str) -> str:
        """The special token or white space that a text begins with."""
        token = next((s for s in self.specials if text.startswith(s)), None)
        return token or (m.group() if (m := re.match(r"\s+", text)) else "")


def unsloth_parts(tokenizer: Any, named: frozenset[int]) -> tuple[str, str]:
    """The instruction and response part that Unsloth's function finds for a tokenizer or processor of transformers.

    `named` are the added tokens that are not white space. Raises UsageError where it would find none.
    """
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    renderer = tokenizer if getattr(tokenizer, "chat_template", None) is not None else inner
    if getattr(renderer, "chat_template", None) is None:
        raise UsageError(f"The tokenizer has no chat template to find markers in. {GIVE_PARTS}")

    def render(messages: list[dict[str, Any]], prompt: bool) -> str:
        return str(renderer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))

    def tokenize(text: str) -> list[int]:
        return list(inner(text, add_special_tokens=False).input_ids)

    tokens = {str(t) for t in [*inner.all_special_tokens, *inner.get_added_vocab()] if t}
    template = _Template(
        render, sorted(tokens, key=len, reverse=True), bos=inner.bos_token or "", eos=inner.eos_token or ""
    )
    as_user, as_answer, text = _probe(template)
    instruction, response = _between(template, as_user, as_answer, text)
    instruction, response = (_front(part, " ", "\t").rstrip(" \t") for part in (instruction, response))
    if not instruction or not response:
        raise UsageError(f"No markers were found in the chat template. {GIVE_PARTS}")
    ids = tokenize(text)
    found = {
        name: _standing(part, ids, tokenize, named)
        for name, part in (("instruction_part", instruction), ("response_part", response))
    }
    for name, part in found.items():
        if part is None:
            raise UsageError(f"The {name} of the chat template was not found among the ids of a chat. {GIVE_PARTS}")
    return str(found["instruction_part"]), str(found["response_part"])


def _probe(template: _Template) -> tuple[Wrap, Wrap, str]:
    """How contents are given to the template, and three turns as it renders them."""

    def text(words: str) -> Any:
        return words

    def parts(words: str) -> Any:
        return [{"type": "text", "text": words}]

    for as_user, as_answer in ((text, text), (parts, parts), (parts, text)):
        try:
            rendered = template.render(_turns(as_user, as_answer) * 3, False)
        except Exception:  # noqa: S112  templates raise what they like; the next form may do
            continue
        if USER in rendered and ANSWER in rendered:
            return as_user, as_answer, rendered
    raise UsageError(f"The chat template does not render a plain chat. {GIVE_PARTS}")


def _turns(as_user: Wrap, as_answer: Wrap) -> list[dict[str, Any]]:
    return [{"role": "user", "content": as_user(USER)}, {"role": "assistant", "content": as_answer(ANSWER)}]


def _between(template: _Template, as_user: Wrap, as_answer: Wrap, text: str) -> tuple[str, str]:
    """The instruction and response part of the template, before white space at their ends is cut."""
    before_user, before_answers = _most_common(_gaps(text, ANSWER, USER)), _gaps(text, USER, ANSWER)
    before_answer = _most_common(before_answers)
    asked = (_turns(as_user, as_answer) * 3)[:-1]
    prompted, plain = template.render(asked, True), template.render(asked, False)
    header = "" if prompted == plain else _past_shared(template, _tail(prompted), _tail(plain))[0]
    if header and before_answer.endswith(header) and len(header) < len(before_answer):
        response = header
        instruction = _front(before_user, before_answer[: -len(header)])
    elif header and header == before_answer:
        response, instruction = _past_shared(template, header, before_user)
        instruction = _front(instruction, " ", "\t", template.eos, template.bos)
    else:
        instruction, response = (
            _front(gap, " ", "\t", template.eos, template.bos) for gap in (before_user, before_answer)
        )
    closing = _closing(template, _tail(plain))
    if closing and response.startswith(closing) and len(closing) < len(response):
        response, instruction = _without_image(template, as_answer, closing, response, instruction)
    response = _without_scaffold(template, as_user, as_answer, response)
    return instruction, _shared_by_last(template, response, before_user, before_answer, before_answers)


def _gaps(text: str, left: str, right: str) -> list[str]:
    """What stands between each `left` and the next `right`."""
    starts = [m.start() for m in re.finditer(re.escape(right), text)]
    ends = [m.end() for m in re.finditer(re.escape(left), text)]
    return [text[end : min(s for s in starts if s >= end)] for end in ends if any(s >= end for s in starts)]


def _most_common(gaps: Sequence[str]) -> str:
    return Counter(gaps).most_common(1)[0][0] if gaps else ""


def _tail(text: str) -> str:
    """What stands behind the last user message."""
    return text[text.rfind(USER) + len(USER) :] if USER in text else ""


def _front(text: str, *prefixes: str) -> str:
    """A text without any of the prefixes at its front, however often."""
    while True:
        prefix = next((p for p in prefixes if p and text.startswith(p)), None)
        if prefix is None:
            return text
        text = text[len(prefix) :]


def _past_shared(template: _Template, a: str, b: str) -> tuple[str, str]:
    """Two texts without the white space and special tokens that both begin with."""
    while True:
        white = [m.group() if (m := re.match(r"\s+", text)) else "" for text in (a, b)]
        token = next((s for s in template.specials if a.startswith(s)), "")
        shared = white[0] if white[0] and white[0] == white[1] else token if token and b.startswith(token) else ""
        if not shared:
            return a, b
        a, b = a[len(shared) :], b[len(shared) :]


def _closing(template: _Template, text: str) -> str:
    """What ends a user turn, where that is nothing but special tokens and white space."""
    rest = text
    while rest and (leading := template.leading(rest)):
        rest = rest[len(leading) :]
    return "" if rest else text


def _without_image(
    template: _Template, as_answer: Wrap, closing: str, response: str, instruction: str
) -> tuple[str, str]:
    """The parts without a terminator that an image comes to stand in the middle of (Command A Vision)."""
    image = [{"type": "text", "text": USER}, {"type": "image"}]
    try:
        text = template.render(
            [{"role": "user", "content": image}, {"role": "assistant", "content": as_answer(ANSWER)}], False
        )
    except Exception:
        return response, instruction
    if response not in text and response[len(closing) :] in text:
        return response[len(closing) :], _front(instruction, closing)
    return response, instruction


def _without_scaffold(template: _Template, as_user: Wrap, as_answer: Wrap, response: str) -> str:
    """A response part without the thinking tags at its end that a turn with thoughts of its own does not have."""
    found = re.search(r"<([^\s/>]+)>\s*</\1>\s*$", response) or re.search(r"</([^\s/>]+)>\s*$", response)
    if not found or not found.start():
        return response
    header, tag = response[: found.start()], found.group(1)
    thoughtful = f"<{tag}>rZ9</{tag}>{ANSWER}"
    try:
        text = template.render(
            [{"role": "user", "content": as_user(USER)}, {"role": "assistant", "content": as_answer(thoughtful)}], False
        )
    except Exception:
        return response
    place = text.rfind(header)
    return header if place >= 0 and not text.startswith(found.group(), place + len(header)) else response


def _shared_by_last(
    template: _Template, response: str, before_user: str, before_answer: str, before_answers: Sequence[str]
) -> str:
    """What the response part has in common with the last turn's, where that is written otherwise (ERNIE)."""
    at = before_answer.find(response) if response else -1
    last = before_answers[-1] if before_answers else response
    if at < 0 or response in last or not last.startswith(before_answer[:at]):
        return response
    mine = before_answer[at:]
    size = longest_shared(mine, last[at:])
    while size and not mine[size - 1].isspace() and not any(mine[:size].endswith(s) for s in template.specials):
        size -= 1
    shared = mine[:size]
    usable = shared.strip() and shared not in before_user and all(shared in gap for gap in before_answers)
    return shared if usable else response


def _standing(part: str, ids: list[int], tokenize: Tokenize, named: frozenset[int]) -> str | None:
    """The spelling of a marker whose ids stand in a chat twice; else one of two that stand there once."""
    counts = {}
    for spelling in (part, f" {part}", f"\n{part}"):
        core = core_of(spelling, tokenize, True, named).ids
        counts[spelling] = sum(ids[i : i + len(core)] == core for i in range(len(ids))) if core else 0
    twice = next((spelling for spelling, count in counts.items() if count >= 2), None)
    return twice or next((spelling for spelling in list(counts)[:2] if counts[spelling]), None)
