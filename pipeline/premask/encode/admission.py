"""Whether a fast backend gives a tokenizer's own ids: static rules, then a comparison with the reference.

What is compared: every added token in many contexts, nearly every code point of Unicode, random texts of what
tokenizers trip over (white space, digits, apostrophes, marks, emoji, pieces of added tokens), and texts of the caller.
The first text whose ids differ ends it. Cost: about two seconds, nearly all of it the reference's.
"""

import random
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from premask.encode.backends import Backend, load
from premask.encode.encoder import Encoder
from premask.encode.kind import components
from premask.errors import UsageError

RULES = 1
"""Version of what is compared; any change of it makes old verdicts void."""

KNOWN = frozenset(("ByteLevel", "Split", "Digits", "NFC"))
"""Normalizers and pre-tokenizers with which backends were tried at length."""

RANDOM_TEXTS = 3000
BATCH = 256

_STUFF = (
    *(" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\u00a0", "\u2009", "\u3000", "\u200b", "\x0b", "\x1c", "\x85"),
    *("'s", "'S", "’ll", "'", "don't", "I'VE", "12", "1234567", "3.14", "٣", "①", "Ⅻ", "1,000", "0x7f"),
    *("the", " water", "Straße", "naïve", "ﬁ", "İ", "ſ", "word_word", "camelCase", "HTTPServer", "foo(bar)[0]"),
    *(
        "e\u0301",
        "\u0301",
        "a\u0308\u0323",
        "한",
        "\u1112\u1161\u11ab",
        "Å",
        "\u212b",
        "Ｆ",
        "नमस्ते",
        "中文字",
        "、",
        "。",
    ),
    *("🙂", "👩\u200d🚀", "🇩🇪", "👍🏽", "\ufe0f", "\u202e", "\ufeff", "\ufffd", "\U000e0041", "\U000f0000", "\x00"),
    *("...", "!!!", "--", "---", "===", "://", "</", "/>", "```", "\\n", '"', "{}", "<|", "|>", "<", ">", "[INST]"),
)
"""What random texts are made of, besides pieces of added tokens and any characters at all."""


_EMPTY = ("Cn", "Co", "Cs")
"""Unicode's categories of code points that mean nothing: unassigned, private, surrogates."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a backend may stand for the reference."""

    reason: str
    """Why it may not; empty where it is admitted."""
    texts: int = 0
    """How many texts were compared."""

    @property
    def admitted(self) -> bool:
        """Whether it may."""
        return not self.reason


def examine(encoder: Encoder, name: str, sample: Sequence[str] = ()) -> Verdict:
    """Compare the backend `name` with the reference in `encoder` on all of the above, and on the texts of `sample`.

    UsageError where it is not installed.
    """
    unfit = why_unfit(encoder)
    if unfit:
        return Verdict(unfit)
    try:
        backend = load(name, encoder.raw)
    except UsageError:
        raise
    except BaseException as error:
        return Verdict(f"it refuses the tokenizer: {_said(error)}")
    return compare(encoder, backend, [*sample, *probes(encoder)])


def why_unfit(encoder: Encoder) -> str:
    """Why no fast backend is tried for a tokenizer; empty where one is."""
    model: dict[str, Any] = encoder.spec["model"]
    if not encoder.byte_level:
        return "the tokenizer is not byte-level, so the reference is needed for the offsets"
    if model.get("dropout"):
        return "the tokenizer encodes by chance (dropout)"
    parts = [*components(encoder.spec.get("normalizer")), *components(encoder.spec.get("pre_tokenizer"))]
    others = sorted({part["type"] for part in parts} - KNOWN)
    return f"no fast backend was tried with {', '.join(others)}" if others else ""


def compare(encoder: Encoder, backend: Backend, texts: Iterable[str]) -> Verdict:
    """Encode texts by both; the verdict names the first that differs."""
    count, waiting = 0, iter(texts)
    while batch := list(islice(waiting, BATCH)):
        expected = encoder.encode(batch)
        try:
            ids, offsets = backend.encode(batch)
        except BaseException as error:
            return Verdict(f"it fails: {_said(error)}", count)
        if not (np.array_equal(expected.offsets, offsets) and np.array_equal(expected.ids, ids)):
            return Verdict(f"other ids than the reference for {_first_differing(encoder, backend, batch)!r}", count)
        count += len(batch)
    return Verdict("", count)


def _said(error: BaseException) -> str:
    """What a backend raised, which may be anything; interrupts go on."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return f"{type(error).__name__}: {error}"[:200]


def _first_differing(encoder: Encoder, backend: Backend, batch: Sequence[str]) -> str:
    for text in batch:
        if not np.array_equal(backend.encode([text])[0], encoder.reference_ids(text)):
            return text[:80]
    return "a batch, though not for any text of it alone"


def probes(encoder: Encoder) -> Iterator[str]:
    """The texts on which every backend is tried."""
    added = [token.content for token in encoder.added]
    yield ""
    yield from _in_context(added)
    yield from _sweep()
    yield from _at_random(added, random.Random(0))  # noqa: S311 - the same texts every time


def _in_context(added: Sequence[str]) -> Iterator[str]:
    """Every added token: alone, doubled, beside white space, inside words, cut short, before and behind the others."""
    for n, token in enumerate(added):
        following = added[(n + 1) % len(added)]
        yield f"{token}{token} {token}\n{token}\n\n{token}  {token}user\n{token}The{token}é{token}1{token}'s{token}"
        yield f"word{token}word {token[:-1]} {token[1:]}{token[:-1]}{token} {token.upper()} {token.lower()}. {token}"
        yield f"{following}{token}{following} {token} \u00a0{token}\u0301{token[:2]}{following}中{token}🙂{token}\r\n"


def _sweep() -> Iterator[str]:
    """Code points in context: two whole planes, whatever else has a meaning, and a sample of what has none."""
    points = [c for c in range(0x110000) if c < 0x20000 or c % 64 == 0 or unicodedata.category(chr(c)) not in _EMPTY]
    letters = [chr(c) for c in points if not 0xD800 <= c < 0xE000]
    for first in range(0, len(letters), 32):
        yield " ".join(f"a{c}b 1{c}{c}" for c in letters[first : first + 32])


def _at_random(added: Sequence[str], chance: random.Random) -> Iterator[str]:
    cut = [token[: chance.randrange(1, len(token) + 1)] for token in added[:200]]
    stuff = [*_STUFF, *added[:200], *cut]
    for _ in range(RANDOM_TEXTS):
        parts = [
            chr(chance.choice((chance.randrange(0x20, 0x7F), chance.randrange(0xA0, 0xD800))))
            if chance.random() < 0.3
            else chance.choice(stuff)
            for _ in range(chance.randrange(1, 40))
        ]
        yield "".join(parts)
