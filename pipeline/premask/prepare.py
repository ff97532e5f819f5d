"""From sources to a prepared dataset: the composition of all rooms.

    phase 0  look at the sources: kind, format, checksum; cut what cannot be sliced
    phase 1  partition -> stage file of masked examples, rejected rows     one work item each
    phase 2  lengths of all examples -> the plan                           here, in the driver
    phase 3  shard of the plan -> Arrow file                               one work item each

Every finished item leaves a receipt in the work folder, so that a run which was killed goes on where it stopped. The
manifest is written last: a folder without one is no dataset.
"""

import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from premask.encode.files import TokenizerFiles, load_tokenizer_files
from premask.errors import DataError
from premask.intake import Sliced, formats_of, require_unchanged, slices_of, sources_of, stamp
from premask.pack.best_fit import best_fit, sequential
from premask.pack.plan import Candidates, Packer, Plan, make_plan
from premask.read import PARTITION_BYTES, Format, Source
from premask.recipe import Recipe
from premask.record import RUN, describe, how_made, manifest_of, summary_of
from premask.run.items import WorkItem
from premask.run.local import run_items, usable_cores
from premask.show.progress import Progress, SilentProgress
from premask.steps import build_masker, build_shard, cut_source, digest_source, mask_partition, templating_of
from premask.store.atomic import Written, atomic_write, remove_leftovers
from premask.store.claim import WORK, claim, is_finished, refuse_strangers
from premask.store.layout import write_layout
from premask.store.lock import locked
from premask.store.manifest import read_manifest, write_manifest
from premask.store.plan_file import PLAN, write_plan
from premask.store.receipts import finished, write_receipt
from premask.store.sealed import write_sealed
from premask.store.shards import ShardEntry, features
from premask.store.stage import Stage, read_stage

REJECTED = "rejected.jsonl"

SHARD_TOKENS = 2**22
"""Tokens of a shard, about: 50 MB."""

WORKER_BYTES = 8 * 2**20
"""Sources that a worker should have to itself: masking less takes no longer than starting one more process."""


@dataclass(frozen=True, slots=True)
class Run:
    """What all phases of one run share."""

    recipe: Recipe
    sources: Sequence[Source]
    files: TokenizerFiles
    out: Path
    workers: int
    progress: Progress
    identity: str
    locks: tuple[int, ...]
    """Descriptors of the locks that workers hold too."""

    sizes: Mapping[str, int]
    """Of partitions in bytes, of shards in tokens."""

    @property
    def work(self) -> Path:
        """The folder of all that goes when the run has succeeded."""
        return self.out / WORK

    def perform(self, phase: str, unit: str, items: Sequence[WorkItem]) -> dict[str, Any]:
        """Perform work items; those with a receipt are not run again. Results by name."""
        known = {item.name: result for item in items if (result := finished(self.work, item.digest())) is not None}
        self.progress.phase(phase, len(items), unit)
        self.progress.advance(len(known))
        if known:
            self.progress.note(f"{phase}: {len(known)} of {len(items)} were done by an earlier run")

        def note(item: WorkItem, step: dict[str, Any]) -> None:
            written = [Written(Path(path), size, sha256) for path, size, sha256 in step["written"]]
            write_receipt(self.work, item.digest(), written, step["result"])
            known[item.name] = step["result"]
            self.progress.advance()

        todo = [item for item in items if item.name not in known]
        run_items(todo, workers=self.workers, on_done=note, inherited=self.locks)
        return known


