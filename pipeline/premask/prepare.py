"""From sources to a prepared dataset: the composition of all rooms.

    phase 0  look at the sources: kind, format, checksum; cut what cannot be sliced
    phase 1  partition -> stage file of masked examples, rejected rows     one work item each
    phase 2  lengths of all examples -> the plan                           here, in the driver
    phase 3  shard of the plan -> Arrow file                               one work item each

Every finished item leaves a receipt in the work folder, so that a run which was killed goes on where it stopped. The
manifest is written last: a folder without one is no dataset.
"""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from premask.encode.files import TokenizerFiles, load_tokenizer_files
from premask.errors import DataError
from premask.mask.masker import MASK_RULES
from premask.pack.best_fit import best_fit, sequential
from premask.pack.plan import Candidates, Packer, Plan, make_plan
from premask.read import (
    PARTITION_BYTES,
    Partition,
    Source,
    detect,
    digest_file,
    first_rows,
    open_sources,
    partitions,
    read_partition,
)
from premask.recipe import Recipe
from premask.render.named import resolve_template
from premask.run.items import WorkItem
from premask.run.local import run_items, usable_cores
from premask.show.progress import Progress, SilentProgress
from premask.steps import build_masker, build_shard, cut_source, digest_source, mask_partition
from premask.store.atomic import Written, atomic_write, remove_leftovers, write_json
from premask.store.claim import WORK, claim, is_finished
from premask.store.layout import write_layout
from premask.store.lock import locked
from premask.store.manifest import read_manifest, split_entry, write_manifest
from premask.store.plan_file import write_plan
from premask.store.receipts import finished, write_receipt
from premask.store.shards import ShardEntry
from premask.store.stage import Stage, read_stage

SHARD_TOKENS = 2**22
"""Tokens of a shard, about: 50 MB."""

SHAPING = ("jinja2", "numpy", "orjson", "premask", "pyarrow", "tokenizers")
"""Libraries that may shape bytes."""


@dataclass(frozen=True, slots=True)
class Sliced:
    """One partition of the run."""

    partition: Partition
    format: str
    limit: int | None


@dataclass(frozen=True, slots=True)
class Run:
    """What all phases of one run share."""

    recipe: Recipe
    out: Path
    work: Path
    workers: int
    progress: Progress
    identity: str

    def perform(self, phase: str, items: Sequence[WorkItem]) -> dict[str, Any]:
        """Perform work items; those with a receipt are not run again. Results by name."""
        known = {item.name: result for item in items if (result := finished(self.work, item.digest())) is not None}
        self.progress.phase(phase, len(items))
        self.progress.advance(len(known))

        def note(item: WorkItem, step: dict[str, Any]) -> None:
            written = [Written(Path(path), size, sha256) for path, size, sha256 in step["written"]]
            write_receipt(self.work, item.digest(), written, step["result"])
            known[item.name] = step["result"]
            self.progress.advance()

        run_items([item for item in items if item.name not in known], workers=self.workers, on_done=note)
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
    began = time.time()
    folder, progress = Path(out), progress or SilentProgress()
    sources = open_sources(recipe.sources)
    files = load_tokenizer_files(recipe.tokenizer)
    build_masker(recipe, files)  # fails here and now where template and tokenizer are wrong
    with locked(folder):
        stamps = [_stamp(source) for source in sources]
        digests = _digests(sources, workers or usable_cores(), progress)
        description = describe(recipe, sources, digests, files)
        if is_finished(folder, description, fresh):
            progress.note(f"{folder}: is prepared already, from the same recipe and sources; nothing to do")
            return _summary(read_manifest(folder), time.time() - began)
        identity = claim(folder, description, fresh)
        remove_leftovers(folder)
        run = Run(recipe, folder, folder / WORK, workers or usable_cores(), progress, identity)
        slices = _slices(run, sources)
        results = _mask(run, files, slices)
        _unchanged(sources, stamps)
        stages = [read_stage(_stage_path(run, n)) for n in range(len(slices))]
        plan, offsets = _plan(run, sources, slices, results, stages)
        rejected = _write_rejected(run, sources, slices, results)
        _check_kept(folder, plan, rejected, strict)
        shards = _write_shards(run, plan, stages)
        manifest = _manifest(description, slices, offsets, results, rejected, shards, folder)
        write_json(folder / "run.json", _how(sources, files, run, began))
        write_manifest(folder, manifest)
        if not keep_stage:
            shutil.rmtree(run.work)
    return _summary(manifest, time.time() - began)


