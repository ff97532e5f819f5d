"""Is a prepared dataset whole? Files against the manifest, invariants in every shard, and, if asked, the sources again.

    manifest   carries its own checksum
    files      all there, nothing else there, every checksum as in the manifest
    shards     schema, lengths, positions, labels, counts, the plan's examples (`store/check.py`)
    rows       every source row kept or rejected, none both, no example twice, splits disjoint
    sources    with `against`: rows are masked again, and ids and labels compared (`rederive.py`)

One pass over the bytes for the checksums and one for the invariants, shard by shard on all cores.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from premask.dtypes import Int64Array
from premask.errors import DataError, UsageError
from premask.origin import read_record
from premask.pack.plan import PlanRows
from premask.prepare import REJECTED
from premask.read import digest_file
from premask.record import DESCRIBED, RUN
from premask.rederive import rederive, rejected_rows
from premask.run.items import WorkItem
from premask.run.local import run_items, usable_cores
from premask.show.progress import Progress, SilentProgress
from premask.store.check import find_faults
from premask.store.claim import WORK
from premask.store.lock import LOCK
from premask.store.manifest import MANIFEST, read_manifest, split_entry, split_shards
from premask.store.plan_file import PLAN, StoredPlan, read_plan
from premask.store.sealed import unseal
from premask.store.shards import ShardEntry

WORTH_WORKERS = 2**28
"""Bytes of shards from which on starting processes pays."""

_UNCHECKED = {WORK, LOCK, "report.html"}
"""What may lie in the folder: of no consequence, or made from the rest."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong with a dataset."""

    file: str
    """Relative to the dataset's folder."""
    kind: Literal["missing", "changed", "stray", "wrong"]
    """`wrong`: the bytes are as they were written, but break a rule."""
    detail: str


@dataclass(slots=True)
class Report:
    """What verification found."""

    folder: str
    files: int = 0
    """Checked against their checksums."""
    bytes: int = 0
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    """Packs, examples, tokens and supervised tokens of every split."""
    compared: dict[str, int] | None = None
    """Source rows and examples that were derived again."""
    damages: list[Damage] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damages

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**asdict(self), "ok": self.ok}


