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
    yield "whole" if report["ok"] else _counted(len(report["damages"]))


def _counted(damages: int) -> str:
    return "1 thing is wrong" if damages == 1 else f"{damages:,} things are wrong"


def remedy(report: Mapping[str, Any]) -> str:
    """The error of a report that is not ok: what is to be done about it."""
    folder, kinds = report["folder"], {damage["kind"] for damage in report["damages"]}
    if kinds == {"stray"}:
        return f"{folder}: holds files that are no part of the dataset; remove them"
    if kinds <= {"missing", "changed", "stray"}:
        return f"{folder}: the dataset is damaged; `premask repair {folder}` rebuilds its files"
    return f"{folder}: the dataset is not what its sources give, which no repair mends; prepare it again with --fresh"


def damage_line(damage: Mapping[str, Any]) -> str:
    """One thing that is wrong (`verify.Damage`)."""
    return f"{damage['kind']}: {damage['file']}: {damage['detail']}"


def repair_lines(rebuilt: Sequence[str], removed: Sequence[str], left: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What a repair did (`repair.Repaired`)."""
    yield from (f"rebuilt: {name}" for name in rebuilt)
    yield from (f"removed: {name}" for name in removed)
    yield from (f"left as it is: {damage_line(damage)}" for damage in left)
