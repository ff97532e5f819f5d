"""Whose output folder is it? An empty one, an unfinished run of ours, a finished dataset, or something else.

A run leaves what it depends on in the work folder before it does anything, so the next one knows whether it may go on.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from premask.errors import UsageError
from premask.store.atomic import write_json
from premask.store.lock import LOCK
from premask.store.manifest import MANIFEST, read_manifest

WORK = ".premask"
"""The work folder, inside the output folder."""

_OWN_FILES = (MANIFEST, "dataset_dict.json", "plan.arrow", "run.json", "rejected.jsonl", "report.html")
_OWN_FOLDERS = (WORK, "train", "validation")


def is_finished(folder: Path, description: Mapping[str, Any], fresh: bool) -> bool:
    """Whether `folder` holds the finished dataset of this description.

    UsageError where it holds another one, and `fresh` does not ask to replace it.
    """
    if fresh or not (folder / MANIFEST).exists():
        return False
    _refuse_changes(folder, read_manifest(folder), description, "holds a dataset that was prepared differently")
    return True


def claim(folder: Path, description: Mapping[str, Any], fresh: bool) -> str:
    """Make `folder` this run's: empty it with `fresh`, or check that the unfinished run in it is the same.

    Returns the run's identity, a SHA-256 of the description. UsageError where the folder holds something else.
    """
    strangers = [p.name for p in folder.iterdir() if p.name not in (*_OWN_FILES, *_OWN_FOLDERS, LOCK)]
    begun = folder / WORK / "description.json"
    owned = begun.exists() or (folder / MANIFEST).exists()
    known = [name for name in (*_OWN_FILES, *_OWN_FOLDERS) if (folder / name).exists() and name != WORK]
    if strangers or (known and not owned):
        raise UsageError(
            f"{folder}: expected an empty folder or a dataset of ours, found {', '.join(sorted([*strangers, *known])[:5])}; "
            "choose another --out"
        )
    if fresh:
        _clear(folder)
    elif begun.exists():
        _refuse_changes(folder, json.loads(begun.read_bytes()), description, "holds an unfinished run that differs")
    write_json(begun, description)
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _clear(folder: Path) -> None:
    """Remove what is ours; the manifest first, so that nothing half-removed looks whole."""
    for name in _OWN_FILES:
        (folder / name).unlink(missing_ok=True)
    for name in _OWN_FOLDERS:
        if (folder / name).exists():
            shutil.rmtree(folder / name)


def _refuse_changes(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
    plain_now = json.loads(json.dumps(now))
    changes = list(_changes({key: before.get(key) for key in now}, plain_now))
    if changes:
        shown = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
        raise UsageError(f"{folder}: {what}: {shown}. Choose another --out, or replace it with --fresh")


def _changes(before: Any, now: Any, where: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _changes(before.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for n, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _changes(old, new, f"{where}[{n}]")
    elif before != now:
        yield f"{where} was {json.dumps(before)[:60]}, is {json.dumps(now)[:60]}"
