"""`premask explain`: one conversation through every stage, in the terminal."""

from typing import TYPE_CHECKING

from premask.mask.explain import Explanation

if TYPE_CHECKING:
    from rich.console import RenderableType


def render_stages(where: str, explanation: Explanation, max_length: int) -> "RenderableType":
    """The stretches with their origin and reason, the questions of the template, the tokens."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("text", "written by", "trained"):
        table.add_column(name, overflow="fold", ratio=3 if name == "text" else 1)
    for s in explanation.stretches:
        weight = "" if s.weight in (0, 1) else f" (weight {s.weight:g})"
        table.add_row(
            Text(s.text.replace("\n", "⏎\n"), style="green" if s.trained else "dim"),
            s.origin,
            f"{'yes' if s.trained else 'no'}: {s.reason}{weight}",
        )
    length = len(explanation.ids)
    too_long = f", more than max_length={max_length}: rejected as too_long" if length > max_length else ""
    verdict = f"rejected: {explanation.rejected}" if explanation.rejected else f"kept, {explanation.proof}{too_long}"
    questions = [f"  {question}" for question in explanation.questions]
    asked = Text("\n".join(["", "what the template asked of this row, and the answers:", *questions]))
    return Group(Text(where, style="bold"), verdict, "", table, *([asked] if questions else []), "")
