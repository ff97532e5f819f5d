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
import pyarrow as pa

from premask.dtypes import Int32Array, Int64Array, offsets_of, slices
from premask.intake import Sliced
from premask.origin import find_origin
from premask.pack.selection import LOST
from premask.phases import Run, mask_partitions, slice_sources
from premask.planning import mix_of
from premask.recipe import Recipe
from premask.rejected import REJECTED, lines_of, rejected_rows
from premask.run.local import Crew
from premask.show.progress import Progress
from premask.store.check import Columns, columns_of
from premask.store.gather import Gathered, gather, labels, lengths_of, loss_weights
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

    def keys(self) -> Int64Array:
        """`[E]` the keys of its examples, rising."""
        return _keys(self.rows[self.stage.rows], self.stage.source_turns)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """E examples of one shard that are compared, and where their second making lies."""

    split: str
    number: int
    places: Int64Array
    """`[E]` their places in the shard."""
    keys: Int64Array
    """`[E]` what tells them apart (see `_keys`)."""
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
    with tempfile.TemporaryDirectory(prefix="premask-verify-") as scratch, Crew(workers) as crew:
        run = origin.run(Path(scratch), crew, progress)
        again = _run_again(run, slice_sources(run), manifest, chosen)
        origin.require_unchanged()
        found = Comparison(rows=len(chosen))
        plan = read_plan(folder / PLAN)
        wanted = list(_wanted(plan, again, chosen))
        _compare_examples(folder, manifest, wanted, again, progress, found)
        _compare_rejected(folder, manifest, plan, again, chosen, wanted, found)
        found.differences += [(PLAN, text) for text in _conversations_twice(manifest, wanted, again)]
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
            read_stage(run.stage_path(n)),
            {int(own[row["row"]]): (row["reason"], row["detail"]) for row in lines_of(run.rejects_path(n))},
        )
        for n, own in rows.items()
    }


def _compare_examples(
    folder: Path,
    manifest: Mapping[str, Any],
    every: Sequence[_Wanted],
    again: Mapping[int, _Again],
    progress: Progress,
    found: Comparison,
) -> None:
    progress.phase("comparing", len(every), "shard")
    for wanted in every:
        name = f"{wanted.split}/{manifest['splits'][wanted.split]['shards'][wanted.number]['file']}"
        (batch,) = pa.ipc.open_stream(pa.memory_map(str(folder / name)))
        differences = _differences(columns_of(batch), wanted, {n: one.stage for n, one in again.items()})
        found.differences += [(name, text) for text in differences]
        found.examples += len(wanted.places)
        progress.advance()


def _conversations_twice(
    manifest: Mapping[str, Any], every: Sequence[_Wanted], again: Mapping[int, _Again]
) -> Iterator[str]:
    """Conversations in two splits or, where duplicates are dropped, in two source rows, by their hashes."""
    places: dict[bytes, tuple[str, int]] = {}
    once = manifest["recipe"]["duplicates"] == "drop"
    if not once and len(manifest["splits"]) == 1:
        return
    digests = {n: one.stage.digests for n, one in again.items()}
    for wanted in every:
        for n in np.unique(wanted.partition[wanted.index >= 0]).tolist():
            here = (wanted.partition == n) & (wanted.index >= 0)
            for digest, row in zip(digests[n][wanted.index[here]], wanted.rows[here].tolist(), strict=True):
                split, other = places.setdefault(digest.tobytes(), (wanted.split, row))
                if split != wanted.split:
                    yield f"source row {row}: expected its conversation in one split, found it in {split} too"
                elif once and other != row:
                    yield f"source row {row}: expected its conversation once, found it in source row {other} too"


def _wanted(plan: StoredPlan, again: Mapping[int, _Again], chosen: Int64Array) -> Iterator[_Wanted]:
    """The examples of the chosen rows, shard by shard."""
    known = {n: one.keys() for n, one in again.items()}
    for split, count in plan.shards.items():
        for number in range(count):
            shard = plan.shard(split, number)
            places = np.flatnonzero(np.isin(shard.source_row, chosen))
            rows = shard.take(places)
            keys = _keys(rows.source_row, rows.source_turn)
            index = np.full(len(rows), -1, np.int64)
            for n in np.unique(rows.partition):
                here = rows.partition == n
                at = np.searchsorted(known[n], keys[here])
                index[here] = np.where(np.append(known[n], -1)[at] == keys[here], at, -1)
            yield _Wanted(split, number, places, keys, rows.source_row, rows.partition.astype(np.int64), index)


def _keys(rows: Int64Array, turns: Int32Array) -> Int64Array:
    """`[E]` one number for every example, by its source row and first turn; rising within a stage file."""
    return (rows << 32) + turns + 1


def _differences(shard: Columns, wanted: _Wanted, stages: Mapping[int, Stage]) -> Iterator[str]:
    """Every example of a shard that was made differently the second time."""
    for row in wanted.rows[wanted.index < 0]:
        yield f"source row {row}: expected no such example, as the sources give none, found one"
    there = wanted.index >= 0
    partition, index = wanted.partition[there].astype(np.int32), wanted.index[there].astype(np.int32)
    made = gather(stages, partition, index, lengths_of(stages, partition, index))
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
    folder: Path,
    manifest: Mapping[str, Any],
    plan: StoredPlan,
    again: Mapping[int, _Again],
    chosen: Int64Array,
    wanted: Sequence[_Wanted],
    found: Comparison,
) -> None:
    """Rows that masking rejects must be rejected, all others used: `wanted` are the examples that are.

    What the recipe selects among them, masking cannot tell, nor which examples of a row its weights let in.
    """
    known = rejected_rows(folder / REJECTED, manifest, plan)
    left_out = {row for row, (reason, _) in known.items() if reason in LOST}
    now = {row: why for one in again.values() for row, why in one.rejected.items()}
    for row in chosen.tolist():
        if row in left_out and row not in now:
            continue
        if known.get(row) != now.get(row):
            due, held = _outcome(now, row), _outcome(known, row)
            found.differences.append((REJECTED, f"source row {row}: expected it {due}, found it {held}"))
    made = np.concatenate([np.zeros(0, np.int64), *(one.keys() for one in again.values())])
    made = made[~np.isin(made >> 32, list(left_out))]
    seen = np.unique(np.concatenate([np.zeros(0, np.int64), *(one.keys for one in wanted)]))
    weighted = mix_of(Recipe(**manifest["recipe"])).weights is not None
    if not weighted and len(made) != len(seen):
        found.differences.append((PLAN, f"expected {len(made):,} examples of these rows, found {len(seen):,}"))


def _outcome(rejected: Mapping[int, tuple[str, str]], row: int) -> str:
    return f"rejected as {rejected[row][0]} ({rejected[row][1]})" if row in rejected else "kept"
