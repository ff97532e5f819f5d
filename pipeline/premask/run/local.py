"""Runs work items in processes of this machine.

    driver ──item──> worker     one socket pair per worker, one item in it at a time
           <─result─            a socket that ends early is a worker that died

Workers are fresh interpreters (a fork of a process that holds Arrow's or rayon's threads can hang), but started without
`multiprocessing`: its spawn imports the caller's script a second time, so that a script without an
`if __name__ == "__main__"` guard could not call `premask.prepare`. One socket per worker also tells exactly which item
a killed worker held: only that one is tried again.
"""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, Self, TypeAlias

from premask.errors import MachineError, PremaskError, UsageError
from premask.run.items import WorkItem
from premask.run.worker import GRACE

TRIES = 3
"""How often an item is begun before its workers' deaths are taken for its own fault."""

ITEM_SECONDS = 3600.0
"""How long a bounded item may take, a thousand times what it should: whatever hangs is ended, and named."""

ENVIRONMENT = {
    # Processes are the parallelism here: threads in each of them as well only get in each other's way.
    "OPENBLAS_NUM_THREADS": "1",
    # Texts are made and freed by the thousand: glibc keeps 7 pieces of a size ready, and searches for the rest.
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=4000",
}
"""Of workers, where nothing else is set."""

OnDone: TypeAlias = Callable[[WorkItem, Any], None]
Ending: TypeAlias = Literal["done", "failed", "lost"]


def run_items(
    items: Sequence[WorkItem],
    *,
    workers: int,
    on_done: OnDone | None = None,
    inherited: Sequence[int] = (),
) -> dict[str, Any]:
    """Perform every item with a crew of its own: see `Crew.perform`. No worker is left behind."""
    with Crew(workers, inherited) as crew:
        return crew.perform(items, on_done)


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class _Worker:
    """One child process, and the item that it holds."""

    def __init__(self, inherited: Sequence[int]) -> None:
        self.item: WorkItem | None = None
        self.deadline = 0.0
        self.connection, theirs = multiprocessing.Pipe()
        try:
            self.process = _start(theirs, inherited)
        except OSError as error:
            self.connection.close()
            raise MachineError(f"a worker process cannot be started: {error}; use fewer --workers") from error
        finally:
            theirs.close()

    def begin(self, item: WorkItem) -> None:
        self.item, self.deadline = item, time.monotonic() + ITEM_SECONDS if item.bounded else math.inf
        with suppress(ConnectionError):  # it has died: `end` reads so from the socket in a moment
            self.connection.send(replace(item, function=item.reference))

    def end(self) -> tuple[Ending, Any]:
        """How its item ended, with the result, the error, or the way in which the worker died."""
        self.item = None
        try:
            ending: tuple[Ending, Any] = self.connection.recv()
        except (EOFError, OSError):
            self.connection.close()
            return "lost", self._death()
        return ending

    def dismiss(self) -> None:
        """Ask the process to go: an idle worker by hanging up, a busy one by a signal."""
        self.connection.close()
        if self.item:
            self.process.terminate()

    def bury(self, patience: float) -> int:
        """Wait for the process to be gone, kill it after `patience` seconds; its exit code as `subprocess` gives it."""
        try:
            return self.process.wait(max(0.0, patience))
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _death(self) -> str:
        code = self.bury(GRACE)
        if code == -signal.SIGKILL:
            return "killed by SIGKILL, which is what Linux does when memory runs out"
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def _start(theirs: Connection, inherited: Sequence[int]) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-P", "-m", "premask.run.worker", str(theirs.fileno()), str(os.getpid())],
        env={**ENVIRONMENT, **os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
        pass_fds=[theirs.fileno(), *inherited],
        stdin=subprocess.DEVNULL,
        stdout=2,  # the driver's standard output is for the summary alone
        process_group=0,  # Ctrl-C is the driver's business
    )


