"""rejected.jsonl: every source row that is not used, with its reason. Written in phase 2, read by verification.

Rows are rejected while they are read and masked, and left out by the selection. Each line is {source, row, reason,
detail}; rows are counted within their source.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from premask.errors import DataError
from premask.intake import Sliced
from premask.pack.account import Lost
from premask.pack.selection import LOST
from premask.phases import Run
from premask.planning import why_lost
from premask.store.atomic import atomic_write
from premask.store.plan_file import StoredPlan

REJECTED = "rejected.jsonl"

WISHED = (*LOST, "filtered_script")
"""Reasons that the recipe wished for: `--strict` is silent about them."""


def write_rejected(
    run: Run,
    slices: Sequence[Sliced],
    results: Sequence[Mapping[str, Any]],
    lost: Callable[[int], Iterable[Lost]],
) -> Counter[str]:
    """Write rejected.jsonl; the number of rows by reason. `lost` yields what selection left out of a partition."""
    firsts: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    with atomic_write(run.out / REJECTED) as file:
        for n, (part, result) in enumerate(zip(slices, results, strict=True)):
            source = part.partition.source
            name = run.inputs[source].source.name
            left_out = ((row.row, row.reason, why_lost(run.recipe, row)) for row in lost(n))
            for row, reason, detail in heapq.merge(_rejected(run.rejects_path(n)), left_out):
                line = {"source": name, "row": firsts[source] + row, "reason": reason, "detail": detail}
                file.write(orjson.dumps(line) + b"\n")
                reasons[reason] += 1
            firsts[source] += result["counts"].get("rows", 0)
    return reasons


def _rejected(path: Path) -> Iterator[tuple[int, str, str]]:
    """The rows that reading and masking rejected, in order: row, reason, detail."""
    return ((line["row"], line["reason"], line["detail"]) for line in lines_of(path))


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of rejected rows."""
    with path.open("rb") as file:
        yield from map(orjson.loads, file)


def rejected_rows(path: Path, manifest: Mapping[str, Any], plan: StoredPlan) -> dict[int, tuple[str, str]]:
    """Reason and detail of every rejected source row, by its global number; `path` is the dataset's rejected.jsonl.

    Where a file is named twice, the `plan` tells which of two rows of one number it is: the one that is not kept.
    A line that names no such row, or one twice, stands under -1: the books do not add up then (`audit.py`).
    """
    named = _ranges(manifest)
    kept: set[int] = set()
    if any(len(ranges) > 1 for ranges in named.values()):
        kept = {row for split in plan.shards for part in plan.rows(split) for row in part.source_row.tolist()}
    rejected: dict[int, tuple[str, str]] = {}
    for line in lines_of(path):
        rows = [rows[line["row"]] for rows in named.get(line["source"], ()) if line["row"] < len(rows)]
        row = next((row for row in rows if row not in rejected and row not in kept), -1)
        rejected[row] = (line["reason"], line["detail"])
    return rejected


def _ranges(manifest: Mapping[str, Any]) -> dict[str, list[range]]:
    """The global numbers of the rows of every source, by its name."""
    firsts: dict[int, int] = {}
    for part in manifest["partitions"]:
        firsts.setdefault(part["source"], part["first_row"])
    bounds = [*firsts.values(), manifest["rows"]["in"]]
    ranges: dict[str, list[range]] = {}
    for source, rows in zip(firsts, itertools.starmap(range, itertools.pairwise(bounds)), strict=True):
        ranges.setdefault(manifest["sources"][source]["name"], []).append(rows)
    return ranges


def require_kept(folder: Path, examples: Mapping[str, int], rejected: Mapping[str, int]) -> None:
    """DataError unless there are examples to train on; `examples` are counted by split."""
    if examples["train"]:
        return
    if aside := sum(examples.values()):
        raise DataError(
            f"expected examples to train on, found all {aside:,} drawn for validation; lower --validation, or add rows"
        )
    raise DataError(
        f"no source row can be kept for training: {_listed(rejected) or 'there is none'}; "
        f"{folder / REJECTED} names each with its reason"
    )


def require_strict(folder: Path, rejected: Mapping[str, int], strict: bool) -> None:
    """DataError where a run is `strict` and a row was rejected that the recipe did not mean to leave out."""
    found = {reason: count for reason, count in rejected.items() if reason not in WISHED}
    if strict and found:
        raise DataError(
            f"--strict: expected no rejected row, found {_listed(found)}; "
            f"{folder / REJECTED} names each with its reason"
        )


def _listed(rejected: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in Counter(rejected).most_common())
