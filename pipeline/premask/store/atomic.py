"""Atomic files: whoever looks sees the whole file or none, whatever is killed.

Written under a temporary name in the same folder, flushed to the disk, then renamed. Every file is hashed as it is
written (SHA-256, about 1.8 GB/s), so that manifest and receipts need not read it again.
"""

import errno
import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from premask.errors import MachineError

TEMPORARY_SUFFIX = ".partial"

PIECE = 2**19
"""Bytes that are written at a time, then hashed while a core's cache holds them. For 8 MB at once Linux may take ten
times as long, looking for that much memory in one piece."""


@dataclass(frozen=True, slots=True)
class Written:
    """A file as it was written."""

    path: Path

    size: int
    """Bytes."""

    sha256: str
    """Hex digest of its bytes."""


class HashedFile(io.RawIOBase):
    """A binary file that is only written, and hashed on the way; `file` is unbuffered and stays the caller's.

    `path` is the name that errors give it.
    """

    def __init__(self, file: io.FileIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._sha256 = hashlib.sha256()
        self._size = 0

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, data: Any) -> int:
        """Write all of `data` (any buffer of bytes); its size. MachineError where the disk is full or fails."""
        view = memoryview(data).cast("B")
        for first in range(0, len(view), PIECE):
            piece = view[first : first + PIECE]
            with _disk_errors(self._path):
                _write_all(self._file, piece)
            self._sha256.update(piece)
        self._size += len(view)
        return len(view)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._size

    def written(self, path: Path) -> Written:
        """What was written so far, under the name `path` that the file has or gets."""
        return Written(path, self._size, self._sha256.hexdigest())


def _write_all(file: io.FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Say of an error that it was met in writing `path`: one met by whoever makes the content is not the disk's."""
    try:
        yield
    except OSError as error:
        if error.errno in _MACHINE_ERRORS:
            raise MachineError(
                f"{path}: could not be written: {error.strerror}; {_MACHINE_ERRORS[error.errno]}"
            ) from error
        raise


@contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[HashedFile]:
    """Yield a binary file that becomes `path` when the block ends, and leaves nothing when it raises.

    Missing folders are made. `durable=False` skips the flushing to the disk, for files whose loss a checksum would
    reveal and a re-run mend. MachineError where the disk is full or fails.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    try:
        with _disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = temporary.open("xb", buffering=0)
        with raw:
            yield HashedFile(raw, path)
            with _disk_errors(path):
                if durable:
                    os.fsync(raw.fileno())
        with _disk_errors(path):
            temporary.replace(path)
            if durable:
                sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def flushing() -> Iterator[Callable[[Path], None]]:
    """Yield a function that begins to flush a file to the disk, which takes no processor; the block ends when all are.

    For files that were written with `durable=False`, many of them, while the next are made. MachineError where the disk
    fails.
    """
    with ThreadPoolExecutor(1) as pool:
        begun: dict[Path, Future[None]] = {}

        def begin(path: Path) -> None:
            if path not in begun:
                begun[path] = pool.submit(_flush, path)

        yield begin
        for each in begun.values():
            each.result()
        for folder in sorted({path.parent for path in begun}):
            sync_folder(folder)


def _flush(path: Path) -> None:
    with path.open("rb") as file, _disk_errors(path):
        os.fsync(file.fileno())


def write_json(path: Path, value: Any, *, sort_keys: bool = True, durable: bool = True) -> Written:
    """Write `value` as JSON atomically: sorted keys, two spaces, a newline at the end; equal values, equal bytes."""
    text = json.dumps(value, sort_keys=sort_keys, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path, durable=durable) as file:
        file.write(text.encode())
    return file.written(path)


def is_temporary(path: Path) -> bool:
    """Whether a file's name is one that `atomic_write` gives before the file is whole."""
    return path.name.startswith(".") and path.name.endswith(TEMPORARY_SUFFIX)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in `folder` and below. Only for whoever holds the folder's lock."""
    for path in folder.rglob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_MACHINE_ERRORS = {
    errno.ENOSPC: "free some space, or choose another --out",
    errno.EFBIG: "files of this size are not allowed there: raise the limit (ulimit -f), or choose another --out",
    errno.EDQUOT: "the disk quota is used up: free some space, or choose another --out",
    errno.EIO: "the disk failed: choose another --out",
}
