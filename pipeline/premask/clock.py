"""Where the time of a process goes, stage by stage. A second counts for the innermost stage only.

    with stage("render"):
        ...

Always on: a stage costs a microsecond and is entered once a batch.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar, TypeVar

T = TypeVar("T")


class _Clock:
    spent: ClassVar[defaultdict[str, float]] = defaultdict(float)
    inner = 0.0
    """Seconds of the stages within the one that runs."""


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the seconds of a block for the stage `name`, those of stages within it aside."""
    outer, _Clock.inner = _Clock.inner, 0.0
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - began
        _Clock.spent[name] += seconds - _Clock.inner
        _Clock.inner = outer + seconds


def timed(name: str, items: Iterable[T]) -> Iterator[T]:
    """The items, the making of each counted for the stage `name`."""
    iterator = iter(items)
    while True:
        with stage(name):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


@contextmanager
def spent() -> Iterator[dict[str, float]]:
    """A mapping that holds the seconds of every stage of the block, once it has ended."""
    before, found = _Clock.spent.copy(), dict[str, float]()
    yield found
    found.update({name: seconds - before[name] for name, seconds in _Clock.spent.items() if seconds > before[name]})
