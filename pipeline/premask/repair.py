"""A damaged dataset made whole: just the files that are damaged or missing, from the plan and the sources, to the byte.

    shard                  the partitions that its examples come from, gathered by the plan
    plan, rejected rows    all partitions
    manifest               everything, from the description that run.json holds; what differs is replaced
    the small JSON files   the manifest alone

What is made again lies in the work folder until it is known to have the checksum that the manifest names, and is then
moved into place. A repair that was killed goes on where it stopped.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from premask.errors import DataError, UsageError
from premask.intake import Sliced
from premask.origin import Origin, find_origin, read_record
from premask.phases import Run, build_shards, mask_partitions, shard_item, slice_sources
from premask.prepare import plan_packs, run_phases
from premask.read import digest_file
from premask.record import DESCRIBED, RUN
from premask.rejected import REJECTED, write_rejected
from premask.run.local import Crew, usable_cores
from premask.show.progress import Progress, SilentProgress
from premask.store.atomic import is_temporary, remove_leftovers, sync_folder
from premask.store.claim import WORK
from premask.store.layout import layout_names, write_layout
from premask.store.lock import locked
from premask.store.manifest import MANIFEST, read_manifest, split_shards, write_manifest
from premask.store.plan_file import PLAN, read_plan, write_plan
from premask.store.sealed import write_sealed
from premask.store.shards import OPTIONAL_COLUMNS
from premask.store.stage import StageFiles
from premask.verify import Damage, verify

REPAIR = "repair"
"""In the work folder: what is made again."""

_MENDED = ("missing", "changed")
"""Kinds of damage that repair mends."""

_SHARD = re.compile(r"data-\d{5,}-of-\d{5,}\.arrow")


@dataclass(slots=True)
class Repaired:
    """What a repair did."""

    rebuilt: list[str] = field(default_factory=list)
    """Files that were made again, relative to the dataset's folder."""
    removed: list[str] = field(default_factory=list)
    """Files of ours that belonged to no dataset: shards that the manifest does not name, half-written files."""
    left: list[Damage] = field(default_factory=list)
    """What repair must not touch (files that are not ours) or cannot mend."""

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Means:
    """What a repair works with."""

    sources: Sequence[str]
    tokenizer: str | None
    crew: Crew
    progress: Progress


