"""What `premask verify` and `premask repair` say to people: a line for each thing that is wrong or was done. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def verdict(report: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a report of verification, as JSON values (`verify.Report.as_json`)."""
    yield from map(damage_line, report["damages"])
    yield f"{report['folder']}: {report['files']:,} files, {report['bytes']:,} bytes checked"
    for name, split in report["splits"].items():
        counts = ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in split.items())
        yield f"{name}: {counts}"
    if compared := report["compared"]:
        yield f"{compared['rows']:,} source rows masked again: {compared['examples']:,} examples compared"
    yield "whole" if report["ok"] else f"{len(report['damages']):,} things are wrong"


def damage_line(damage: Mapping[str, Any]) -> str:
    """One thing that is wrong (`verify.Damage`)."""
    return f"{damage['kind']}: {damage['file']}: {damage['detail']}"


def repair_lines(rebuilt: Sequence[str], removed: Sequence[str], left: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What a repair did (`repair.Repaired`)."""
    yield from (f"rebuilt: {name}" for name in rebuilt)
    yield from (f"removed: {name}" for name in removed)
    yield from (f"left as it is: {damage_line(damage)}" for damage in left)