def describe(
    recipe: Recipe, sources: Sequence[Source], digests: Sequence[Mapping[str, Any]], files: TokenizerFiles
) -> dict[str, Any]:
    """All that the bytes of a dataset depend on; equal descriptions, equal datasets."""
    template = resolve_template(recipe.template, files.chat_template)
    return {
        "recipe": recipe.resolved(),
        "sources": [{"name": s.name, **d} for s, d in zip(sources, digests, strict=True)],
        "tokenizer": files.digests,
        "template": _sha256(template.encode()),
        "mask_rules": MASK_RULES,
        "libraries": {name: importlib.metadata.version(name) for name in SHAPING},
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digests(sources: Sequence[Source], workers: int, progress: Progress) -> list[dict[str, Any]]:
    """Size and SHA-256 of every source."""
    progress.phase("checksums", len(sources))
    items = [
        WorkItem(name=f"checksum of source {n}", function=digest_source, arguments={"path": str(s.path)})
        for n, s in enumerate(sources)
    ]
    large = sum(s.size for s in sources) > 2**30  # below, starting processes costs more than hashing
    steps = run_items(items, workers=workers if large else 1, on_done=lambda item, step: progress.advance())
    return [step["result"] for step in steps.values()]


def _slices(run: Run, sources: Sequence[Source]) -> list[Sliced]:
    """Phase 0: the partitions of all sources, in order."""
    arrays = {n: s for n, s in enumerate(sources) if s.kind == "json-array"}
    items = [
        WorkItem(
            name=f"pieces of source {n}",
            function=cut_source,
            arguments={
                "path": str(source.path),
                "folder": str(run.work / f"source-{n:05d}"),
                "piece_bytes": PARTITION_BYTES,
                "identity": run.identity,
            },
        )
        for n, source in arrays.items()
    ]
    pieces = run.perform("cutting", items) if items else {}
    slices: list[Sliced] = []
    for n, source in enumerate(sources):
        format = detect(first_rows(source), source.name) if run.recipe.format == "auto" else run.recipe.format
        if n in arrays:
            found = pieces[f"pieces of source {n}"]["pieces"]
            parts = [Partition(n, Path(path), 0, size) for path, size in found]
        else:
            parts = partitions(source, index=n)
        slices += [Sliced(part, format, limit) for part, limit in _limited(parts, run.recipe.limit)]
    return slices


def _limited(parts: Sequence[Partition], limit: int | None) -> Iterator[tuple[Partition, int | None]]:
    """As many partitions as hold the first `limit` rows, each with how many rows of it count."""
    left = limit
    for part in parts:
        if left is None:
            yield part, None
            continue
        if left <= 0:
            return
        rows = sum(1 for _ in islice(read_partition(part), left))
        yield part, left
        left -= rows


def _mask(run: Run, files: TokenizerFiles, slices: Sequence[Sliced]) -> list[dict[str, Any]]:
    """Phase 1: every partition to its stage file."""
    items = [
        WorkItem(
            name=f"partition {n}",
            function=mask_partition,
            arguments={
                "partition": {**asdict(s.partition), "path": str(s.partition.path)},
                "format": s.format,
                "limit": s.limit,
                "recipe": run.recipe.resolved(),
                "tokenizer": str(files.folder),
                "stage": str(_stage_path(run, n)),
                "rejects": str(_rejects_path(run, n)),
                "identity": run.identity,
            },
        )
        for n, s in enumerate(slices)
    ]
    results = run.perform("masking", items)
    return [results[item.name] for item in items]


def _stage_path(run: Run, partition: int) -> Path:
    return run.work / "stage" / f"{partition:05d}.arrow"


def _rejects_path(run: Run, partition: int) -> Path:
    return run.work / "rejected" / f"{partition:05d}.jsonl"


def _stamp(source: Source) -> tuple[int, int, int] | None:
    """What changes when a file is written to or replaced."""
    try:
        status = source.path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def _unchanged(sources: Sequence[Source], stamps: Sequence[tuple[int, int, int] | None]) -> None:
    """DataError unless the sources are as they were before their checksums were taken."""
    for source, stamp in zip(sources, stamps, strict=True):
        if _stamp(source) != stamp:
            raise DataError(
                f"{source.name}: expected a source that stays as it is while it is read, found that it changed; "
                "run again when nothing writes to it"
            )


def _plan(
    run: Run,
    sources: Sequence[Source],
    slices: Sequence[Sliced],
    results: Sequence[Mapping[str, Any]],
    stages: Sequence[Stage],
) -> tuple[Plan, list[int]]:
    """Phase 2: rows numbered over all sources, examples packed. Also the number of each partition's first row."""
    run.progress.phase("packing", None)
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
        shard_tokens=SHARD_TOKENS,
        packer=PACKERS[recipe.pack],
    )
    return plan, offsets


