"""The closing summary of a preparation: counts in, a small table and some remarks for people out. No disk, no state."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


class Share(TypedDict):
    """What one source gives to a mix."""

    path: str
    examples: int
    bounds: bool
    """Whether all that it has is used, so that the mix cannot be larger."""


class SplitCounts(TypedDict):
    """What one split holds."""

    examples: int
    packs: int
    packs_at_least: int
    """The lower bound: no packing of these examples has fewer."""
    tokens: int
    supervised: int


REMARKS = {
    "escaped_rows": "source rows whose text spells control tokens, encoded as plain text",
    "unterminated_turns": "turns without a terminator: nothing in them teaches the model to stop",
    "reasoning_dropped": "messages whose reasoning the template does not write",
    "tools_dropped": "source rows whose tool schemas the template does not write",
    "straddle_start": "trained spans that begin within a token, which is masked (--set straddle=train)",
    "straddle_end": "trained spans that end within a token, which is masked (--set straddle=train)",
}
"""What people should know of the manifest's counts, where they are not zero."""


FATES = {
    "kept": "",
    "trimmed": "behind an example's last trained one",
    "dropped": "too long",
    "left_out": "by filters, duplicates, weights",
}
"""What becomes of tokens and turns."""


def summary(
    *,
    rows: int,
    kept: int,
    rejected: Mapping[str, int],
    tokens: Mapping[str, int],
    turns: Mapping[str, int],
    mix: Sequence[Share],
    splits: Mapping[str, SplitCounts],
    max_length: int,
    seconds: float,
) -> "Group":
    """A table: source rows, tokens and turns in and what became of them; then every split; then the `mix` of `train`.

    `tokens` and `turns` count what is `in` and each of `FATES`. `fill` is the share of the packs' `max_length` that
    holds tokens. Print it with any rich console; it has no borders, so it reads the same in a log.
    """
    from rich.console import Group

    table = _table()
    table.add_row("source rows", f"{rows:,}", "", style="bold")
    table.add_row("  kept", f"{kept:,}", _share(kept, rows))
    if lost := sum(rejected.values()):
        table.add_row("  rejected", f"{lost:,}", _share(lost, rows), style="yellow")
    for reason, count in sorted(rejected.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(f"    {reason}", f"{count:,}", _share(count, rows))
    for name, counted in (("tokens", tokens), ("turns", turns)):
        table.add_row(name, f"{counted['in']:,}", "", style="bold")
        for fate, words in FATES.items():
            if counted.get(fate):
                share = _share(counted[fate], counted["in"])
                table.add_row(f"  {fate.replace('_', ' ')}", f"{counted[fate]:,}", f"{share}  {words}".rstrip())
    for name, counts in splits.items():
        table.add_row(name, "", "", style="bold")
        table.add_row("  examples", f"{counts['examples']:,}", "")
        table.add_row("  tokens", f"{counts['tokens']:,}", "")
        table.add_row("  trained", f"{counts['supervised']:,}", _share(counts["supervised"], counts["tokens"]))
        fill = _share(counts["tokens"], counts["packs"] * max_length)
        least = f"of {max_length:,} tokens, {fill} full; {counts['packs_at_least']:,} at least" if fill else ""
        table.add_row("  packs", f"{counts['packs']:,}", least)
    speed = f"{tokens['in'] / seconds:,.0f} tokens/s" if seconds > 0 else ""
    table.add_row("seconds", f"{seconds:,.1f}", speed, style="bold")
    return Group(table, _mixed(mix)) if mix else Group(table)


def _mixed(mix: Sequence[Share]) -> "Table":
    table, total = _table(), sum(source["examples"] for source in mix)
    names = [Path(source["path"]).name for source in mix]
    table.add_row("mix of train", f"{total:,}", "", style="bold")
    for source, name in zip(mix, names, strict=True):
        shown = name if names.count(name) == 1 else source["path"]
        words = "  all that there is: it bounds the mix" if source["bounds"] else ""
        if not source["examples"]:
            words = "  its weight is too small for a single example"
        table.add_row(f"  {shown}", f"{source['examples']:,}", _share(source["examples"], total) + words)
    return table


def _table() -> "Table":
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    return table


def remarks(
    *, counts: Mapping[str, int], rejected: Mapping[str, int], splits: Mapping[str, SplitCounts], out: str
) -> Iterator[str]:
    """What to know beside the table, a sentence each: what happened to some rows, and where everything is."""
    for name, words in REMARKS.items():
        if counts.get(name):
            yield f"{words}: {counts[name]:,}"
    if rejected:
        yield f"rejected source rows, each with its reason: {Path(out) / 'rejected.jsonl'}"
    yield f"prepared: {out} (splits: {', '.join(splits)}); to see its tokens: premask view {shlex.quote(out)}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else ""
