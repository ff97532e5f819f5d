"""Source rows masked a second time, from the sources, and compared with what a prepared dataset holds of them.

The very work items of `prepare` run again, for all rows or for a sample of them, in a temporary folder; the stage files
they leave are gathered in the order of the dataset's plan.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from premask.dtypes import Int64Array, offsets_of, slices
from premask.intake import Sliced
from premask.origin import find_origin
from premask.prepare import REJECTED, Run, mask_partitions, rejects_path, slice_sources, stage_path
from premask.show.progress import Progress
from premask.store.check import Columns, columns_of
from premask.store.gather import Gathered, gather, labels, loss_weights
from premask.store.plan_file import PLAN, StoredPlan, read_plan
from premask.store.stage import Stage, read_stage


@dataclass(slots=True)
class Comparison:
    """What a second masking of source rows showed."""

    rows: int = 0
    examples: int = 0
    differences: list[tuple[str, str]] = field(default_factory=list)
    """File, relative to the dataset's folder, and what differs."""


@dataclass(frozen=True, slots=True)
class _Again:
    """One partition, run again."""

    rows: Int64Array
    """Global numbers of the rows that it was run for, in order."""
    stage: Stage
    rejected: dict[int, tuple[str, str]]
    """Reason and detail of the rejected ones, by global number."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """E examples of one shard that are compared, and where their second making lies."""

    split: str
    number: int
    places: Int64Array
    """`[E]` their places in the shard."""
    rows: Int64Array
    """`[E]` their source rows."""
    partition: Int64Array
    """`[E]` whose stage file holds them."""
    index: Int64Array
    """`[E]` their places in that stage file; -1 where it has none."""


def rederive(
    folder: Path,
    manifest: Mapping[str, Any],
    against: Sequence[str],
    sample: int | None,
    tokenizer: str | None,
    workers: int,
    progress: Progress,
) -> Comparison:
    """Mask `sample` source rows (None: all) of the dataset in `folder` again and compare.

    UsageError where the sources or the tokenizer are not the dataset's own. Other versions of libraries will do.
    """
    origin = find_origin(folder, manifest, sources=against, tokenizer=tokenizer, other_versions=True)
    count = manifest["rows"]["in"]
    chosen = np.arange(count)
    if sample is not None and sample < count:
        chosen = np.sort(np.random.default_rng(origin.recipe.seed).choice(count, sample, replace=False))
    with tempfile.TemporaryDirectory(prefix="premask-verify-") as scratch:
        run = origin.run(Path(scratch), workers, progress)
        again = _run_again(run, slice_sources(run, origin.formats()), manifest, chosen)
        origin.require_unchanged()
        found = Comparison(rows=len(chosen))
        _compare_examples(folder, manifest, again, chosen, progress, found)
        _compare_rejected(folder, manifest, again, chosen, found)
    return found


def _run_again(run: Run, parts: Sequence[Sliced], manifest: Mapping[str, Any], chosen: Int64Array) -> dict[int, _Again]:
    """The partitions that hold chosen rows, run for those alone."""
    count = manifest["rows"]["in"]
    firsts = np.array([*(part["first_row"] for part in manifest["partitions"]), count], np.int64)
    bounds = np.searchsorted(chosen, firsts)
    rows = {n: chosen[bounds[n] : bounds[n + 1]] for n in range(len(parts)) if bounds[n] < bounds[n + 1]}
    few = len(chosen) < count
    chosen_in = {n: tuple((own - firsts[n]).tolist()) if few else None for n, own in rows.items()}
    mask_partitions(run, {n: replace(parts[n], rows=own) for n, own in chosen_in.items()})
    return {
        n: _Again(
            own,
            read_stage(stage_path(run, n)),
            {int(own[row["row"]]): (row["reason"], row["detail"]) for row in _lines(rejects_path(run, n))},
        )
        for n, own in rows.items()
    }


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        yield from map(orjson.loads, file)


def _compare_examples(
    folder: Path,
    manifest: Mapping[str, Any],
    again: Mapping[int, _Again],
    chosen: Int64Array,
    progress: Progress,
    found: Comparison,
) -> None:
    plan = read_plan(folder / PLAN)
    progress.phase("comparing", sum(plan.shards.values()), "shard")
    for wanted in _wanted(plan, again, chosen):
        name = f"{wanted.split}/{manifest['splits'][wanted.split]['shards'][wanted.number]['file']}"
        (batch,) = pa.ipc.open_stream(pa.memory_map(str(folder / name)))
        differences = _differences(columns_of(batch), wanted, {n: one.stage for n, one in again.items()})
        found.differences += [(name, text) for text in differences]
        found.examples += len(wanted.places)
        progress.advance()
    made = sum(len(one.stage) for one in again.values())
    if made != found.examples:
        found.differences.append((PLAN, f"expected {made:,} examples of these rows, found {found.examples:,}"))


def _wanted(plan: StoredPlan, again: Mapping[int, _Again], chosen: Int64Array) -> Iterator[_Wanted]:
    """The examples of the chosen rows, shard by shard. A row's examples are matched in their order."""
    shards = [(split, number) for split, count in plan.shards.items() for number in range(count)]
    places = [np.flatnonzero(np.isin(plan.shard(*shard).source_row, chosen)) for shard in shards]
    taken = [plan.shard(*shard).take(place) for shard, place in zip(shards, places, strict=True)]
    row = np.concatenate([np.zeros(0, np.int64), *(rows.source_row for rows in taken)])
    index = np.concatenate([np.zeros(0, np.int64), *(rows.index for rows in taken)])
    order = np.lexsort((index, row))
    ordinal = np.empty(len(row), np.int64)
    ordinal[order] = np.arange(len(row)) - np.searchsorted(row[order], row[order])
    ends = np.cumsum([0, *map(len, taken)])
    stage_rows = {n: one.rows[one.stage.rows] for n, one in again.items()}
    for shard, place, rows, start in zip(shards, places, taken, ends, strict=False):
        own = ordinal[start : start + len(rows)]
        new = np.full(len(rows), -1, np.int64)
        for n in np.unique(rows.partition):
            here = rows.partition == n
            at = np.searchsorted(stage_rows[n], rows.source_row[here]) + own[here]
            same = np.take(np.append(stage_rows[n], -1), at, mode="clip") == rows.source_row[here]
            new[here] = np.where(same, at, -1)
        yield _Wanted(*shard, place, rows.source_row, rows.partition.astype(np.int64), new)


