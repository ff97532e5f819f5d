"""Why every stretch of a rendered conversation is trained or not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from premask.dtypes import IGNORE_INDEX, Int32Array
from premask.mask.choices import Path
from premask.mask.parts import Part
from premask.mask.turns import Turns
from premask.render.values import TStr

_PARTS = {
    Part.CONTENT: "content",
    Part.REASONING: "thinking",
    Part.TOOL_CALLS: "tool call",
    Part.TERMINATOR: "terminator",
}


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring pieces of one origin."""

    text: str
    trained: bool
    weight: float
    origin: str
    """Who wrote it."""
    reason: str
    """Why it is trained or not."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """One conversation, stage by stage."""

    stretches: list[Stretch]
    questions: list[str]
    """What the template asked of the conversation, with the answers."""
    proof: str
    ids: Int32Array
    """`[T]` the example's ids; empty where the row is rejected."""
    labels: Int32Array
    """`[T]` its labels."""
    rejected: str
    """Reason and detail; empty where the row is kept."""


def stretches(
    pieces: Sequence[str | TStr],
    turns: Turns,
    path: Path,
    roles: Sequence[str],
    weights: Sequence[float | None],
    tools: int,
) -> list[Stretch]:
    """The pieces of one rendering, neighbours of one kind together; the first `tools` fields are tool schemas."""
    part_of = {i: s for s in turns.stretches for i in range(s.start, s.end)}
    spans = [
        (range(int(a), int(b)), int(m), bool(d))
        for a, b, m, d in zip(path.starts, path.ends, path.messages, path.default, strict=True)
    ]
    found: list[Stretch] = []
    for i, piece in enumerate(pieces):
        owner = turns.owners[i]
        span = next((s for s in spans if i in s[0]), None)
        stated = weights[span[1]] if span else None
        weight = 0.0 if span is None else float(span[2]) if stated is None else stated
        stretch = part_of.get(i)
        if stretch is not None:
            words = stretch.part is not Part.CONTENT or isinstance(piece, TStr)
            kind = _PARTS[stretch.part] if words else "the template's own words"
            origin = f"turn of message {stretch.message}: {kind}"
            reason = _reason(weight, span is not None, stated)
        else:
            schema = isinstance(piece, TStr) and any(source < tools for source in piece.sources)
            origin = "tool schemas" if schema else "template" if owner is None else f"message {owner} ({roles[owner]})"
            reason = (
                "the generation prompt gives it" if owner is not None and _is_header(turns, i, owner) else "not emitted"
            )
        text = piece if isinstance(piece, str) else str(piece.value)
        if found and (found[-1].origin, found[-1].reason, found[-1].weight) == (origin, reason, weight):
            found[-1] = Stretch(found[-1].text + text, weight != 0, weight, origin, reason)
        else:
            found.append(Stretch(text, weight != 0, weight, origin, reason))
    return [s for s in found if s.text]


def _is_header(turns: Turns, piece: int, owner: int) -> bool:
    return any(s.message == owner and s.start > piece for s in turns.stretches)


def _reason(weight: float, chosen: bool, stated: float | None) -> str:
    if not chosen:
        return "masked by the recipe"
    if stated is not None:
        return f"weight {stated:g}, stated by the message"
    return "emitted by the model" if weight else "masked by train_on"


def ask(question: object, answer: object, names: Sequence[str]) -> str:
    """A guard in words close to Jinja's; `names` says where the fields stand."""
    return f"{_shown(question, names)} -> {answer!r}"[:160]


def _shown(e: object, names: Sequence[str]) -> str:
    def shown(*operands: object) -> list[str]:
        return [_shown(operand, names) for operand in operands]

    match e:
        case ("field", int(i)):
            return names[i]
        case ("const", value):
            return repr(value)
        case ("path", base, *keys):
            return _shown(base, names) + "".join(f"[{key!r}]" for key in keys)
        case ("call", str(name), base, *arguments):
            return f"{_shown(base, names)}.{name}({', '.join(shown(*arguments))})"
        case ("item", base, index):
            return f"{_shown(base, names)}[{index}]"
        case ("slice", base, *bounds):
            return f"{_shown(base, names)}[{':'.join('' if b is None else str(b) for b in bounds)}]"
        case ("in", a, b):
            return " in ".join(shown(a, b))
        case ("cmp", operator, a, b):
            return f" {operator} ".join(shown(a, b))
        case ("cat", *parts):
            return " ~ ".join(shown(*parts))
        case (str(name), base, *_):
            return f"{name}({_shown(base, names)})"
    return repr(e)


def labels(ids: Int32Array, spans: Int32Array) -> Int32Array:
    """`[T]` int32 labels of one example with the trained `spans` `[S, 2]`."""
    trained = np.full(len(ids), IGNORE_INDEX, np.int32)
    for start, end in spans:
        trained[start:end] = ids[start:end]
    return trained
