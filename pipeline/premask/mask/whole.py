"""Texts without roles, trained from their first token to their last: no template, one piece, one turn."""

from premask.mask.parts import Part
from premask.mask.turns import Stretch, Turns
from premask.render.program import Rendering
from premask.render.values import TStr

TEMPLATE = "{{ messages[0].content }}"
"""The text of the one message, as it stands."""


def whole_turn(rendering: Rendering) -> tuple[list[str | TStr], Turns]:
    """The pieces of a text that `TEMPLATE` rendered, and the one turn that they are."""
    pieces = [piece.text for piece in rendering.pieces]
    turns = Turns(
        stretches=[Stretch(0, len(pieces), 0, Part.CONTENT)],
        headers=[],
        controls=[],
        generation=[(0, len(pieces))],
        owners=[0] * len(pieces),
        prompts=frozenset(),
        unterminated=0,  # a text is no turn that a model should know how to end
        reasoning_dropped=0,
        tools_dropped=False,
    )
    return pieces, turns
