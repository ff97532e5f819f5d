"""Which encoder gives a run its ids: the fastest that is admitted, where the input is large enough to repay it.

A tokenizer is examined once (`encode/admission.py`, `verdicts.py`); every run compares its own first rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson

from premask.encode.admission import Verdict, examine, why_unfit
from premask.encode.backends import BACKENDS, FAST, REFERENCE, installed
from premask.encode.encoder import Encoder
from premask.errors import UsageError
from premask.intake import Input
from premask.mask.masker import Masker
from premask.read import Conversation, convert, first_rows
from premask.render.forms import adapt
from premask.verdicts import AUTO, WORTH_LOADING, recall, remember

WORTH_EXAMINING = 16 * 2**20
"""Bytes of sources from which a backend repays its examination too (two seconds)."""

SAMPLE = 500
"""Rows of the caller's that are part of an examination."""

LONGEST = 2**16
"""Bytes of a row that is compared: the reference takes 200 times as much memory."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The encoder of a run."""

    name: str
    reason: str
    """Why it is this one."""


def require_known(asked: str) -> None:
    """UsageError unless an encoder of that name may be asked for."""
    if asked not in (AUTO, *BACKENDS):
        raise UsageError(f"--encoder: expected {AUTO} or one of {', '.join(BACKENDS)}, found {asked!r}")


def choose(asked: str, encoder: Encoder, size: int, sample: Callable[[], Sequence[str]]) -> Choice:
    """The encoder for sources of `size` bytes, of which `sample` gives some rendered texts.

    `asked` is one of `BACKENDS`, or `auto`. UsageError for a backend that is asked for by name, but not admitted.
    """
    require_known(asked)
    encoder.use(REFERENCE)
    if asked == REFERENCE:
        return Choice(REFERENCE, "asked for")
    if asked != AUTO:
        verdict = _verdict(encoder, asked, sample)
        if not verdict.admitted:
            raise UsageError(f"--encoder {asked}: not admitted for this tokenizer: {verdict.reason}; leave it out")
        return Choice(asked, "asked for, and admitted")
    reasons = []
    for name in FAST:
        reason = _why_not(encoder, name, size, sample)
        if not reason:
            return Choice(name, "the fastest that is admitted")
        reasons.append(f"{name}: {reason}")
    return Choice(REFERENCE, "; ".join(reasons))


def rendered_sample(masker: Masker, inputs: Sequence[Input]) -> list[str]:
    """The first rows of every input, rendered as far as they can be; long ones are left out."""
    rows = [(each, row) for each in inputs for row in first_rows(each.source, max(1, SAMPLE // len(inputs)))]
    short = [(each, row) for each, row in rows if len(orjson.dumps(row, default=bytes.hex)) <= LONGEST]
    found = [convert(each.format, row, each.shape) for each, row in short]
    conversations = [adapt(c, masker.grammar.forms) for c in found if isinstance(c, Conversation) and not c.whole]
    return [text for text in masker.program.render(conversations).texts if text]


def _why_not(encoder: Encoder, name: str, size: int, sample: Callable[[], Sequence[str]]) -> str:
    """Why the backend `name` is not taken of itself; empty where it is."""
    if installed(name) is None:
        return "not installed (premask[fast])"
    known = _remembered(encoder, name)
    if size < (WORTH_EXAMINING if known is None else WORTH_LOADING):
        return "the input is too small to repay it"
    return _verdict(encoder, name, sample).reason


def _verdict(encoder: Encoder, name: str, sample: Callable[[], Sequence[str]]) -> Verdict:
    """What was remembered; otherwise an examination, remembered."""
    known = _remembered(encoder, name)
    if known is not None:
        return known
    verdict = examine(encoder, name, sample())
    remember(encoder.raw, name, verdict)
    return verdict


def _remembered(encoder: Encoder, name: str) -> Verdict | None:
    unfit = why_unfit(encoder)
    return Verdict(unfit) if unfit else recall(encoder.raw, name)