def prepare(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    fresh: bool = False,
    strict: bool = False,
    keep_stage: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prepare the dataset that `recipe` describes in the folder `out`; returns the summary.

    An unfinished run of the same recipe, sources and tokenizer goes on where it stopped; `fresh` starts anew. With
    `strict` a rejected source row fails the run.

    Raises UsageError where the call is wrong or the folder holds something else, DataError where no row can be kept,
    MachineError where the disk is full or workers die.
    """
    began, clock = time.time(), time.monotonic()  # a clock may be set while we run
    folder, progress = Path(out), progress or SilentProgress()
    sources = sources_of(recipe)
    stamps = [stamp(source) for source in sources]
    files = load_tokenizer_files(recipe.tokenizer)
    build_masker(recipe, files)  # fails here and now where template and tokenizer are wrong
    formats = formats_of(recipe, sources)
    refuse_strangers(folder)
    workers = workers or _crew(sources)
    with locked(folder) as lock:
        sizes = {"partition_bytes": PARTITION_BYTES, "shard_tokens": SHARD_TOKENS}
        description = describe(recipe, sources, _digests(sources, workers, progress), files, sizes)
        if is_finished(folder, description, fresh):
            progress.note(f"{folder}: is prepared already, from the same recipe and sources; nothing to do")
            manifest = read_manifest(folder)
            _check_strict(folder, manifest["rows"]["rejected"], strict)
        else:
            identity = claim(folder, description, fresh)
            remove_leftovers(folder)
            run = Run(recipe, sources, files, folder, workers, progress, identity, (lock,), sizes)
            manifest = run_phases(run, formats, description, strict)
            require_unchanged(sources, stamps)
            remove_leftovers(folder)  # of workers that died in this very run
            write_sealed(folder / RUN, how_made(description, sources, files, workers, began, time.monotonic() - clock))
            write_manifest(folder, manifest)
        if not keep_stage:
            shutil.rmtree(folder / WORK, ignore_errors=True)
    return summary_of(manifest, folder, time.monotonic() - clock)


def run_phases(run: Run, formats: Sequence[Format], description: Mapping[str, Any], strict: bool) -> dict[str, Any]:
    """All phases; returns the manifest, which is not written yet."""
    slices = slice_sources(run, formats)
    results = list(mask_partitions(run, dict(enumerate(slices))).values())
    stages = [read_stage(stage_path(run, n)) for n in range(len(slices))]
    plan, offsets = plan_packs(run, results, stages)
    rejected = write_rejected(run, slices, results)
    _check_kept(run.out, plan, rejected)
    _check_strict(run.out, rejected, strict)
    optional = {"source_turns": run.recipe.turns == "separate", "weights": any(stage.weighted for stage in stages)}
    shards = write_shards(run, plan, stages, optional)
    return manifest_of(description, slices, offsets, results, rejected, shards, list(features(**optional)), run.out)


def _crew(sources: Sequence[Source]) -> int:
    """How many workers are worth starting."""
    return max(1, min(usable_cores(), sum(s.size for s in sources) // WORKER_BYTES))


def _digests(sources: Sequence[Source], workers: int, progress: Progress) -> list[dict[str, Any]]:
    """Size and SHA-256 of every source."""
    progress.phase("taking checksums", len(sources), "source")
    items = [
        WorkItem(name=f"checksum of source {n}", function=digest_source, arguments={"path": str(s.path)})
        for n, s in enumerate(sources)
    ]
    large = sum(s.size for s in sources) > 2**30  # below, starting processes costs more than hashing
    steps = run_items(items, workers=workers if large else 1, on_done=lambda item, step: progress.advance())
    return [step["result"] for step in steps.values()]


def slice_sources(run: Run, formats: Sequence[Format]) -> list[Sliced]:
    """Phase 0: the partitions of all sources, in order; JSON arrays are cut into files of lines first."""
    items = {
        n: WorkItem(
            name=f"pieces of source {n}",
            function=cut_source,
            arguments={
                "path": str(source.path),
                "folder": str(run.work / f"source-{n:05d}"),
                "piece_bytes": run.sizes["partition_bytes"],
                "identity": run.identity,
            },
        )
        for n, source in enumerate(run.sources)
        if source.kind == "json-array"
    }
    results = run.perform("cutting", "array", list(items.values())) if items else {}
    pieces = {n: results[item.name]["pieces"] for n, item in items.items()}
    return slices_of(run.sources, formats, pieces, run.recipe.limit, run.sizes["partition_bytes"])


def mask_partitions(run: Run, slices: Mapping[int, Sliced]) -> dict[int, dict[str, Any]]:
    """Phase 1: every partition to its stage file; what came of each, by number."""
    templating = templating_of(run.recipe, run.files)
    items = {
        n: WorkItem(
            name=f"partition {n}",
            function=mask_partition,
            arguments={
                "partition": {**asdict(s.partition), "path": str(s.partition.path)},
                "format": s.format,
                "limit": s.limit,
                "rows": s.rows,
                "recipe": run.recipe.resolved(),
                "tokenizer": str(run.files.folder),
                "templating": templating,
                "stage": str(stage_path(run, n)),
                "rejects": str(rejects_path(run, n)),
                "identity": run.identity,
            },
        )
        for n, s in slices.items()
    }
    results = run.perform("masking", "partition", list(items.values()))
    return {n: results[item.name] for n, item in items.items()}


def stage_path(run: Run, partition: int) -> Path:
    return run.work / "stage" / f"{partition:05d}.arrow"


def rejects_path(run: Run, partition: int) -> Path:
    return run.work / "rejected" / f"{partition:05d}.jsonl"


def plan_packs(run: Run, results: Sequence[Mapping[str, Any]], stages: Sequence[Stage]) -> tuple[Plan, list[int]]:
    """Phase 2: rows numbered over all sources, examples packed. Also the number of each partition's first row."""
    run.progress.phase("packing", sum(map(len, stages)), "example")
    counts = [result["counts"].get("rows", 0) for result in results]
    offsets = [0, *np.cumsum(counts).tolist()]
    sizes = [len(stage) for stage in stages]
    candidates = Candidates(
        partition=np.repeat(np.arange(len(stages), dtype=np.int32), sizes),
        index=np.concatenate([np.zeros(0, np.int32), *(np.arange(n, dtype=np.int32) for n in sizes)]),
        source_row=np.concatenate(
            [np.zeros(0, np.int64), *(s.rows + first for s, first in zip(stages, offsets, strict=False))]
        ),
        source_turn=np.concatenate([np.zeros(0, np.int32), *(s.source_turns for s in stages)]),
        length=np.concatenate([np.zeros(0, np.int32), *(s.lengths for s in stages)]),
        supervised=np.concatenate([np.zeros(0, np.int32), *(s.supervised for s in stages)]),
    )
    recipe = run.recipe
    plan = make_plan(
        candidates,
        capacity=recipe.max_length,
        seed=recipe.seed,
        shard_tokens=run.sizes["shard_tokens"],
        packer=PACKERS[recipe.pack],
    )
    return plan, offsets


def _alone(lengths: np.ndarray[Any, Any], capacity: int) -> np.ndarray[Any, Any]:
    return np.arange(len(lengths), dtype=np.int32)


PACKERS: dict[str, Packer] = {"best_fit": best_fit, "sequential": sequential, "none": _alone}


def write_rejected(run: Run, slices: Sequence[Sliced], results: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """rejected.jsonl, rows counted within their source; the number of them by reason."""
    firsts: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    with atomic_write(run.out / REJECTED) as file:
        for n, (part, result) in enumerate(zip(slices, results, strict=True)):
            source = part.partition.source
            for line in rejects_path(run, n).read_bytes().splitlines():
                row = orjson.loads(line)
                row["row"] += firsts[source]
                file.write(orjson.dumps({"source": run.sources[source].name, **row}) + b"\n")
                reasons[row["reason"]] += 1
            firsts[source] += result["counts"].get("rows", 0)
    return reasons


def _check_kept(folder: Path, plan: Plan, rejected: Counter[str]) -> None:
    if not len(plan):
        raise DataError(
            f"no source row can be kept: {_listed(rejected) or 'there is none'}; "
            f"{folder / REJECTED} names each with its reason"
        )


def _check_strict(folder: Path, rejected: Mapping[str, int], strict: bool) -> None:
    if strict and rejected:
        raise DataError(
            f"--strict: expected no rejected row, found {_listed(rejected)}; "
            f"{folder / REJECTED} names each with its reason"
        )


def _listed(rejected: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in Counter(rejected).most_common())


def write_shards(
    run: Run, plan: Plan, stages: Sequence[Stage], optional: Mapping[str, bool]
) -> dict[str, list[ShardEntry]]:
    """Phase 3: every shard of every split, and the files around them; `optional` says which columns there are."""
    plans = {"train": plan}
    written = write_plan(run.out / PLAN, plans)
    names = {(split, number): of.shards for split, of in plans.items() for number in range(of.shards)}
    items = {
        name: shard_item(run, *name, count, [str(stage.path) for stage in stages], optional, written.sha256)
        for name, count in names.items()
    }
    results = run.perform("writing", "shard", list(items.values()))
    shards = {
        split: [ShardEntry(**results[items[split, number].name]) for number in range(of.shards)]
        for split, of in plans.items()
    }
    write_layout(run.out, shards, **optional)
    return shards


def shard_item(
    run: Run, split: str, number: int, count: int, stages: Sequence[str], optional: Mapping[str, bool], plan: str
) -> WorkItem:
    """The work of writing one shard of `count`; `plan` is the plan's SHA-256."""
    return WorkItem(
        name=f"shard {split} {number}",
        function=build_shard,
        arguments={
            "out": str(run.out),
            "stages": list(stages),
            "split": split,
            "number": number,
            "count": count,
            **optional,
            "identity": f"{run.identity} {plan}",
        },
    )
