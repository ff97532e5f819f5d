"""What a run leaves to read: metrics.jsonl, samples.jsonl, and TensorBoard's event files where they are asked for."""

import json
import os
from pathlib import Path
from typing import Any

from premask.errors import UsageError

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"


class Records:
    """Appends records; a resumed run goes on behind those that its checkpoint knew, so that no step is there twice."""

    def __init__(self, folder: Path, sizes: dict[str, int], *, tensorboard: bool) -> None:
        """Open the files in `folder`, cut to `sizes` bytes each. UsageError where TensorBoard is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        self._board = _board(folder) if tensorboard else None
        self._files = {name: (folder / name).open("ab") for name in (METRICS, SAMPLES)}
        for name, file in self._files.items():
            file.truncate(sizes.get(name, 0))

    def metrics(self, record: dict[str, Any]) -> None:
        """One record of numbers, with its `step`."""
        self._write(METRICS, record)
        if self._board is not None:
            for name, value in _flat(record):
                self._board.add_scalar(name, value, record["step"])

    def sample(self, record: dict[str, Any]) -> None:
        """One answer of the model, with its `step`."""
        self._write(SAMPLES, record)
        if self._board is not None:
            self._board.add_text(f"source row {record['source_row']}", record["answer"], record["step"])

    def sizes(self) -> dict[str, int]:
        """Bytes of every file, all of them on the disk."""
        for file in self._files.values():
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def close(self) -> None:
        """Nothing more to come."""
        for file in self._files.values():
            file.close()
        if self._board is not None:
            self._board.close()

    def _write(self, name: str, record: dict[str, Any]) -> None:
        self._files[name].write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._files[name].flush()


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("tensorboard=true: needs tensorboard; `pip install tensorboard`, or leave it out") from None
    return SummaryWriter(str(folder / "tensorboard"))


def _flat(record: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The numbers of a record, nested ones under their path."""
    found: list[tuple[str, float]] = []
    for name, value in record.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            found.append((prefix + name, value))
    return found
