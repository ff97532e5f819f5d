"""From sources to a prepared dataset: the composition of all rooms.

    phase 0  look at the sources: kind, format, checksum; cut what cannot be sliced
    phase 1  partition -> stage file of masked examples, rejected rows     one work item each
    phase 2  columns of all examples -> selection, splits, the plan        here, in the driver
    phase 3  shard of the plan -> Arrow file                               one work item each

Every finished item leaves a receipt in the work folder, so that a run which was killed goes on where it stopped. The
manifest is written last: a folder without one is no dataset.
"""

import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from premask.encode.files import load_tokenizer_files
from premask.encoders import choose, rendered_sample, require_known
from premask.errors import DataError
from premask.intake import Input, Sliced, identity_with, in_order, inputs_of, require_unchanged
from premask.mask.lints import warnings
from premask.mask.masker import Masker
from premask.maskers import masker_of
from premask.phases import Run, mask_partitions, opening, slice_sources, write_shards
from premask.planning import Planned, check_filters, plan_splits, pool_of
from premask.read import PARTITION_BYTES, union_note
from premask.recipe import Recipe
from premask.record import RUN, code_digest, describe, how_made, manifest_of, summary_of
from premask.rejected import require_kept, require_strict, write_rejected
from premask.run.items import WorkItem
from premask.run.local import Crew, run_items, usable_cores
from premask.show.progress import Progress, SilentProgress
from premask.steps import digest_source
from premask.store.atomic import remove_leftovers
from premask.store.claim import WORK, claim, is_finished, refuse_strangers
from premask.store.lock import locked
from premask.store.manifest import MANIFEST, read_manifest, write_manifest
from premask.store.sealed import write_sealed
from premask.store.shards import features
from premask.store.stage import StageFiles
from premask.verdicts import AUTO

SHARD_TOKENS = 2**21
"""Tokens of a shard, about: 25 MB."""

USUAL_BYTES = 2**28
"""Sources up to which partitions and shards have these sizes (`sizes_for`)."""

GROWN = 4
"""So many times as large they become at the most, at 4 GB: a worker holds the tokens of a shard."""

WORKER_BYTES = 8 * 2**20
"""Sources that a worker should have to itself: masking less takes no longer than starting one more process."""