class Crew:
    """At most `size` workers, each started when there is an item for it; they stay until the block ends.

    Workers keep the descriptors `inherited` open as long as they live. UsageError for less than one worker.
    """

    def __init__(self, size: int, inherited: Sequence[int] = ()) -> None:
        if size < 1:
            raise UsageError(f"workers: expected at least 1, found {size}")
        self.size = size
        self.inherited = inherited
        self.workers: list[_Worker] = []
        self.opening: WorkItem | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.dismiss()
        deadline = time.monotonic() + GRACE
        for worker in self.workers:
            worker.bury(deadline - time.monotonic())

    @property
    def busy(self) -> dict[Any, _Worker]:
        """The workers that hold an item, by connection."""
        return {worker.connection: worker for worker in self.workers if worker.item}

    @property
    def _at_work(self) -> bool:
        """Whether any worker holds an item that was asked for."""
        return any(worker.item is not self.opening for worker in self.busy.values())

    def start(self, opening: WorkItem, items: int) -> None:
        """Start the workers for so many items now, each with one that makes it ready for those to come.

        What becomes of that is not looked at: whatever is wrong with it, the items that need it will say. Where a
        single worker would do, none is started, as in `perform`.
        """
        self.opening = opening
        wanted = min(self.size, items)
        while 1 < wanted > len(self.workers):
            self._hire().begin(opening)

    def perform(self, items: Sequence[WorkItem], on_done: OnDone | None = None) -> dict[str, Any]:
        """Perform every item; results by item name, in the order of `items`.

        `on_done(item, result)` is called here in the driver, as each of them completes, in any order. With one worker,
        or one item, no process starts.

        Raises the `PremaskError` of the first item (in the order of `items`) that failed, once the items that were
        running have come to their end; `MachineError` for an item whose worker died `TRIES` times, or that took longer
        than `ITEM_SECONDS` in a worker.
        """
        results: dict[str, Any] = {}
        if len({item.name for item in items}) < len(items):
            raise ValueError("two work items of one name")

        def note(item: WorkItem, result: Any) -> None:
            results[item.name] = result
            if on_done:
                on_done(item, result)

        if self.size == 1 or len(items) <= 1:
            for item in items:
                note(item, item.perform())
        else:
            self._share_out(items, note)
        return {item.name: results[item.name] for item in items}

    def _share_out(self, items: Sequence[WorkItem], on_done: OnDone) -> None:
        waiting = deque(items)
        tries = Counter[str]()
        failed: dict[str, PremaskError] = {}
        while self._at_work or (waiting and not failed):
            while waiting and not failed and len(self.busy) < self.size:
                item = waiting.popleft()
                tries[item.name] += 1
                self._hand_out(item)
            for item, ending, value in self._collect():
                if item is self.opening:
                    continue
                if ending == "done":
                    on_done(item, value)
                elif ending == "failed":
                    failed[item.name] = value
                elif tries[item.name] < TRIES:
                    waiting.appendleft(item)
                else:
                    failed[item.name] = _lost(item, value)
        for item in items:
            if item.name in failed:
                raise failed[item.name]

    def _hand_out(self, item: WorkItem) -> None:
        worker = next((worker for worker in self.workers if not worker.item), None)
        (worker or self._hire()).begin(item)

    def _hire(self) -> _Worker:
        self.workers.append(_Worker(self.inherited))
        return self.workers[-1]

    def _collect(self) -> Iterator[tuple[WorkItem, Ending, Any]]:
        """Wait until an item has ended; every one that has, or whose time is over."""
        busy = self.busy
        deadline = min(worker.deadline for worker in busy.values())
        ended = wait(list(busy), None if math.isinf(deadline) else max(0.0, deadline - time.monotonic()))
        if not ended:
            yield from self._end_hanging()
        for connection in ended:
            worker = busy[connection]
            item = worker.item
            ending, value = worker.end()
            if ending == "lost":
                self.workers.remove(worker)
            if item:
                yield item, ending, value

    def _end_hanging(self) -> Iterator[tuple[WorkItem, Ending, Any]]:
        for worker in [worker for worker in self.busy.values() if worker.deadline <= time.monotonic()]:
            item = worker.item
            worker.dismiss()
            worker.bury(GRACE)
            self.workers.remove(worker)
            if item:
                yield item, "failed", _hung(item)


def _hung(item: WorkItem) -> MachineError:
    return MachineError(
        f"{item.name}: expected it to take seconds, found it unfinished after {ITEM_SECONDS:.0f}; "
        "does the machine hang, or the chat template or the tokenizer loop?"
    )


def _lost(item: WorkItem, death: str) -> MachineError:
    return MachineError(
        f"{item.name}: its worker died {TRIES} times, the last one {death}; "
        "use fewer --workers or a machine with more memory, and run the same command again: what is finished stays"
    )
