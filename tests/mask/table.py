"""Writes data/templates.md: what premask discovers of every chat template at hand, and what of it is supported.

    python tests/mask/table.py        (make templates)

The templates are those of the installed `trl` package and our own; each has a tokenizer with its family's tokens
(`families.py`). test_table.py compares the file with what this script would write.
"""

import datetime
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from premask.mask.grammar import Grammar, conversations_to_probe
from premask.mask.lints import lints
from premask.mask.masker import Masker
from premask.recipe import Recipe
from premask.render.forms import adapt

TABLE = Path(__file__).parents[2] / "data/templates.md"

FEATURES = ("", "system", "late system", "tools", "parallel calls", "text beside calls", "reasoning", "out of turn")

HEAD = """\
# Template families

What `premask markers` discovers of the chat templates in the `trl` package (`NAME`) and of our own (`premask:NAME`),
each with a tokenizer that has its family's tokens. Nothing here is configured: all of it is found by rendering probes.
Written by `make templates`. (Mistral's own templates and tokenizers, versions 1 to 7 and both Tekken ones, are tested
against the ids of `mistral-common` besides.)

- **●** supported; the turns of every row are proven twice, by the provenance of the text and by the search for markers
- **○** supported; proven by provenance and byte identity, because markers alone cannot follow what the template writes
- **–** refused: such rows are rejected with the reason (see the notes)

Under `reasoning` a mark says that such rows are prepared; where the template does not write the thinking, the notes
say so.

"""

COLUMNS = (
    "| template | chat | system | late system | tools | parallel calls | text beside calls | reasoning | out of turn "
    "| header | terminator |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
)

TRACING = """
## What is supported, and what is not

Of {pairs} pairs of a template and a feature the templates themselves support {own}: the others they refuse by an
error of their own, or they do not write what the message says. Of these {own} premask supports {supported}
({share:.1f} %){partly}.

A template is *traced*: rendered with texts that note what is asked of them and how the output is derived. Its text
comes out exactly as Jinja's own, or the row is rejected as `mask_unproven`. What templates really do to messages is
followed: slices, `split`, `strip`, `replace`, `in`, comparisons, lengths, `tojson`, `join`, `upper`, `int`, macros,
namespaces, look-ahead, messages put together into new ones. The rest (`tests/render/constructs.txt` has all of it,
each line a test):

- **Followed, but rendered by Jinja for every row**, which is slower: taking a text apart by character (`for c in
  text`, `text | list`, `text | first`), arithmetic with a text's length that is written out, lengths as keys of a
  dictionary.
- **Refused, because the origin of the text would be lost:** `"%s" % text`, `"{{}}".format(text)` and `| format`,
  `text * 2`, escaping for HTML (`autoescape`, `| e`, `| urlencode`, `| striptags`, `| xmlattr`; `| safe` is
  followed where the text is only written), `| title`, `| center`, `| indent`, `| truncate`, `| wordwrap`, `|
  wordcount`, `| pprint`, `text.translate`, `text.encode`.
- **Refused, because texts would decide an order or a name:** `sort`, `unique`, `min`, `max`, `groupby`, `reverse`
  over texts, a text as a key of a new dictionary or as the name of an attribute (`x | attr(text)`,
  `map(attribute=text)`); looking a text up in a dictionary is followed, unless it names one of a dictionary's
  methods.
- **Refused, because they are chance:** `| random`, `lipsum`.
- **Refused, because they cannot be told apart:** a text of a user or of a tool that the template writes within an
  assistant's turn; a key of a tool call, of a schema or of `chat_template_kwargs` that spells a control token
  (`control_token`; with `control_tokens=allow` it is taken as it is).
- **Refused, because they cost too much:** see `premask/render/bounds.py`; a row that makes a template write more
  than any conversation needs is a `template_error`.
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


def described(name: str) -> tuple[str, list[str]]:
    """The line of a template, and the notes on it."""
    made = masker(name)
    grammar = made.grammar
    cells = [support(grammar, feature) for feature in FEATURES]
    line = f"| {name} | {' | '.join(cells)} | {code(grammar.headers)} | {code(grammar.closings)} |"
    notes = [f"- **{name}**: {remark}" for remark in lints(grammar, made.vocabulary)]
    notes += [f"- **{name}**: {f}: {why}" for f, why in grammar.refused.items() if f not in ("", "tools")]
    return line, notes


def outcomes(name: str) -> Iterator[set[str]]:
    """Of every feature why its probes are rejected: empty where none is, and with `kept` where one is not."""
    made = masker(name)
    for conversations in conversations_to_probe().values():
        failures = made.program.render([adapt(c, made.grammar.forms) for c in conversations]).failures
        reasons = {failure.reason for failure in failures.values()}
        yield reasons | {"kept"} if len(failures) < len(conversations) else reasons


def supported() -> str:
    """The section on what is supported."""
    found = [reasons for name in families().NAMES for reasons in outcomes(name)]
    own = [reasons for reasons in found if reasons & {"kept", "mask_unproven"}]
    good = [reasons for reasons in own if "mask_unproven" not in reasons]
    partly = sum(len(reasons) > 1 for reasons in good)
    return TRACING.format(
        pairs=len(found),
        own=len(own),
        supported=len(good),
        share=100 * len(good) / len(own),
        partly=f"; {partly} of them in those forms only that the template takes" if partly else "",
    )


def table() -> str:
    """The whole file."""
    found = [described(name) for name in families().NAMES]
    rows, notes = [line for line, _ in found], [note for _, notes in found for note in notes]
    return HEAD + COLUMNS + "\n".join(rows) + "\n" + supported() + "\n## Notes\n\n" + "\n".join(notes) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table())
