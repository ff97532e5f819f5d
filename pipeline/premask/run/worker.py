"""A worker: receives an item, performs it, sends `("done", result)` or `("failed", error)`, until the driver hangs up.

It is forked by a server (`server.py`) or, where that cannot be, started as `python -P -m premask.run.worker FD PARENT`.
It outlives neither its driver nor its parent: an idle worker reads the end of the socket, and a busy one looks twice a
second whether its parent is there, which in turn looks for the driver.
"""

import os
import pickle
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from types import FrameType
from typing import NoReturn

from premask.errors import PremaskError
from premask.run.items import InternalError, WorkItem, explain

GRACE = 2.0
"""Seconds between being asked to end and being killed; enough to remove a temporary file."""


def serve(connection: Connection) -> None:
    """Perform items until the driver hangs up."""
    with suppress(EOFError, OSError):
        while True:
            item: WorkItem = connection.recv()
            connection.send_bytes(ending(item))


def ending(item: WorkItem) -> bytes:
    """What came of `item`, pickled: `("done", result)` or `("failed", PremaskError)`."""
    try:
        result = item.perform()
    except PremaskError as error:
        return _pickled_error(error)
    try:
        return pickle.dumps(("done", result), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return _pickled_error(explain(error, f"{item.name}: its result cannot be sent to the driver: "))


def _pickled_error(error: PremaskError) -> bytes:
    try:
        sent = pickle.dumps(("failed", error), pickle.HIGHEST_PROTOCOL)
        pickle.loads(sent)  # noqa: S301 - our own bytes: an exception can pickle and yet fail to come back
    except Exception:
        sent = pickle.dumps(("failed", InternalError(f"{type(error).__name__}: {error}")), pickle.HIGHEST_PROTOCOL)
    return sent


def _end(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)  # unwinds: what is half written is removed


def _leave_with(parent: int) -> NoReturn:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def bound_memory() -> None:
    """No single worker gets more memory than the machine has: it shall fail alone, and say so, before others suffer."""
    with suppress(OSError, ValueError):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = min(limit for limit in (memory, soft, hard) if limit != resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def work(descriptor: int, parent: int) -> int:
    """Serve on the worker's end of a socket pair, in a process of its own whose parent is given; its exit code."""
    try:
        os.set_inheritable(descriptor, False)
        signal.signal(signal.SIGTERM, _end)
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
        serve(Connection(descriptor))
    except SystemExit as error:
        return int(error.code or 0)
    finally:
        sys.stdout.flush()
    return 0


def main() -> None:
    """Serve on the descriptor, with the parent, that the command line names."""
    descriptor, parent = map(int, sys.argv[1:])
    bound_memory()
    os._exit(work(descriptor, parent))  # nothing is left to do, and freeing all objects one by one takes its time


if __name__ == "__main__":
    main()