def repair(
    folder: str | os.PathLike[str],
    *,
    sources: Sequence[str] = (),
    tokenizer: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Repaired:
    """Rebuild the damaged and missing files of the dataset in `folder`, byte for byte.

    `sources` and `tokenizer` say where they are now, if not where they were. Raises UsageError where they, or the
    versions of libraries, are not those of the dataset; DataError where there is no dataset, or neither its manifest
    nor its run.json can be read.
    """
    folder, progress = Path(folder), progress or SilentProgress()
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected the folder of a prepared dataset, found none; check the path")
    with locked(folder) as lock, Crew(workers or usable_cores(), (lock,)) as crew:
        means = _Means(sources, tokenizer, crew, progress)
        repaired = Repaired()
        damages = verify(folder, workers=workers, progress=progress).damages
        if any(damage.file == MANIFEST and damage.kind in _MENDED for damage in damages):
            repaired.rebuilt = _put_all(folder, lambda scratch: _rebuild_all(folder, scratch, means))
            damages = verify(folder, workers=workers, progress=progress).damages
        repaired.removed = _remove_own_strays(folder, damages)
        wanted = sorted({damage.file for damage in damages if damage.kind in _MENDED})
        if wanted:
            repaired.rebuilt += _put_all(folder, lambda scratch: _rebuild(folder, scratch, means, wanted))
        gone = set(repaired.removed)
        repaired.left = [d for d in damages if d.kind not in _MENDED and d.file not in gone]
    return repaired


def _put_all(folder: Path, rebuild: Callable[[Path], list[str]]) -> list[str]:
    """Have files made again in the work folder and move them into place; the names of those that were not there."""
    scratch = folder / WORK / REPAIR
    remove_leftovers(scratch)
    made = rebuild(scratch)
    changed = [name for name in made if _put(scratch / name, folder / name)]
    shutil.rmtree(scratch)
    if not any((folder / WORK).iterdir()):
        (folder / WORK).rmdir()
    return changed


def _remove_own_strays(folder: Path, damages: Sequence[Damage]) -> list[str]:
    """Remove what only premask can have left; returns the names."""
    strays = [damage.file for damage in damages if damage.kind == "stray"]
    own = [name for name in strays if is_temporary(Path(name)) or ("/" in name and _SHARD.fullmatch(Path(name).name))]
    for name in own:
        (folder / name).unlink()
    return own


def _rebuild_all(folder: Path, scratch: Path, means: _Means) -> list[str]:
    """Everything in `scratch`, manifest included, from the description in run.json; the names of the files."""
    record = read_record(folder) or read_record(folder, MANIFEST)  # the two may have changed places
    if record is None:
        raise DataError(
            f"{folder}: expected {MANIFEST} or {RUN} as it was written, found both damaged: what the dataset was made "
            "of is lost; prepare it again with --fresh"
        )
    description = record["description"]
    origin = find_origin(folder, description, sources=means.sources, tokenizer=means.tokenizer)
    run = origin.run(scratch, means.crew, means.progress)
    manifest = run_phases(run, description, strict=False)
    origin.require_unchanged()
    shards = [f"{split}/{entry.file}" for split, own in split_shards(scratch, manifest).items() for entry in own]
    write_manifest(scratch, manifest)
    write_sealed(scratch / RUN, record)
    return [*shards, *manifest["files"], MANIFEST, RUN]


def _rebuild(folder: Path, scratch: Path, means: _Means, wanted: Sequence[str]) -> list[str]:
    """The wanted files in `scratch`, each with the checksum that the manifest has for it; their names."""
    manifest = read_manifest(folder)
    small = {RUN, *layout_names(manifest["splits"])}
    if not small.issuperset(wanted):
        origin = find_origin(folder, manifest, sources=means.sources, tokenizer=means.tokenizer)
        run = origin.run(scratch, means.crew, means.progress)
        _rebuild_data(folder, manifest, origin, run, set(wanted))
        origin.require_unchanged()
    if not small.isdisjoint(wanted):
        optional = _optional(manifest)
        write_layout(scratch, split_shards(folder, manifest), **optional)
        write_sealed(scratch / RUN, _lost_record(manifest))
    for name in wanted:
        expected = _checksums(folder, manifest).get(name)
        if expected and digest_file(scratch / name) != expected:
            raise DataError(
                f"{folder / name}: made again, it has another SHA-256 than the manifest names; nothing was changed. "
                "Is the manifest that of another dataset?"
            )
    return list(wanted)


def _rebuild_data(folder: Path, manifest: Mapping[str, Any], origin: Origin, run: Run, wanted: set[str]) -> None:
    """Plan, rejected rows and shards, as far as they are wanted."""
    slices = slice_sources(run)
    _require_partitions(folder, manifest, slices)
    run.out.mkdir(parents=True, exist_ok=True)
    shards = {
        (split, number): len(own)
        for split, own in split_shards(folder, manifest).items()
        for number, entry in enumerate(own)
        if f"{split}/{entry.file}" in wanted
    }
    every = not wanted.isdisjoint((PLAN, REJECTED))
    needed = range(len(slices)) if every else _partitions_of(folder, list(shards))
    results = list(mask_partitions(run, {n: slices[n] for n in needed}).values())
    stages = StageFiles([str(run.stage_path(n)) for n in range(len(slices))])
    if every:
        planned = plan_packs(run, slices, results, stages)
        write_rejected(run, slices, results, planned.lost)
        write_plan(run.out / PLAN, planned.plans)
    if PLAN not in wanted:
        (run.out / PLAN).unlink(missing_ok=True)
        (run.out / PLAN).symlink_to((folder / PLAN).resolve())
    items = [
        shard_item(run, *name, count, stages, _optional(manifest), manifest["files"][PLAN])
        for name, count in shards.items()
    ]
    build_shards(run, items)


def _require_partitions(folder: Path, manifest: Mapping[str, Any], slices: Sequence[Sliced]) -> None:
    found = [(s.partition.source, s.partition.start, s.partition.end, s.format) for s in slices]
    if found != [tuple(part[key] for key in ("source", "start", "end", "format")) for part in manifest["partitions"]]:
        raise DataError(f"{folder / MANIFEST}: its partitions are not those that its sources give; prepare it again")


def _partitions_of(folder: Path, shards: Sequence[tuple[str, int]]) -> list[int]:
    """The partitions that the examples of some shards come from."""
    plan = read_plan(folder / PLAN)
    return sorted({n for shard in shards for n in set(plan.shard(*shard).partition.tolist())})


def _optional(manifest: Mapping[str, Any]) -> dict[str, bool]:
    names = {"source_turns": "source_turns", "loss_weights": "weights"}
    return {names[column]: column in manifest["columns"] for column in sorted(OPTIONAL_COLUMNS)}


def _checksums(folder: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    shards = {f"{split}/{e.file}": e.sha256 for split, own in split_shards(folder, manifest).items() for e in own}
    return {**manifest["files"], **shards}


def _lost_record(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A run.json in place of the one that is lost: what the manifest still knows."""
    description = {key: manifest[key] for key in DESCRIBED}
    template = manifest["recipe"]["template"]
    return {
        "repaired": "the first record was damaged; times, host and places are not known any more",
        "description": description,
        "sources": [str(Path(source["name"]).resolve()) for source in manifest["sources"]],
        "template": str(Path(template).expanduser().resolve()) if template else None,
    }


def _put(made: Path, place: Path) -> bool:
    """Move a file into its place, unless the same bytes are there already; whether it was moved."""
    if place.is_file() and not place.is_symlink() and digest_file(place) == digest_file(made):
        return False
    if not place.parent.is_dir():
        place.parent.unlink(missing_ok=True)
    if place.is_dir():
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    made.replace(place)
    sync_folder(place.parent)
    return True