def _differences(shard: Columns, wanted: _Wanted, stages: Mapping[int, Stage]) -> Iterator[str]:
    """Every example of a shard that was made differently the second time."""
    for row in wanted.rows[wanted.index < 0]:
        yield f"source row {row}: expected no such example, as the sources give none, found one"
    there = wanted.index >= 0
    made = gather(stages, wanted.partition[there].astype(np.int32), wanted.index[there].astype(np.int32))
    lengths = shard.values["seq_lengths"].astype(np.int64)
    starts, places = offsets_of(lengths), wanted.places[there]
    bounds = offsets_of(made.lengths.astype(np.int64))
    for name, values in _columns(made, shard).items():
        held = slices(shard.values[name], starts[places], lengths[places])
        if np.array_equal(lengths[places], made.lengths) and np.array_equal(held, values):
            continue
        for n, (row, place) in enumerate(zip(wanted.rows[there], places, strict=True)):
            before = shard.values[name][starts[place] : starts[place + 1]]
            if not np.array_equal(before, values[bounds[n] : bounds[n + 1]]):
                yield f"source row {row}: expected the {name} that its source gives, found others"


def _columns(made: Gathered, shard: Columns) -> dict[str, Any]:
    columns: dict[str, Any] = {"input_ids": made.ids, "labels": labels(made)}
    return columns | ({"loss_weights": loss_weights(made)} if "loss_weights" in shard.values else {})


def _compare_rejected(
    folder: Path, manifest: Mapping[str, Any], again: Mapping[int, _Again], chosen: Int64Array, found: Comparison
) -> None:
    known = rejected_rows(folder / REJECTED, manifest)
    now = {row: why for one in again.values() for row, why in one.rejected.items()}
    for row in chosen.tolist():
        if known.get(row) != now.get(row):
            due, held = _outcome(now, row), _outcome(known, row)
            found.differences.append((REJECTED, f"source row {row}: expected it {due}, found it {held}"))


def _outcome(rejected: Mapping[int, tuple[str, str]], row: int) -> str:
    return f"rejected as {rejected[row][0]} ({rejected[row][1]})" if row in rejected else "kept"


def rejected_rows(path: Path, manifest: Mapping[str, Any]) -> dict[int, tuple[str, str]]:
    """Reason and detail of every rejected source row, by its global number; `path` is the dataset's rejected.jsonl."""
    firsts: dict[int, int] = {}
    for part in manifest["partitions"]:
        firsts.setdefault(part["source"], part["first_row"])
    rejected: dict[int, tuple[str, str]] = {}
    for line in _lines(path):
        named = [n for n, source in enumerate(manifest["sources"]) if source["name"] == line["source"] and n in firsts]
        rows = [firsts[n] + line["row"] for n in named]  # more than one where a file is named twice
        rejected[next(row for row in rows if row not in rejected)] = (line["reason"], line["detail"])
    return rejected
