"""Datasets of the Hugging Face Hub, by name: `datasets` fetches them or finds them in its cache; we read its files."""

import importlib
import re
from pathlib import Path
from typing import Any

from premask.errors import UsageError

_NAME = re.compile(r"(?:hf://)?(?P<name>[\w.-]+/[\w.-]+?)(?::(?P<split>\w+(?:\.\w+)*))?")
_FILE = re.compile(r"\.(jsonl?|ndjson|csv|tsv|txt|parquet|arrow|feather|ipc|gz|zst)$", re.IGNORECASE)

_NO_SCRIPTS = (2, 16)
"""The first version of `datasets` that can be told not to run a dataset's own code; from 4.0 on it never does."""


def is_hub_name(argument: str) -> bool:
    """Whether an argument can be a dataset's name: `[hf://]ORG/NAME[:split]`, and not the path of a data file."""
    match = _NAME.fullmatch(argument)
    if not match or _FILE.search(match["name"]):
        return False
    org = match["name"].split("/")[0]
    return argument.startswith("hf://") or (org.strip(".") != "" and not Path(org).is_dir())


def hub_files(argument: str) -> list[Path]:
    """List the Arrow files of one split of a dataset, in order; downloads it where the cache does not have it.

    Raises:
        UsageError: `datasets` is not installed, there is no such dataset or split, or several splits to choose from.

    """
    match = _NAME.fullmatch(argument)
    if match is None:
        raise ValueError(f"bug in premask: {argument} is no dataset's name")
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        remedy = "check the path; for a dataset of the Hub, pip install 'datasets>=2.16'"
        raise UsageError(f"{argument}: expected a file or a dataset of the Hub, found no such file; {remedy}") from None
    if tuple(map(int, datasets.__version__.split(".")[:2])) < _NO_SCRIPTS:
        found = f"{datasets.__version__}, which runs code that comes with a dataset"
        raise UsageError(f"{argument}: expected datasets 2.16 or newer, found {found}; upgrade it")
    try:
        loaded = datasets.load_dataset(match["name"], split=match["split"], trust_remote_code=False)
    except Exception as error:  # whatever the network, the Hub and a dataset's own files may raise
        found = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = (
            "check the path or the name; what load_dataset needs more than a name for, save_to_disk and name the folder"
        )
        raise UsageError(
            f"{argument}: expected a file or a dataset of the Hub, found neither: {found}; {remedy}"
        ) from None
    return [Path(file["filename"]) for file in _one_split(argument, loaded).cache_files]


def _one_split(argument: str, loaded: Any) -> Any:
    """The dataset itself, out of a `DatasetDict` of one split."""
    if isinstance(loaded, dict):
        if len(loaded) > 1:
            shown = " and ".join(loaded)
            remedy = f"name one, such as {argument}:{next(iter(loaded))}"
            raise UsageError(f"{argument}: expected one split, found {shown}; {remedy}")
        loaded = next(iter(loaded.values()))
    if not loaded.cache_files:
        raise UsageError(
            f"{argument}: expected Arrow files in the cache of `datasets`, found none; save_to_disk it first"
        )
    return loaded