def verify(
    folder: str | os.PathLike[str],
    *,
    against: Sequence[str] = (),
    sample: int | None = None,
    tokenizer: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check the dataset in `folder`; with `against` also mask `sample` source rows (None: all) again, and compare.

    `against` names the sources, in any order and under any name; `tokenizer` says where the tokenizer is, if not where
    it was. Damage is reported, not raised. Raises UsageError where there is no such folder, or sources or tokenizer are
    not the dataset's own; DataError where the folder holds no finished dataset of this format version.
    """
    folder, progress = Path(folder), progress or SilentProgress()
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected the folder of a prepared dataset, found none; check the path")
    report = Report(str(folder))
    manifest = _read_manifest(folder, report)
    if manifest is None:
        return report
    shards = split_shards(folder, manifest)
    _check_files(folder, manifest, shards, report)
    _check_totals(manifest, shards, report)
    plan = _plan(folder, report)
    _check_shards(folder, manifest, shards, plan, workers or usable_cores(), progress, report)
    if plan is not None:
        _check_rows(folder, manifest, plan, report)
    report.splits = {name: _totals(split) for name, split in manifest["splits"].items()}
    if against and report.ok and plan is not None:
        found = rederive(folder, manifest, against, sample, tokenizer, workers or usable_cores(), progress)
        report.compared = {"rows": found.rows, "examples": found.examples}
        report.damages += [Damage(file, "wrong", detail) for file, detail in found.differences]
    return report


def _totals(split: Mapping[str, Any]) -> dict[str, int]:
    return {name: split[name] for name in ("packs", "examples", "tokens", "supervised_tokens")}


def _read_manifest(folder: Path, report: Report) -> dict[str, Any] | None:
    """The manifest, or None where it is damaged, which is reported. DataError where there is no dataset at all."""
    path = folder / MANIFEST
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        if not path.exists() and not _was_finished(folder):
            raise
        if _is_of_another_version(path):
            raise
        kind: Literal["missing", "changed"] = "changed" if path.exists() else "missing"
        detail = str(error) if kind == "changed" else "expected a manifest beside run.json, found none"
        report.damages.append(Damage(MANIFEST, kind, f"{detail}; nothing else can be checked without it"))
        return None
    report.files, report.bytes = 1, path.stat().st_size
    return manifest


def _was_finished(folder: Path) -> bool:
    """Whether a dataset without a manifest has had one: run.json is there, and no work is left to go on with."""
    return (folder / RUN).exists() and not (folder / WORK / "description.json").exists()


def _is_of_another_version(path: Path) -> bool:
    """Whether a manifest is whole, though it cannot be read here."""
    try:
        return "format_version" in unseal(path.read_bytes())
    except (ValueError, OSError):
        return False


def _check_files(
    folder: Path, manifest: Mapping[str, Any], shards: Mapping[str, Sequence[ShardEntry]], report: Report
) -> None:
    """All files but the shards by their checksums; and which files there are."""
    due = {MANIFEST, RUN, *manifest["files"], *(f"{split}/{e.file}" for split, own in shards.items() for e in own)}
    present = set(_files(folder))
    report.damages += [Damage(name, "missing", "expected a file, found none") for name in sorted(due - present)]
    report.damages += [
        Damage(name, "stray", "expected no such file in a dataset; the manifest does not name it")
        for name in sorted(present - due)
    ]
    for name, expected in manifest["files"].items():
        if name in present:
            report.files, report.bytes = report.files + 1, report.bytes + (folder / name).stat().st_size
            if digest_file(folder / name) != expected:
                report.damages.append(Damage(name, "changed", f"expected SHA-256 {expected}, found another"))
    if RUN in present:
        report.files, report.bytes = report.files + 1, report.bytes + (folder / RUN).stat().st_size
        record = read_record(folder)
        if record is None or record["description"] != {key: manifest[key] for key in DESCRIBED}:
            report.damages.append(Damage(RUN, "changed", "expected the file as it was written, found another"))


def _files(folder: Path) -> Iterator[str]:
    """Every file of a dataset's folder, relative to it."""
    for top in folder.iterdir():
        if top.name in _UNCHECKED:
            continue
        paths = [top] if top.is_symlink() or not top.is_dir() else [p for p in top.rglob("*") if not p.is_dir()]
        yield from (path.relative_to(folder).as_posix() for path in paths if not path.is_symlink() or path.is_file())


def _check_totals(manifest: Mapping[str, Any], shards: Mapping[str, Sequence[ShardEntry]], report: Report) -> None:
    for split, entries in shards.items():
        if manifest["splits"][split] != split_entry(entries):
            detail = f"{split}: expected the totals of its shards, found others"
            report.damages.append(Damage(MANIFEST, "wrong", detail))
    rows = manifest["rows"]
    if rows["in"] != rows["kept"] + sum(rows["rejected"].values()):
        report.damages.append(Damage(MANIFEST, "wrong", "expected rows in = kept + rejected, found other numbers"))


def _plan(folder: Path, report: Report) -> StoredPlan | None:
    """The plan, unless it is damaged."""
    if any(damage.file in (PLAN, MANIFEST) for damage in report.damages):
        return None
    return read_plan(folder / PLAN)


def _check_shards(
    folder: Path,
    manifest: Mapping[str, Any],
    shards: Mapping[str, Sequence[ShardEntry]],
    plan: StoredPlan | None,
    workers: int,
    progress: Progress,
    report: Report,
) -> None:
    missing = {damage.file for damage in report.damages}
    items = [
        WorkItem(
            name=f"{split}/{entry.file}",
            function=check_shard,
            arguments={
                "folder": str(folder),
                "split": split,
                "number": number,
                "entry": asdict(entry),
                "columns": manifest["columns"],
                "max_length": manifest["recipe"]["max_length"],
                "planned": plan is not None,
            },
        )
        for split, entries in shards.items()
        for number, entry in enumerate(entries)
        if f"{split}/{entry.file}" not in missing
    ]
    size = sum(entry.bytes for entries in shards.values() for entry in entries)
    report.files, report.bytes = report.files + len(items), report.bytes + size
    progress.phase("verifying", len(items), "shard")
    found = run_items(
        items, workers=workers if size > WORTH_WORKERS else 1, on_done=lambda item, faults: progress.advance()
    )
    report.damages += [Damage(name, *fault) for name, faults in found.items() for fault in faults]


def check_shard(
    folder: str,
    split: str,
    number: int,
    entry: dict[str, Any],
    columns: Sequence[str],
    max_length: int,
    planned: bool,
) -> list[tuple[Literal["changed", "wrong"], str]]:
    """What is wrong with one shard: kind and detail of every damage."""
    shard = ShardEntry(**entry)
    path = Path(folder) / split / shard.file
    size = path.stat().st_size
    if size != shard.bytes:
        return [("changed", f"expected {shard.bytes:,} bytes, found {size:,}")]
    if digest_file(path) != shard.sha256:
        return [("changed", f"expected SHA-256 {shard.sha256}, found another")]
    try:
        (batch,) = pa.ipc.open_stream(pa.memory_map(str(path)))
        batch.validate(full=True)
    except (ValueError, OSError) as error:  # pyarrow's errors are among them
        return [("wrong", f"expected an Arrow stream of one record batch, found {error}")]
    if batch.schema.names != list(columns):
        return [("wrong", f"expected the columns {', '.join(columns)}, found {', '.join(batch.schema.names)}")]
    rows = read_plan(Path(folder) / PLAN).shard(split, number) if planned else None
    return [("wrong", fault) for fault in find_faults(batch, shard, max_length, rows)]


def _check_rows(folder: Path, manifest: Mapping[str, Any], plan: StoredPlan, report: Report) -> None:
    """Every source row is kept or rejected, none both; no example twice; no row in two splits."""
    if any(damage.file == REJECTED for damage in report.damages):
        return
    kept: list[Int64Array] = []
    for split in plan.shards:
        rows = list(plan.rows(split))
        if _repeats(rows):
            report.damages.append(Damage(PLAN, "wrong", f"{split}: expected every example once, found one twice"))
        kept.append(np.unique(np.concatenate([part.source_row for part in rows])))
    together = np.concatenate(kept)
    if len(np.unique(together)) < len(together):
        report.damages.append(Damage(PLAN, "wrong", "expected no source row in two splits, found one"))
    every = np.sort(np.concatenate([np.unique(together), list(rejected_rows(folder / REJECTED, manifest))]))
    if not np.array_equal(every, np.arange(manifest["rows"]["in"])):
        detail = f"expected each of {manifest['rows']['in']:,} source rows kept or rejected once, found otherwise"
        report.damages.append(Damage(PLAN, "wrong", detail))


def _repeats(rows: Sequence[PlanRows]) -> bool:
    keys = np.concatenate([(part.partition.astype(np.int64) << 32) | part.index for part in rows])
    return len(np.unique(keys)) < len(keys)