def _alone(lengths: np.ndarray[Any, Any], capacity: int) -> np.ndarray[Any, Any]:
    return np.arange(len(lengths), dtype=np.int32)


PACKERS: dict[str, Packer] = {"best_fit": best_fit, "sequential": sequential, "none": _alone}


def _write_rejected(
    run: Run, sources: Sequence[Source], slices: Sequence[Sliced], results: Sequence[Mapping[str, Any]]
) -> Counter[str]:
    """rejected.jsonl, rows counted within their source; the number of them by reason."""
    firsts: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    with atomic_write(run.out / "rejected.jsonl") as file:
        for n, (part, result) in enumerate(zip(slices, results, strict=True)):
            source = part.partition.source
            for line in _rejects_path(run, n).read_bytes().splitlines():
                row = orjson.loads(line)
                row["row"] += firsts[source]
                file.write(orjson.dumps({"source": sources[source].name, **row}) + b"\n")
                reasons[row["reason"]] += 1
            firsts[source] += result["counts"].get("rows", 0)
    return reasons


def _check_kept(folder: Path, plan: Plan, rejected: Counter[str], strict: bool) -> None:
    reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.most_common())
    if not len(plan):
        raise DataError(
            f"no source row can be kept: {reasons or 'there is none'}; {folder / 'rejected.jsonl'} names each with its reason"
        )
    if strict and rejected:
        raise DataError(f"--strict: {reasons}; {folder / 'rejected.jsonl'} names each row with its reason")


def _write_shards(run: Run, plan: Plan, stages: Sequence[Stage]) -> dict[str, list[ShardEntry]]:
    """Phase 3: every shard of every split, and the files around them."""
    plans = {"train": plan}
    written = write_plan(run.out / "plan.arrow", plans)
    weights = any(stage.weighted for stage in stages)
    turns = run.recipe.turns == "separate"
    items = [
        WorkItem(
            name=f"shard {split} {number}",
            function=build_shard,
            arguments={
                "out": str(run.out),
                "stages": [str(stage.path) for stage in stages],
                "split": split,
                "number": number,
                "count": of.shards,
                "source_turns": turns,
                "weights": weights,
                "identity": f"{run.identity} {written.sha256}",
            },
        )
        for split, of in plans.items()
        for number in range(of.shards)
    ]
    results = run.perform("writing", items)
    shards = {
        split: [ShardEntry(**results[f"shard {split} {number}"]) for number in range(of.shards)]
        for split, of in plans.items()
    }
    write_layout(run.out, shards, source_turns=turns, weights=weights)
    return shards


def _manifest(
    description: Mapping[str, Any],
    slices: Sequence[Sliced],
    offsets: Sequence[int],
    results: Sequence[Mapping[str, Any]],
    rejected: Counter[str],
    shards: Mapping[str, Sequence[ShardEntry]],
    folder: Path,
) -> dict[str, Any]:
    counts: Counter[str] = sum((Counter(result["counts"]) for result in results), Counter())
    rows = offsets[-1]
    lost = sum(rejected.values())
    return {
        **description,
        "rows": {"in": rows, "kept": rows - lost, "rejected": dict(rejected)},
        "counts": {name: count for name, count in sorted(counts.items()) if name not in ("rows", "examples")},
        "partitions": [
            {
                "source": s.partition.source,
                "start": s.partition.start,
                "end": s.partition.end,
                "first_row": first,
                "format": s.format,
            }
            for s, first in zip(slices, offsets, strict=False)
        ],
        "splits": {split: split_entry(entries) for split, entries in shards.items()},
        "files": {name: digest_file(folder / name) for name in ("plan.arrow", "rejected.jsonl")},
    }


def _how(sources: Sequence[Source], files: TokenizerFiles, run: Run, began: float) -> dict[str, Any]:
    """How it was made: what may differ between two runs that give the same dataset."""
    return {
        "began": began,
        "seconds": round(time.time() - began, 3),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "workers": run.workers,
        "sources": [str(s.path.resolve()) for s in sources],
        "tokenizer": str(files.folder.resolve()),
        "encoder": {"backend": "tokenizers", "version": importlib.metadata.version("tokenizers")},
    }


def _summary(manifest: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    rows = manifest["rows"]
    keys = {"examples": "examples", "packs": "packs", "tokens": "tokens", "supervised": "supervised_tokens"}
    return {
        "rows": rows["in"],
        "kept": rows["kept"],
        "rejected": rows["rejected"],
        "splits": {
            split: {name: entry[key] for name, key in keys.items()} for split, entry in manifest["splits"].items()
        },
        "max_length": manifest["recipe"]["max_length"],
        "counts": manifest["counts"],
        "seconds": seconds,
    }
