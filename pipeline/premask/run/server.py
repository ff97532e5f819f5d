"""A server that forks workers: `python -P -m premask.run.server FD DRIVER`.

What all workers need is imported and loaded here, once: a worker is forked in milliseconds with all of it in place, in
memory that they share. FD is the server's end of a socket pair, on which it is told, in order:

    ("open", item)            perform an item whose traces in memory the workers to come shall have
    ("opened",)               send what came of it
    ("hire", number), a file  start a worker that serves on that descriptor
    ("end", number)           ask a worker to end, by SIGTERM
    ("bury", number, s)       wait for a worker to be gone, kill it after s seconds; send its exit code

A fork copies the thread that calls it alone, and other threads' locks as they are at that moment: the server forks only
while it has no other thread, and starts fresh interpreters else, as where a system's libraries bear no forks at all.
"""

import functools
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from types import FrameType
from typing import TypeAlias

from premask.run.items import WorkItem
from premask.run.worker import bound_memory, ending, work

Code: TypeAlias = int | str
"""Of a worker that is gone: negative for a signal; a text for one that could not be started."""

_TASKS = Path("/proc/self/task")


class _Server:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.workers: dict[int, Code] = {}
        """Process ids by number."""
        self.opened = b""
        self.tasks: dict[str, Callable[..., None]] = {
            "open": self.open,
            "opened": self.tell,
            "hire": self.hire,
            "end": self.end,
            "bury": self.bury,
        }

    def open(self, item: WorkItem) -> None:
        gc.disable()  # what is loaded stays: looking for garbage in it takes a tenth of the time
        self.opened = ending(item)
        gc.freeze()  # else every collection in a worker would copy the pages of all objects
        gc.enable()

    def tell(self) -> None:
        self.connection.send_bytes(self.opened)

    def hire(self, number: int) -> None:
        descriptor = recv_handle(self.connection)
        try:
            self.workers[number] = self._start(descriptor)
        except OSError as error:
            self.workers[number] = f"could not be started: {error}"
        os.close(descriptor)

    def end(self, number: int) -> None:
        worker = self.workers[number]
        if isinstance(worker, int):
            os.kill(worker, signal.SIGTERM)  # nobody else has its number before it is buried

    def bury(self, number: int, patience: float) -> None:
        worker = self.workers.pop(number)
        self.connection.send(_code_of(worker, patience) if isinstance(worker, int) else worker)

    @functools.cached_property
    def may_fork(self) -> bool:
        """Whether there is no other thread, nor will be: nothing is done here but to start workers."""
        for _ in range(50 if sys.platform == "linux" else 0):
            if len(list(_TASKS.iterdir())) == 1:
                return True
            time.sleep(0.002)  # a thread that has ended is there for a moment longer
        return False

    def _start(self, descriptor: int) -> int:
        own = os.getpid()
        if not self.may_fork:
            os.set_inheritable(descriptor, True)
            command = [sys.executable, "-P", "-m", "premask.run.worker", str(descriptor), str(own)]
            return os.posix_spawn(sys.executable, command, os.environ)
        child = os.fork()
        if not child:
            code = 1
            try:
                self.connection.close()
                code = work(descriptor, own)
            except BaseException:  # whatever it is, a child never goes on as a server
                traceback.print_exc()
            finally:
                os._exit(code)
        return child


def _code_of(process: int, patience: float) -> int:
    """The exit code of a child, which is killed where it has not ended in time."""
    deadline, pause = time.monotonic() + patience, 0.001
    found, status = os.waitpid(process, os.WNOHANG)
    while not found and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
        found, status = os.waitpid(process, os.WNOHANG)
    if not found:
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    """Serve the driver named on the command line, until it hangs up or is gone."""
    descriptor, driver = map(int, sys.argv[1:])

    def watch(signum: int, frame: FrameType | None) -> None:
        if os.getppid() != driver:
            os._exit(1)

    os.set_inheritable(descriptor, False)
    bound_memory()
    signal.signal(signal.SIGALRM, watch)
    signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
    server = _Server(Connection(descriptor))
    with suppress(EOFError, ConnectionError):
        while True:
            task, *arguments = server.connection.recv()
            server.tasks[task](*arguments)
    os._exit(0)  # nothing is left to do, and freeing all objects one by one takes its time


if __name__ == "__main__":
    main()
