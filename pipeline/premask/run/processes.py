"""The driver's side of worker processes: how they are started, asked to go, and seen off.

    driver ──hire, bury──> server ──fork──> worker     one server, started anew where it is gone
    driver ──item──> worker ──result──> driver         a socket pair with each, one item in it at a time

A server (`server.py`) forks the workers, as a fork of the driver itself, which may hold Arrow's or rayon's threads, can
hang. It is started without `multiprocessing`, whose servers import the caller's script a second time, so that a script
without an `if __name__ == "__main__"` guard could not call `premask.prepare`.
"""

import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.reduction import send_handle
from typing import Any, Literal, TypeAlias

from premask.errors import MachineError
from premask.run.items import WorkItem
from premask.run.worker import GRACE

ENVIRONMENT = {
    # Processes are the parallelism here: threads in each of them as well only get in each other's way.
    "OPENBLAS_NUM_THREADS": "1",
    # Arrow starts a thread for an allocator that is not in use; with any thread no worker can be forked.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    # Texts are made and freed by the thousand: glibc keeps 7 pieces of a size ready, and searches for the rest.
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=4000",
}
"""Of workers, where nothing else is set."""

Ending: TypeAlias = Literal["done", "failed", "lost"]


class Server:
    """The process that forks workers. They keep the descriptors `inherited` open as long as they live.

    With an `opening` it first performs that item, whose traces in memory all workers have. MachineError where no
    process can be started. If it is killed its workers leave by themselves.
    """

    def __init__(self, inherited: Sequence[int], opening: WorkItem | None = None) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.opening = opening
        self._hired = 0
        try:
            self._process = _start(theirs.fileno(), inherited)
        except OSError as error:
            self.connection.close()
            raise MachineError(f"a worker process cannot be started: {error}; use fewer --workers") from error
        finally:
            theirs.close()
        if opening:
            self._tell("open", replace(opening, function=opening.reference))

    @property
    def alive(self) -> bool:
        """Whether it may be asked for workers."""
        return self._process.poll() is None

    def hire(self) -> "Worker":
        """A new worker. If it cannot be had, it is one that has died."""
        ours, theirs = multiprocessing.Pipe()
        number, self._hired = self._hired, self._hired + 1
        with theirs, suppress(OSError):
            self._tell("hire", number)
            send_handle(self.connection, theirs.fileno(), self._process.pid)
        return Worker(self, number, ours)

    def end(self, number: int) -> None:
        """Ask a worker to end by a signal."""
        self._tell("end", number)

    def bury(self, number: int, patience: float) -> int | str | None:
        """Wait for a worker to be gone, which is killed after `patience` seconds.

        Its exit code as `subprocess` gives it, or why it could not be started; None where nobody knows.
        """
        self._tell("bury", number, max(0.0, patience))
        code: int | str | None = self._answer(max(0.0, patience) + GRACE)
        return code

    def opened(self) -> Any:
        """The result of the opening; None where there is none, or no worker needed it."""
        if not self.opening or not self._hired:
            return None
        self._tell("opened")
        ending, value = self._answer(GRACE) or ("lost", None)
        return value if ending == "done" else None

    def close(self) -> None:
        """See it off, once its workers are buried: at once, even if it is still loading for nobody."""
        self.connection.close()
        self._process.terminate()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tell(self, *message: Any) -> None:
        with suppress(OSError):  # it is gone: whoever waits for an answer will see
            self.connection.send(message)

    def _answer(self, patience: float) -> Any:
        """What it says; None where it is gone, or goes because it says nothing in time."""
        with suppress(EOFError, OSError):
            if self.connection.poll(patience):
                return pickle.loads(self.connection.recv_bytes())  # noqa: S301 - our own process
        self._process.kill()
        self._process.wait()
        return None


class Worker:
    """One worker process, and the item that it holds."""

    def __init__(self, server: Server, number: int, connection: Any) -> None:
        self.connection = connection
        self.item: WorkItem | None = None
        self.deadline = 0.0
        self._server = server
        self._number = number

    def begin(self, item: WorkItem, seconds: float) -> None:
        """Give it an item, which may take so many seconds where it is bounded."""
        self.item, self.deadline = item, time.monotonic() + seconds if item.bounded else math.inf
        with suppress(ConnectionError):  # it has died: `end` reads so from the socket in a moment
            self.connection.send(replace(item, function=item.reference))

    def end(self) -> tuple[Ending, Any]:
        """How its item ended, with the result, the error, or the way in which the worker died."""
        self.item = None
        try:
            ending: tuple[Ending, Any] = self.connection.recv()
        except (EOFError, OSError):
            self.connection.close()
            return "lost", _death(self.bury(GRACE))
        return ending

    def dismiss(self) -> None:
        """Ask the process to go: an idle worker by hanging up, a busy one by a signal."""
        self.connection.close()
        if self.item:
            self._server.end(self._number)

    def bury(self, patience: float) -> int | str | None:
        """As `Server.bury`."""
        return self._server.bury(self._number, patience)


def _death(code: int | str | None) -> str:
    if code is None:
        return "gone with the process that starts workers"
    if isinstance(code, str):
        return code
    if code == -signal.SIGKILL:
        return "killed by SIGKILL, which is what Linux does when memory runs out"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def _start(descriptor: int, inherited: Sequence[int]) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-P", "-m", "premask.run.server", str(descriptor), str(os.getpid())],
        env={**ENVIRONMENT, **os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
        pass_fds=[descriptor, *inherited],
        stdin=subprocess.DEVNULL,
        stdout=2,  # the driver's standard output is for the summary alone
        process_group=0,  # Ctrl-C is the driver's business
    )
