"""The work items of a preparation: what each phase has to do, with which inputs, into which files.

Every finished item leaves a receipt in the work folder, so that a run which was killed goes on where it stopped.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from premask.encode.admission import Verdict
from premask.encode.backends import REFERENCE, BackendDiffers
from premask.encode.encoder import Encoder
from premask.encode.files import TokenizerFiles
from premask.encoders import Choice
from premask.intake import Input, Sliced, slices_of
from premask.maskers import templating_of
from premask.opening import make_ready
from premask.pack.plan import Plan
from premask.recipe import Recipe
from premask.run.items import WorkItem
from premask.run.local import Crew
from premask.show.progress import Progress
from premask.steps import ROOM, build_shard, cut_source, mask_partition
from premask.store.atomic import Written, flushing
from premask.store.claim import WORK
from premask.store.layout import shard_path, write_layout
from premask.store.plan_file import PLAN, write_plan
from premask.store.receipts import finished, write_receipt
from premask.store.shards import ShardEntry
from premask.store.stage import StageFiles
from premask.verdicts import remember

MADE_AGAIN = Choice(REFERENCE, "made again, to be compared")


@dataclass(slots=True)
class Made:
    """How a run went, noted on the way, for run.json."""

    backend: str = REFERENCE
    """Who gave the ids."""
    differed: str = ""
    """What was found when another had to be given up."""
    audited: int = 0
    """Rows that the reference encoded as well."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, on the wall."""
    stages: Counter[str] = field(default_factory=Counter)
    """Seconds by stage, of all workers together, of this run alone."""


@dataclass(frozen=True, slots=True)
class Run:
    """What all phases of one run share."""

    recipe: Recipe
    inputs: Sequence[Input]
    files: TokenizerFiles
    out: Path
    crew: Crew
    progress: Progress
    identity: str
    sizes: Mapping[str, int]
    """Of partitions in bytes, of shards in tokens."""

    encoder: Choice = MADE_AGAIN
    """Who shall give the ids."""

    made: Made = field(default_factory=Made)

    @property
    def work(self) -> Path:
        """The folder of all that goes when the run has succeeded."""
        return self.out / WORK

    def stage_path(self, partition: int) -> Path:
        """Where the examples of a partition are left."""
        return self.work / "stage" / f"{partition:05d}.arrow"

    def rejects_path(self, partition: int) -> Path:
        """Where the rejected rows of a partition are left."""
        return self.work / "rejected" / f"{partition:05d}.jsonl"

    def entry(self, part: Sliced) -> int:
        """The entry of the recipe's sources that a partition belongs to."""
        return self.inputs[part.partition.source].source.argument

    def perform(
        self, phase: str, unit: str, items: Sequence[WorkItem], on_written: Callable[[Path], None] | None = None
    ) -> dict[str, Any]:
        """Perform work items; those with a receipt are not run again. Results by name.

        `on_written` is called with every file that an item has written, as each of them ends.
        """
        known = {item.name: result for item in items if (result := finished(self.work, item.digest())) is not None}
        self.progress.phase(phase, len(items), unit)
        self.progress.advance(len(known))
        if known:
            self.progress.note(f"{phase}: {len(known)} of {len(items)} were done by an earlier run")

        began = time.monotonic()

        def note(item: WorkItem, step: dict[str, Any]) -> None:
            self.made.stages.update(step["result"].pop("seconds", {}))
            written = [Written(Path(path), size, sha256) for path, size, sha256 in step["written"]]
            write_receipt(self.work, item.digest(), written, step["result"])
            if on_written:
                for file in written:
                    on_written(file.path)
            known[item.name] = step["result"]
            self.progress.advance()

        todo = [item for item in items if item.name not in known]
        try:
            self.crew.perform(todo, note)
        finally:
            self.made.phases[phase] = self.made.phases.get(phase, 0.0) + time.monotonic() - began
        return known


def opening(recipe: Recipe, files: TokenizerFiles, encoder: str, size: int) -> WorkItem:
    """The work of loading what the partitions of a recipe's first source need, of `size` bytes all told."""
    return WorkItem(
        name="set-up",
        function=make_ready,
        arguments={
            "recipe": recipe.masking(0).resolved(),
            "tokenizer": str(files.folder),
            "templating": templating_of(recipe, files),
            "encoder": encoder,
            "size": size,
        },
    )


