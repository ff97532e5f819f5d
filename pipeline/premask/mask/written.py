"""Who wrote each piece of a rendering, and whether the template writes all that the conversation says.

Text derived from a message belongs to that message, a literal to the message in whose iteration it was written. Text of
a tool or a user that is written within an assistant's iteration, with nothing to tell which literals around it belong
to whom, makes the rendering unproven.
"""

from collections.abc import Sequence

from premask.mask.controls import Vocabulary
from premask.render.program import NotRendered, Rendering, Unproven
from premask.render.shape import names, structure
from premask.render.tracing import Piece
from premask.render.values import TStr

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


class Forged(Unproven):
    """The conversation's names spell control tokens."""

    reason = "control_token"


def owner_of(rendering: Rendering, piece: Piece) -> int | None:
    """The message that a piece belongs to; None for what belongs to none. Raises Unproven where that is not certain."""
    stamp = piece.message
    if isinstance(piece.text, str):
        return stamp
    messages = rendering.conversation.messages
    places = {rendering.paths[source][0] for source in piece.text.sources}
    found = {place for place in places if isinstance(place, int)}
    if stamp is None:
        return max(found, default=None)
    if messages[stamp]["role"] == "assistant":
        for other in found - {stamp}:
            if messages[other]["role"] != "assistant":
                raise Unproven(
                    f"message {stamp}: the template writes text of message {other} ({messages[other]['role']}) within "
                    "this assistant turn, and nothing tells where the turn goes on"
                )
        if "tools" in places:
            raise Unproven(f"message {stamp}: the template writes tool schemas within this assistant turn")
    return stamp


def what_is_dropped(rendering: Rendering) -> tuple[int, bool]:
    """How many messages lose their reasoning, and whether tool schemas are not written.

    Raises NotRendered where any other text of a message is written nowhere.
    """
    written: set[int] = set().union(*(p.text.sources for p in rendering.pieces if isinstance(p.text, TStr)))
    reasoning: dict[str | int, bool] = {}
    tools: list[bool] = []
    for field, path in enumerate(rendering.paths):
        if path[0] == "tools":
            tools.append(field in written)
        elif path[1] in REASONING_KEYS:
            reasoning[path[0]] = reasoning.get(path[0], False) or field in written
        elif _must_appear(path) and field not in written and _is_text(rendering, field):
            role, where = rendering.conversation.messages[int(path[0])]["role"], ".".join(map(str, path[1:]))
            raise NotRendered(
                f"message {path[0]} ({role}): the template does not write its {where}. "
                "Use a template that does, or drop the field"
            )
    return list(reasoning.values()).count(False), bool(tools) and not any(tools)


def refuse_forged_names(rendering: Rendering, vocabulary: Vocabulary) -> None:
    """Raise Forged where a key (or a template argument) of the conversation spells a control token.

    A template that writes such names writes them as if they were its own, so they cannot be escaped. Only names that it
    can know are looked at: those of the shape, and of the nested fields that it looked into.
    """
    conversation = rendering.conversation
    places = {"the tools": conversation.tools, "chat_template_kwargs": conversation.template_args}
    places |= {f"message {n}": message for n, message in enumerate(conversation.messages)}
    for known in (rendering.shape, *rendering.opened.values()):
        for name in names(known):
            found = vocabulary.find_all(name)
            if found:
                where = next((place for place, value in places.items() if name in names(structure(value, True))), "")
                raise Forged(
                    f"{where}: expected names without control tokens, found {name!r}, which spells {found[0][1]} and "
                    "which the template may write as its own; rename it, or trust the data with control_tokens=allow"
                )


def _must_appear(path: Sequence[str | int]) -> bool:
    """Fields whose absence from the text would be a loss: contents, and what is called with what."""
    return (path[1] == "content" and path[-1] != "type") or (
        path[1] == "tool_calls" and path[-1] in ("name", "arguments")
    )


def _is_text(rendering: Rendering, field: int) -> bool:
    """Whether a field has anything that shows by its origin: text, unless the template opened it and found none."""
    opened = rendering.opened.get(("field", field))
    return rendering.ask(field) and (opened is None or _holds_text(opened))


def _holds_text(structure: object) -> bool:
    """Whether a structure (`shape.structure`) has strings."""
    return structure is str or (isinstance(structure, tuple) and any(map(_holds_text, structure)))
