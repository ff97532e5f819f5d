"""Runs work items in processes of this machine (`processes.py`).

A worker that dies ends its socket, which tells exactly which item it held: only that one is tried again.
"""

import math
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any, Self, TypeAlias

from premask.errors import MachineError, PremaskError, UsageError
from premask.run.items import WorkItem
from premask.run.processes import Ending, Server, Worker
from premask.run.worker import GRACE

TRIES = 3
"""How often an item is begun before its workers' deaths are taken for its own fault."""

ITEM_SECONDS = 3600.0
"""How long a bounded item may take, a thousand times what it should: whatever hangs is ended, and named."""

OnDone: TypeAlias = Callable[[WorkItem, Any], None]


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


class Crew:
    """At most `size` workers, each started when there is an item for it; they stay until the block ends.

    Workers keep the descriptors `inherited` open as long as they live. UsageError for less than one worker.
    """

    def __init__(self, size: int, inherited: Sequence[int] = ()) -> None:
        if size < 1:
            raise UsageError(f"workers: expected at least 1, found {size}")
        self.size = size
        self.inherited = inherited
        self.server: Server | None = None
        self.workers: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.dismiss()
        deadline = time.monotonic() + GRACE
        for worker in self.workers:
            worker.bury(deadline - time.monotonic())
        if self.server:
            self.server.close()

    @property
    def busy(self) -> dict[Any, Worker]:
        """The workers that hold an item, by connection."""
        return {worker.connection: worker for worker in self.workers if worker.item}

    def start(self, opening: WorkItem, items: int) -> None:
        """Begin with what makes workers ready for so many items to come: once, for them all.

        If it fails, the items that need it will say so. Where a single worker would do there is none, as in `perform`.
        """
        if min(self.size, items) > 1:
            self.server = Server(self.inherited, opening)

    def opened(self) -> Any:
        """The result of the opening; None where there was none, no worker needed it, or nothing came of it."""
        return self.server.opened() if self.server else None

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
        while self.busy or (waiting and not failed):
            while waiting and not failed and len(self.busy) < self.size:
                item = waiting.popleft()
                tries[item.name] += 1
                self._hand_out(item)
            for item, ending, value in self._collect():
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
        (worker or self._hire()).begin(item, ITEM_SECONDS)

    def _hire(self) -> Worker:
        server = self.server if self.server and self.server.alive else self._replace_server()
        self.workers.append(server.hire())
        return self.workers[-1]

    def _replace_server(self) -> Server:
        """A server in place of none, or of one that is gone, without the opening in which it may have died."""
        if self.server:
            self.server.close()
        self.server = Server(self.inherited)
        return self.server

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