def prepare(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    fresh: bool = False,
    strict: bool = False,
    keep_stage: bool = False,
    encoder: str = AUTO,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prepare the dataset that `recipe` describes in the folder `out`; returns the summary.

    An unfinished run of the same recipe, sources and tokenizer goes on where it stopped; `fresh` starts anew. With
    `strict` a rejected source row fails the run, unless the recipe itself leaves it out. `encoder` names who gives the
    ids (`encode.backends`), which are the same whoever does.

    Raises UsageError where the call is wrong or the folder holds something else, DataError where no row can be kept,
    MachineError where the disk is full or workers die.
    """
    began, clock = time.time(), time.monotonic()  # a clock may be set while we run
    folder, progress = Path(out), progress or SilentProgress()
    require_known(encoder)
    check_filters(recipe)
    inputs = inputs_of(recipe)
    size = sum(each.source.size for each in inputs)
    sizes = sizes_for(size)
    files = load_tokenizer_files(recipe.tokenizer)
    refuse_strangers(folder)
    workers = workers or max(1, min(usable_cores(), size // WORKER_BYTES))
    with locked(folder) as lock, Crew(workers, (lock,)) as crew:
        if fresh or not (folder / MANIFEST).exists():
            parts = sum(-(-each.source.size // sizes["partition_bytes"]) for each in inputs)  # about
            crew.start(opening(recipe, files, encoder, size), parts)  # it loads while we do, and take checksums
        maskers = [masker_of(masking, files) for masking in maskings(recipe)]  # fails now where they are wrong
        _say_of_templates(maskers, progress)
        recipe, inputs, digests = in_order(recipe, inputs, _digests(inputs, workers, progress))
        description = describe(recipe, inputs, digests, files, sizes)
        if is_finished(folder, description, fresh):
            progress.note(f"{folder}: is prepared already, from the same recipe and sources; nothing to do")
            manifest = read_manifest(folder)
            require_strict(folder, manifest["rows"]["rejected"], strict)
        else:
            begun = {**description, "code": code_digest()}
            claim(folder, begun, fresh)
            identity = identity_with(begun, inputs)
            remove_leftovers(folder)
            chosen = choose(encoder, maskers[0].encoder, size, lambda: rendered_sample(maskers[0], inputs))
            run = Run(recipe, inputs, files, folder, crew, progress, identity, sizes, chosen)
            manifest = run_phases(run, description, strict)
            require_unchanged(inputs)
            remove_leftovers(folder)  # of workers that died in this very run
            write_sealed(folder / RUN, how_made(run, description, began, time.monotonic() - clock))
            write_manifest(folder, manifest)
        if not keep_stage:
            shutil.rmtree(folder / WORK, ignore_errors=True)
    return summary_of(manifest, folder, time.monotonic() - clock)


def sizes_for(size: int) -> dict[str, int]:
    """Bytes of a partition and tokens of a shard, for sources of `size` bytes.

    Every shard draws on every partition: were both of one size whatever there is, the pairs of them would grow with the
    square of it, and gathering with them. So each grows with the root, and what a token costs stays the same, until
    they are `GROWN`.
    """
    most = GROWN * PARTITION_BYTES
    grown = math.isqrt(size * PARTITION_BYTES * PARTITION_BYTES // USUAL_BYTES)
    partition_bytes = min(most, max(PARTITION_BYTES, grown))
    return {"partition_bytes": partition_bytes, "shard_tokens": SHARD_TOKENS * partition_bytes // PARTITION_BYTES}


def maskings(recipe: Recipe) -> list[Recipe]:
    """What the recipe says of masking, each of the ways in which its sources differ."""
    ways = [recipe.masking(entry) for entry in range(len(recipe.sources))]
    return list({way.digest(): way for way in ways}.values())


def run_phases(run: Run, description: Mapping[str, Any], strict: bool) -> dict[str, Any]:
    """All phases; returns the manifest, which is not written yet."""
    _say_of_unions(run)
    slices = slice_sources(run)
    results = list(mask_partitions(run, dict(enumerate(slices))).values())
    stages = StageFiles([str(run.stage_path(n)) for n in range(len(slices))])
    offsets = first_rows(results)
    planned = plan_packs(run, slices, results, stages)
    rejected = write_rejected(run, slices, results, planned.lost)
    require_kept(run.out, {split: len(plan) for split, plan in planned.plans.items()}, rejected)
    require_strict(run.out, rejected, strict)
    optional = {"source_turns": in_turns(run.recipe), "weights": any(stage.weighted for stage in stages)}
    shards = write_shards(run, planned.plans, stages, optional)
    return manifest_of(
        run, description, slices, offsets, results, rejected, planned, shards, list(features(**optional))
    )


def in_turns(recipe: Recipe) -> bool:
    """Whether examples may hold some turns of their source row only."""
    return recipe.overflow == "split" or any(way.turns == "separate" for way in maskings(recipe))


def first_rows(results: Sequence[Mapping[str, Any]]) -> list[int]:
    """The global number of every partition's first source row, and of the row behind the last."""
    counts = [result["counts"].get("rows", 0) for result in results]
    return [0, *np.cumsum(counts).tolist()]


def plan_packs(run: Run, slices: Sequence[Sliced], results: Sequence[Mapping[str, Any]], stages: StageFiles) -> Planned:
    """Phase 2: rows numbered over all sources; examples selected, split, mixed, ordered and packed."""
    run.progress.phase("packing", sum(result["counts"].get("examples", 0) for result in results), "example")
    pool = pool_of(stages, first_rows(results)[:-1], [run.entry(part) for part in slices])
    try:
        return plan_splits(run.recipe, pool, lambda: (stage.digests for stage in stages), run.sizes["shard_tokens"])
    except DataError:  # a source has nothing to give: its rejected rows say why
        write_rejected(run, slices, results, lambda partition: ())
        raise


def _digests(inputs: Sequence[Input], workers: int, progress: Progress) -> list[dict[str, Any]]:
    """Size and SHA-256 of every source."""
    progress.phase("taking checksums", len(inputs), "source")
    items = [
        WorkItem(
            name=f"checksum of source {n}",
            function=digest_source,
            arguments={"path": str(each.source.path)},
            bounded=False,
        )
        for n, each in enumerate(inputs)
    ]
    large = sum(each.source.size for each in inputs) > 2**30  # below, starting processes costs more than hashing
    steps = run_items(items, workers=workers if large else 1, on_done=lambda item, step: progress.advance())
    return [step["result"] for step in steps.values()]


def _say_of_templates(maskers: Sequence[Masker], progress: Progress) -> None:
    """Say what concerns every dataset that is made with these templates."""
    every = [one for masker in maskers for one in (masker, masker.with_tools) if one is not None]
    for text in dict.fromkeys(text for one in every for text in warnings(one.grammar, one.vocabulary)):
        progress.note(f"note: {text}")


def _say_of_unions(run: Run) -> None:
    """Say which tables hold nulls that may have been no keys at all."""
    for each in run.inputs:
        note = None if each.shape.drop_nulls else union_note(each.source)
        if note:
            run.progress.note(note)
