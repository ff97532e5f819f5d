"""The lock on an output folder: one run at a time.

`flock` on a file in the folder. It dies with the processes that hold it, however they end, so no stale lock remains.
The workers of a run hold it too (they inherit the descriptor): a worker that outlives a killed driver by a moment may
still rename a file into place, and the next run begins only when none is left.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from premask.errors import UsageError

LOCK = ".premask.lock"

PATIENCE = 10.0
"""Seconds to wait for the workers of a dead run; they notice its end within a second or so."""


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the lock of `folder`; yields its descriptor, for workers to inherit.

    The folder is made if it is missing, and removed again if nothing was put there. UsageError where another run holds
    the lock.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    descriptor = _acquire(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield descriptor
    finally:
        path.unlink(missing_ok=True)  # while it is still held: whoever waits sees that the file is gone
        if made:
            with suppress(OSError):
                folder.rmdir()
        os.close(descriptor)


def _acquire(path: Path) -> int:
    deadline = time.monotonic() + PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 20).decode(errors="replace")
            os.close(descriptor)
            if _is_alive(holder) or time.monotonic() > deadline:
                raise UsageError(
                    f"{path.parent}: another premask run (process {holder or 'unknown'}) is writing here;"
                    " wait for it to end, or choose another --out"
                ) from error
            time.sleep(0.02)
            continue
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # its last holder removed it between our opening and locking it


def _is_alive(holder: str) -> bool:
    """Whether a process runs that has this number; False for one that has not written its number yet."""
    try:
        os.kill(int(holder), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
