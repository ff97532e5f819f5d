"""Writes data/templates.md: what premask discovers of every chat template at hand, and what of it is supported.

    python tests/mask/table.py        (make templates)

The templates are those of the installed `trl` package and our own; each has a tokenizer with its family's tokens
(`families.py`). A test compares the file with what this script would write.
"""

import datetime
import importlib.util
import sys
from pathlib import Path

from premask.mask.grammar import Grammar
from premask.mask.lints import lints
from premask.mask.masker import Masker
from premask.recipe import Recipe

TABLE = Path(__file__).parents[2] / "data/templates.md"

FEATURES = ("", "system", "late system", "tools", "parallel calls", "text beside calls", "reasoning", "out of turn")

HEAD = """\
# Template families

What `premask markers` discovers of the chat templates in the `trl` package (`NAME`) and of our own (`premask:NAME`),
each with a tokenizer that has its family's tokens. Nothing here is configured: all of it is found by rendering probes.
Written by `make templates`.

- **●** supported; the turns of every row are proven twice, by the provenance of the text and by the search for markers
- **○** supported; proven by provenance and byte identity, because markers alone cannot follow what the template writes
- **–** refused: such rows are rejected with the reason (see the notes)

| template | chat | system | late system | tools | parallel calls | text beside calls | reasoning | out of turn | header \
| terminator |
|---|---|---|---|---|---|---|---|---|---|---|
"""

NOTES = """
## Notes

"""


def families():
    """`families.py`, and the module it needs, which are no package's."""
    for name in ("tokenizer_kinds", "families"):
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
    return sys.modules["families"]


def masker(name: str) -> Masker:
    """The masker of a template with its family's tokenizer."""
    known = families()
    return Masker(
        known.source(name),
        known.variables(name),
        datetime.date(2025, 1, 1),
        known.encoder(name),
        known.vocabulary(name),
        Recipe(sources=["-"], tokenizer="-"),
    )


def support(grammar: Grammar, feature: str) -> str:
    """One cell."""
    if feature not in grammar.probes:
        return "–"
    return "●" if feature in grammar.searchable else "○"


def code(texts: list[str]) -> str:
    """Texts as they stand, line breaks as `⏎`."""
    return " ".join(f"`{text}`".replace("\n", "⏎").replace("|", "\\|") for text in texts) or "none"


def table() -> str:
    """The whole file."""
    rows, notes = [], []
    for name in families().NAMES:
        made = masker(name)
        grammar = made.grammar
        cells = [support(grammar, feature) for feature in FEATURES]
        rows.append(f"| {name} | {' | '.join(cells)} | {code(grammar.headers)} | {code(grammar.closings)} |")
        notes += [f"- **{name}**: {remark}" for remark in lints(grammar, made.vocabulary)]
        for feature, why in grammar.refused.items():
            if feature not in ("", "tools"):
                notes.append(f"- **{name}**: {feature}: {why}")
    return HEAD + "\n".join(rows) + "\n" + NOTES + "\n".join(notes) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table())
