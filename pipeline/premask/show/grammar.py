"""`premask markers`: what was discovered of a template, in the terminal."""

from typing import TYPE_CHECKING

from premask.mask.grammar import Grammar, Probe

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

FEATURES = {
    "": "chat",
    "system": "system message first",
    "late system": "system message later",
    "tools": "tools",
    "parallel calls": "parallel tool calls",
    "text beside calls": "text beside tool calls",
    "reasoning": "reasoning",
    "out of turn": "turns out of order",
}
"""What the features of `Grammar` are called."""


def render_grammar(grammar: Grammar, remarks: list[str]) -> "RenderableType":
    """Markers, features, remarks, and one example in colour."""
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("generation prompt", _quoted([grammar.prompt]))
    table.add_row("assistant header", _quoted(grammar.headers))
    table.add_row("terminator", _quoted(grammar.closings))
    for role, openings in sorted(grammar.openings.items()):
        table.add_row(f"{role} header", _quoted(openings))
    for feature, name in FEATURES.items():
        table.add_row(name, support(grammar, feature))
    for remark in remarks:
        table.add_row("note", remark)
    probes = [*grammar.probes.get("tools", []), *grammar.probes.get("system", []), *grammar.probes.get("", [])]
    return Group(table, "", *(render_probe(probe) for probe in probes[:1]))


def support(grammar: Grammar, feature: str) -> str:
    """How far a feature is supported: proven twice, proven once, or refused and why."""
    if feature not in grammar.probes:
        return f"refused: {grammar.refused.get(feature, 'not rendered')}"
    if feature in grammar.searchable:
        return "yes, proven by provenance and by search"
    partly = f"; in part refused: {grammar.refused[feature]}" if feature in grammar.refused else ""
    return f"yes, proven by provenance{partly}"


def _quoted(texts: list[str]) -> str:
    return "  ".join(repr(text) for text in texts) or "none"


def render_probe(probe: Probe) -> "Text":
    """A probe as it was rendered: what the model emits in green, the rest dim."""
    from rich.text import Text

    emitted = {i for s in probe.turns.stretches for i in range(s.start, s.end)}
    text = Text()
    for i, piece in enumerate(probe.pieces):
        shown = (piece if isinstance(piece, str) else str(piece.value)).replace("\n", "⏎\n")
        text.append(shown, style="green" if i in emitted else "dim")
    return text