def slice_sources(run: Run) -> list[Sliced]:
    """Phase 0: the partitions of all inputs, in order; what cannot be sliced is cut into files of lines first."""
    items = {
        n: WorkItem(
            name=f"pieces of source {n} ({each.source.name})",
            function=cut_source,
            arguments={
                "source": {**asdict(each.source), "path": str(each.source.path)},
                "folder": str(run.work / f"source-{n:05d}"),
                "piece_bytes": run.sizes["partition_bytes"],
                "identity": run.identity,
            },
            bounded=False,
        )
        for n, each in enumerate(run.inputs)
        if not each.source.sliceable
    }
    results = run.perform("cutting", "source", list(items.values())) if items else {}
    pieces = {n: results[item.name]["pieces"] for n, item in items.items()}
    return slices_of(run.recipe, run.inputs, pieces, run.sizes["partition_bytes"])


def mask_partitions(run: Run, slices: Mapping[int, Sliced]) -> dict[int, dict[str, Any]]:
    """Phase 1: every partition to its stage file; what came of each, by number.

    A fast encoder that is found to differ from the reference gives up all its work.
    """
    run.made.backend = run.encoder.name
    try:
        results = _mask_partitions(run, slices)
    except BackendDiffers as error:
        run.made.backend, run.made.differed = REFERENCE, str(error)
        run.progress.note(f"{error}: all partitions are masked again by {REFERENCE}; please report this tokenizer")
        remember(Encoder(run.files.tokenizer_json).raw, run.encoder.name, Verdict(f"it differed while it ran: {error}"))
        results = _mask_partitions(run, slices)
    run.made.stages.update(run.crew.opened() or {})
    run.made.audited = sum(result["audited"] for result in results.values())
    return results


def _mask_partitions(run: Run, slices: Mapping[int, Sliced]) -> dict[int, dict[str, Any]]:
    templating = templating_of(run.recipe, run.files)
    maskings = {entry: run.recipe.masking(entry).resolved() for entry in {run.entry(s) for s in slices.values()}}
    items = {
        n: WorkItem(
            name=f"partition {n} ({run.inputs[s.partition.source].source.name})",
            function=mask_partition,
            arguments={
                "partition": {**asdict(s.partition), "path": str(s.partition.path)},
                "format": s.format,
                "shape": asdict(run.inputs[s.partition.source].shape),
                "limit": s.limit,
                "rows": s.rows,
                "recipe": maskings[run.entry(s)],
                "hashed": run.recipe.compares_conversations,
                "tokenizer": str(run.files.folder),
                "templating": templating,
                "stage": str(run.stage_path(n)),
                "rejects": str(run.rejects_path(n)),
                "identity": run.identity,
                "encoder": run.made.backend,
            },
        )
        for n, s in slices.items()
    }
    results = run.perform("masking", "partition", list(items.values()))
    return {n: results[item.name] for n, item in items.items()}


def write_shards(
    run: Run, plans: Mapping[str, Plan], stages: StageFiles, optional: Mapping[str, bool]
) -> dict[str, list[ShardEntry]]:
    """Phase 3: every shard of every split, and the files around them; `optional` says which columns there are."""
    written = write_plan(run.out / PLAN, plans)
    names = {(split, number): of.shards for split, of in plans.items() for number in range(of.shards)}
    items = {name: shard_item(run, *name, count, stages, optional, written.sha256) for name, count in names.items()}
    results = build_shards(run, list(items.values()))
    shards = {
        split: [ShardEntry(**results[items[split, number].name]) for number in range(of.shards)]
        for split, of in plans.items()
    }
    write_layout(run.out, shards, **optional)
    return shards


def build_shards(run: Run, items: Sequence[WorkItem]) -> dict[str, Any]:
    """Perform the items of some shards (`shard_item`); when it returns, these and their plan are on the disk."""
    with flushing() as flush:
        flush(run.out / PLAN)
        try:
            results = run.perform("writing", "shard", items, flush)
        finally:
            ROOM.close()  # where they were made in this process
        for item in items:  # those of an earlier run as well
            flush(shard_path(run.out, *(item.arguments[key] for key in ("split", "number", "count"))))
    return results


def shard_item(
    run: Run, split: str, number: int, count: int, stages: StageFiles, optional: Mapping[str, bool], plan: str
) -> WorkItem:
    """The work of writing one shard of `count`; `plan` is the plan's SHA-256."""
    return WorkItem(
        name=f"shard {split} {number}",
        function=build_shard,
        arguments={
            "out": str(run.out),
            "stages": [str(path) for path in stages.paths],
            "split": split,
            "number": number,
            "count": count,
            **optional,
            "identity": f"{run.identity} {plan} {run.made.backend}",
        },
    )
