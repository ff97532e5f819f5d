"""Receipts: the proof that a work item is done, so that a run which was killed goes on where it stopped.

A receipt names the item (a digest of its description), its outputs with size and SHA-256, and its small result. It is
written after the outputs, and trusted only while it and they are all there, unchanged. It is not flushed to the disk: a
lost or torn one costs a re-run.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from premask.store.atomic import Written
from premask.store.sealed import unseal, write_sealed


def receipt_path(folder: Path, item: str) -> Path:
    """Where the receipt of `item` (a digest, or another name fit for a file) lies in the work folder."""
    return folder / "receipts" / f"{item}.json"


def write_receipt(folder: Path, item: str, outputs: Sequence[Written], result: dict[str, Any]) -> None:
    """Say that `item` is done. The outputs' paths are kept relative to `folder`; `result` is a small JSON object."""
    entries = [
        {"path": Path(os.path.relpath(output.path, folder)).as_posix(), "size": output.size, "sha256": output.sha256}
        for output in outputs
    ]
    write_sealed(receipt_path(folder, item), {"item": item, "outputs": entries, "result": result}, durable=False)


def finished(folder: Path, item: str) -> dict[str, Any] | None:
    """The result of `item`, or None where it must be run (again): no whole receipt, or an output changed or missing."""
    try:
        receipt = unseal(receipt_path(folder, item).read_bytes())
        outputs = [Written(folder / entry["path"], entry["size"], entry["sha256"]) for entry in receipt["outputs"]]
        result = dict(receipt["result"])
        return result if receipt["item"] == item and all(map(unchanged, outputs)) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def unchanged(output: Written) -> bool:
    """Whether the file is there with the size and SHA-256 that were written."""
    try:
        if output.path.stat().st_size != output.size:
            return False
        with output.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == output.sha256
    except OSError:
        return False
