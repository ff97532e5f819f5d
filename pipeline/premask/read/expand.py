"""What a SOURCE argument stands for: one file, or the files of a glob, a folder, a `datasets` folder, a Hub dataset.

    chat.jsonl            that file                        data/                 the data files below it, sorted
    data/*.jsonl          the matches, sorted              saved/                what `save_to_disk` wrote, in its order
    s3://bucket/x.jsonl   any URL that fsspec knows        ORG/NAME[:split]      a dataset of the Hugging Face Hub

Of a folder, hidden files, files without a data suffix, the caches of `datasets` and whole datasets that premask wrote
itself are left out. The order depends on the names alone.
"""

import glob
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import orjson

from premask.errors import DataError, UsageError
from premask.read.hub import hub_files, is_hub_name
from premask.read.places import Place, files_below, filesystem, is_url, join, place_of, read_text

TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
PACKED_SUFFIXES = (".gz", ".zst")
DATA_SUFFIXES = (
    *TEXT_SUFFIXES,
    *(text + packed for text in TEXT_SUFFIXES for packed in PACKED_SUFFIXES),
    *(".parquet", ".arrow", ".feather", ".ipc"),
)
"""Of a folder, the files with these suffixes are read."""

_SAVED, _SPLITS = "state.json", "dataset_dict.json"  # of `datasets`
_DESCRIPTIONS = {_SAVED, _SPLITS, "dataset_info.json", "dataset_infos.json"}
_WORK, _PLAN, _MANIFEST = ".premask", "plan.arrow", "manifest.json"  # of premask.store, a room below


class Found(NamedTuple):
    """One file that an argument stands for."""

    name: str
    """What people and the manifest call it."""

    place: Place


def expand(argument: str) -> list[Found]:
    """List the files that an argument stands for, in an order that depends on their names alone.

    Raises:
        UsageError: a pattern or folder without data files, a folder of several splits, a dataset that premask wrote,
            a Hub dataset that cannot be had, an unknown file system.

    """
    place = place_of(argument)
    if is_url(place) and not is_hub_name(argument):
        return _expand_url(argument)
    if isinstance(place, Path) and place.is_dir():
        return _in_folder(argument, place)
    if isinstance(place, Path) and place.exists():
        return [Found(argument, place)]
    if is_hub_name(argument):
        return [Found(f"{argument}/{path.name}", path) for path in hub_files(argument)]
    if glob.has_magic(str(place)):
        matches = sorted(glob.glob(str(place), recursive=True))  # noqa: PTH207 - Path.glob knows no absolute ones
        return _matched(argument, [found for match in matches for found in expand(match)])
    return [Found(argument, place)]


def _expand_url(url: str) -> list[Found]:
    fs, path = filesystem(url)
    if glob.has_magic(path):
        matches = [fs.unstrip_protocol(match) for match in sorted(fs.glob(path))]
        return _matched(url, [found for match in matches for found in _expand_url(match)])
    return _in_folder(url, url) if fs.isdir(path) else [Found(url, url)]


def _matched(pattern: str, found: list[Found]) -> list[Found]:
    if not found:
        raise UsageError(f"{pattern}: expected files that match, found none; check the pattern and the folder")
    return found


def _in_folder(name: str, folder: Place) -> list[Found]:
    everything = files_below(folder)
    if _is_ours(set(everything), ""):
        found = "a dataset that premask prepared (or an unfinished run)"
        raise UsageError(f"{name}: expected sources, found {found}; name the files it was made from")
    name, names = name.rstrip("/"), visible(everything)
    saved = [_parent(n) for n in names if n.rpartition("/")[2] == _SAVED]
    _require_one_split(name, names, saved)
    listed = {parent: _saved_files(f"{name}/{parent}".rstrip("/"), join(folder, parent + _SAVED)) for parent in saved}
    if gone := sorted({parent + file for parent, files in listed.items() for file in files}.difference(names)):
        remedy = "put it back, or save the dataset again"
        raise DataError(f"{name}: expected the files that a state.json lists, found no {gone[0]}; {remedy}")
    chosen = [n for n in names if _is_data(n)]
    chosen = [n for n in chosen if (parent := _parent(n)) not in listed or n[len(parent) :] in listed[parent]]
    if not chosen:
        remedy = "name the files, or a pattern such as FOLDER/*.txt"
        raise UsageError(f"{name}: expected files named *{', *'.join(DATA_SUFFIXES)} in it, found none; {remedy}")
    return [Found(f"{name}/{n}", join(folder, n)) for n in chosen]


def visible(names: Iterable[str]) -> list[str]:
    """Leave out what is hidden and what premask wrote, of all files below a folder; sorted."""
    known = set(names)
    marks = [n[: -len(_PLAN)] for n in known if n.rpartition("/")[2] == _PLAN]
    marks += [n[: n.index(f"{_WORK}/")] for n in known if f"/{_WORK}/" in n]
    ours = tuple(folder for folder in set(marks) if _is_ours(known, folder))
    return sorted(n for n in known if not n.startswith(ours) and not any(part[:1] == "." for part in n.split("/")))


def _is_data(name: str) -> bool:
    return name.lower().endswith(DATA_SUFFIXES) and name.rpartition("/")[2] not in _DESCRIPTIONS


def _parent(name: str) -> str:
    return name[: name.rfind("/") + 1]


def _is_ours(names: set[str], folder: str) -> bool:
    """Whether a folder ("" or ending in a slash) is one that premask prepared, or prepares at this moment."""
    finished = {folder + _PLAN, folder + _MANIFEST} <= names
    return finished or any(n.startswith(f"{folder}{_WORK}/") for n in names)


def _saved_files(name: str, state: Place) -> set[str]:
    """The Arrow files of a `datasets` folder; what else is there are its caches."""
    try:
        described = orjson.loads(read_text(state))
        files = {str(entry["filename"]) for entry in described["_data_files"]}
    except (orjson.JSONDecodeError, KeyError, TypeError):
        remedy = "save the dataset again, or name its Arrow files"
        raise DataError(
            f"{name}: expected a state.json that lists the data files, found none in it; {remedy}"
        ) from None
    if described.get("_indices_data_files") or described.get("_indices_files"):
        found = "one with a table of indices, which leaves rows out"
        remedy = "call flatten_indices() and save it again"
        raise UsageError(f"{name}: expected a `datasets` folder that holds just its rows, found {found}; {remedy}")
    return files


def _require_one_split(name: str, names: list[str], saved: list[str]) -> None:
    """UsageError where a folder, or one below it, is a `DatasetDict` of several splits."""
    for parent in (_parent(n) for n in names if n.rpartition("/")[2] == _SPLITS):
        splits = [s[len(parent) : -1] for s in saved if s.startswith(parent) and s.count("/") == parent.count("/") + 1]
        if len(splits) > 1:
            here = f"{name}/{parent}".rstrip("/")
            remedy = f"name the one to train on, such as {here}/{splits[0]}"
            raise UsageError(f"{here}: expected one split, found {' and '.join(splits)}; {remedy}")
