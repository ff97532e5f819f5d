"""A pack as people can read it: what is trained, what is masked, where every example begins.

In: one pack's arrays and the exact bytes of every id. Out: a `rich.text.Text` (colour), a plain string (brackets), or
an SVG picture. Tokens are joined to runs of one kind before their bytes are decoded, so a character that spans several
tokens appears whole; bytes that are no character within their run are shown in hexadecimal. Line ends get a glyph, and
control characters show as pictures, so that no text in the data can move the cursor of the terminal.

Cost: one Python step per run, none per token but the lookup of its bytes. rich is imported by the functions that draw.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from premask.dtypes import IGNORE_INDEX, BoolArray, Int32Array

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

STYLES = {
    (True, False): "green",
    (True, True): "bold green",
    (False, False): "dim",
    (False, True): "bold bright_black",
}
"""Style of a run by (trained, special)."""

_GLYPHS = {code: chr(0x2400 + code) for code in range(32)} | {0x7F: "␡", 0x09: "⇥", 0x0A: "⏎\n"}
_HIDDEN = [*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029, 0x200E, 0x200F, 0xFEFF]
_VISIBLE = str.maketrans(_GLYPHS | {code: f"\\u{code:04x}" for code in _HIDDEN})


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbouring tokens of one example that are all trained or all masked, all special or none."""

    text: str
    """What they say, control characters made visible."""

    trained: bool
    special: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PackView:
    """One pack, ready to draw. Lengths: T tokens, D examples."""

    ids: Int32Array
    """`[T]` token ids."""

    labels: Int32Array
    """`[T]` labels, -100 where not trained."""

    seq_lengths: Int32Array
    """`[D]` tokens of every example, in order; they add up to T."""

    token_bytes: Callable[[int], bytes]
    """The exact bytes that an id stands for."""

    source_rows: Sequence[int] | None = None
    """`[D]` source row behind every example."""

    special_ids: Collection[int] = ()
    """Ids to set in bold: the tokenizer's special tokens."""

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.labels) == int(np.sum(self.seq_lengths)):
            raise ValueError(
                f"expected as many ids as labels and as the examples' lengths say, found {len(self.ids)} ids, "
                f"{len(self.labels)} labels, lengths of {int(np.sum(self.seq_lengths))} in all"
            )
        if self.source_rows is not None and len(self.source_rows) != len(self.seq_lengths):
            raise ValueError(f"expected {len(self.seq_lengths)} source rows, found {len(self.source_rows)}")

    @property
    def trained(self) -> BoolArray:
        """`[T]` bool: whether a token has a label."""
        return np.not_equal(self.labels, IGNORE_INDEX)

    def examples(self) -> Iterator[tuple[str, list[Run]]]:
        """The heading and the runs of every example, in order."""
        trained, ids = self.trained, np.asarray(self.ids)
        special = np.isin(ids, np.fromiter(self.special_ids, np.int64, len(self.special_ids)))
        ends = np.cumsum(self.seq_lengths)
        for number, (start, end) in enumerate(zip(ends - self.seq_lengths, ends, strict=True)):
            count = int(trained[start:end].sum())
            row = "" if self.source_rows is None else f" · source row {self.source_rows[number]}"
            heading = f"example {number}{row} · {end - start:,} tokens, {count:,} trained"
            yield heading, self._runs(ids[start:end], trained[start:end], special[start:end])

    def _runs(self, ids: Int32Array, trained: BoolArray, special: BoolArray) -> list[Run]:
        changes = np.flatnonzero(np.diff(trained) | np.diff(special)) + 1
        bounds = [0, *changes.tolist(), len(ids)] if len(ids) else []
        runs = []
        for start, end in pairwise(bounds):
            raw = b"".join(map(self.token_bytes, ids[start:end].tolist()))
            text = raw.decode("utf-8", "backslashreplace").translate(_VISIBLE)
            runs.append(Run(text=text, trained=bool(trained[start]), special=bool(special[start])))
        return runs

    def counts(self) -> str:
        """One line: examples, tokens, trained tokens and their share."""
        total, trained = len(self.ids), int(self.trained.sum())
        share = f" ({100 * trained / total:.1f} %)" if total else ""
        examples = "1 example" if len(self.seq_lengths) == 1 else f"{len(self.seq_lengths):,} examples"
        return f"{examples}, {total:,} tokens, {trained:,} trained{share}"


def render_pack(pack: PackView, width: int = 100) -> "Text":
    """The pack in colour: trained green, masked dim, special tokens bold, a rule before every example."""
    from rich.text import Text

    text = Text()
    text.append("trained", STYLES[True, False]).append(" · ").append("masked", STYLES[False, False])
    text.append(" · ").append("special", "bold").append(f" · {pack.counts()}\n")
    for heading, runs in pack.examples():
        text.append(f"── {heading} ".ljust(width, "─") + "\n", "cyan")
        for run in runs:
            text.append(run.text, STYLES[run.trained, run.special])
        if not text.plain.endswith("\n"):
            text.append("\n")
    return text


def plain_pack(pack: PackView, width: int = 100) -> str:
    """The pack without colour: what is trained stands in ⟦ ⟧."""
    lines = [f"⟦trained⟧ · masked · {pack.counts()}\n"]
    for heading, runs in pack.examples():
        lines.append(f"── {heading} ".ljust(width, "─") + "\n")
        body, inside = "", False
        for run in runs:
            if run.trained != inside:
                body, inside = body + ("⟦" if run.trained else "⟧"), run.trained
            body += run.text
        body += "⟧" if inside else ""
        lines.append(body if body.endswith("\n") else body + "\n")
    return "".join(lines)


def print_pack(pack: PackView, console: "Console | None" = None) -> None:
    """Print in colour to a terminal; plain where the output is no terminal, or `NO_COLOR` is set."""
    from rich.console import Console

    console = console or Console(highlight=False)
    if console.is_terminal and not console.no_color and console.color_system:
        console.print(render_pack(pack, console.width), end="", soft_wrap=True)
    else:
        console.out(plain_pack(pack, min(console.width, 100)), end="", highlight=False)


def export_svg(pack: PackView, title: str, width: int = 100) -> str:
    """The coloured pack as an SVG document, `width` characters wide. It refers to nothing outside itself."""
    import io
    import re

    from rich._export_format import CONSOLE_SVG_FORMAT
    from rich.console import Console

    console = Console(
        record=True, file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor", no_color=False
    )
    console.print(render_pack(pack, width), end="")
    own_fonts = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return console.export_svg(title=title, code_format=own_fonts, unique_id="premask")
