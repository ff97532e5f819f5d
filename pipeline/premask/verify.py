"""Is a prepared dataset whole? Files against the manifest, invariants in every shard, and, if asked, the sources again.

    manifest   carries its own checksum
    files      all there, nothing else there, every checksum as in the manifest
    shards     schema, lengths, positions, labels, counts, the plan's examples (`store/check.py`)
    books      every source row kept or rejected, none both; examples, splits, totals (`audit.py`)
    sources    with `against`: rows are masked again, and ids and labels compared (`rederive.py`)

One pass over the bytes for the checksums and one for the invariants, shard by shard on all cores.
"""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from premask.audit import find_contradictions, find_lost_rows
from premask.errors import DataError, UsageError
from premask.origin import read_record
from premask.read import digest_file
from premask.record import DESCRIBED, RUN
from premask.rederive import rederive
from premask.rejected import REJECTED, rejected_rows
from premask.run.items import WorkItem
from premask.run.local import run_items, usable_cores
from premask.show.progress import Progress, SilentProgress
from premask.store.check import find_faults
from premask.store.claim import WORK
from premask.store.lock import LOCK
from premask.store.manifest import MANIFEST, read_manifest, split_shards
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
    faults = list(find_contradictions(manifest, shards))
    plan = _plan(folder, report)
    if plan is not None and not any(damage.file == REJECTED for damage in report.damages):
        faults += find_lost_rows(manifest, plan, rejected_rows(folder / REJECTED, manifest, plan))
    report.damages += [Damage(file, "wrong", detail) for file, detail in faults]
    _check_shards(folder, manifest, shards, plan, workers or usable_cores(), progress, report)
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
    there = set(_entries(folder))
    present = {name for name in there if (folder / name).is_file()}
    report.damages += [Damage(name, "missing", "expected a file, found none") for name in sorted(due - present)]
    report.damages += [
        Damage(name, "stray", "expected no such file in a dataset; the manifest does not name it")
        for name in sorted(there - due)
    ]
    for name, expected in manifest["files"].items():
        if name in present:
            report.files, report.bytes = report.files + 1, report.bytes + (folder / name).stat().st_size
            if difference := _difference(folder / name, expected):
                report.damages.append(Damage(name, "changed", difference))
    if RUN in present:
        report.files, report.bytes = report.files + 1, report.bytes + (folder / RUN).stat().st_size
        record = read_record(folder)
        if record is None or record["description"] != {key: manifest[key] for key in DESCRIBED}:
            report.damages.append(Damage(RUN, "changed", "expected the file as it was written, found another"))


def _difference(path: Path, sha256: str) -> str | None:
    """How a file differs from the one that was written; None where it does not."""
    try:
        return None if digest_file(path) == sha256 else f"expected SHA-256 {sha256}, found another"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return "expected a file that can be read, found that the disk fails"


def _entries(folder: Path) -> Iterator[str]:
    """Every entry of a dataset's folder that is no folder itself, relative to it; no link that leads nowhere."""
    for top in folder.iterdir():
        if top.name in _UNCHECKED:
            continue
        paths = [top] if top.is_symlink() or not top.is_dir() else [p for p in top.rglob("*") if not p.is_dir()]
        yield from (path.relative_to(folder).as_posix() for path in paths if not path.is_symlink() or path.is_file())


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
    size = sum(item.arguments["entry"]["bytes"] for item in items)
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
    if difference := _difference(path, shard.sha256):
        return [("changed", difference)]
    try:
        (batch,) = pa.ipc.open_stream(pa.memory_map(str(path)))
        batch.validate(full=True)
    except (ValueError, OSError) as error:  # pyarrow's errors are among them
        return [("wrong", f"expected an Arrow stream of one record batch, found {error}")]
    if batch.schema.names != list(columns):
        return [("wrong", f"expected the columns {', '.join(columns)}, found {', '.join(batch.schema.names)}")]
    rows = read_plan(Path(folder) / PLAN).shard(split, number) if planned else None
    return [("wrong", fault) for fault in find_faults(batch, shard, max_length, rows)]
