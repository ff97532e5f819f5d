"""Whose output folder is it? An empty one, an unfinished run of ours, a finished dataset, or something else.

A run leaves what it depends on in the work folder before it does anything, so the next one knows whether it may go on.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from premask.errors import DataError, UsageError
from premask.store.atomic import is_temporary
from premask.store.lock import LOCK
from premask.store.manifest import MANIFEST, read_manifest, split_shards
from premask.store.sealed import unseal, write_sealed

WORK = ".premask"
"""The work folder, inside the output folder."""

DESCRIPTION = "description.json"
"""In the work folder: what the run depends on."""

_CLEARING = "clearing.json"
"""In the work folder: `--fresh` has begun to empty the output folder, and whoever comes next goes on with that."""

_OWN_FILES = (MANIFEST, "dataset_dict.json", "plan.arrow", "run.json", "rejected.jsonl", "report.html")
_OWN_FOLDERS = ("train", "validation")


def refuse_strangers(folder: Path) -> None:
    """UsageError unless `folder` is missing, empty, a dataset or an unfinished run. Changes nothing."""
    try:
        found = {path.name for path in folder.iterdir() if not is_temporary(path)} - {LOCK, WORK}
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise UsageError(f"{folder}: expected a folder, found a file in its way; choose another --out") from None
    owned = MANIFEST in found or (folder / WORK / DESCRIPTION).exists()
    if strangers := sorted(found - {*_OWN_FILES, *_OWN_FOLDERS} if owned else found):
        shown = ", ".join(strangers[:5]) + (f" and {len(strangers) - 5} more" if len(strangers) > 5 else "")
        raise UsageError(
            f"{folder}: expected an empty folder or a dataset of ours, found {shown}; choose another --out"
        )


def is_finished(folder: Path, description: Mapping[str, Any], fresh: bool) -> bool:
    """Whether `folder` holds the finished dataset of this description.

    UsageError where it holds another one, DataError where its shards are gone or cut short; `fresh` replaces both.
    """
    if fresh or not (folder / MANIFEST).exists():
        return False
    manifest = read_manifest(folder)
    _refuse_changes(folder, manifest, description, "holds a dataset that was prepared differently")
    for split, shards in split_shards(folder, manifest).items():
        for path, size in ((folder / split / shard.file, shard.bytes) for shard in shards):
            if not path.is_file() or path.stat().st_size != size:
                raise DataError(
                    f"{path}: expected a shard of {size:,} bytes, found none or another size: the dataset is damaged; "
                    "rebuild the shard with `premask repair`, or all of it with --fresh"
                )
    return True


def claim(folder: Path, description: Mapping[str, Any], fresh: bool) -> None:
    """Make `folder` this run's: empty it with `fresh`, or check that the unfinished run in it is the same.

    UsageError where the unfinished run is another one, or nobody can tell which one it is.
    """
    begun, clearing = folder / WORK / DESCRIPTION, folder / WORK / _CLEARING
    if fresh and not clearing.exists():
        write_sealed(begun, description)  # before anything is removed: whose folder it is must stay known
        write_sealed(clearing, {})
    if clearing.exists():
        _clear(folder)
    elif (before := _description(begun)) is not None:
        _refuse_changes(folder, before, description, "holds an unfinished run that differs")
    write_sealed(begun, description)


def _description(begun: Path) -> dict[str, Any] | None:
    """What the unfinished run depends on; None where there is none."""
    try:
        return unseal(begun.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UsageError(
            f"{begun}: expected what the unfinished run was begun with, found {error}: the file is damaged. "
            "Begin anew with --fresh, or choose another --out"
        ) from error


def _clear(folder: Path) -> None:
    """Remove what is ours: the manifest first, so that nothing half-removed looks whole; the work folder last."""
    for name in (*_OWN_FILES, *_OWN_FOLDERS, WORK):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _refuse_changes(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
    old, new = {key: before.get(key) for key in now}, json.loads(json.dumps(now))
    if old != new:
        changes = list(_changes(_by_name(old), _by_name(new))) or ["sources stand in another order"]
        shown = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
        raise UsageError(f"{folder}: {what}: {shown}. Choose another --out, or replace it with --fresh")


def _by_name(description: dict[str, Any]) -> dict[str, Any]:
    """A description whose sources are told apart by their names, not their places."""
    return {**description, "sources": {source["name"]: source["sha256"] for source in description["sources"]}}


def _changes(before: Any, now: Any, where: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _changes(before.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for n, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _changes(old, new, f"{where}[{n}]")
    elif before != now:
        yield f"{where} was {_shown(before)}, is {_shown(now)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
