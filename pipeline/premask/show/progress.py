"""How far a run has come: a bar on a terminal, now and then a plain line elsewhere, or nothing.

All of it goes to standard error; standard output is for results.
"""

import sys
import time
from typing import Protocol, TextIO


class Progress(Protocol):
    """What `prepare` tells while it works."""

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """Begin a phase of `total` steps (None: not known), each of one `unit`; the one before is over."""

    def advance(self, n: int = 1) -> None:
        """`n` more steps of this phase are done."""

    def note(self, text: str) -> None:
        """Say something that people should read, such as a warning."""

    def close(self) -> None:
        """The run is over; may be called twice."""


def progress_for(*, silent: bool = False, stream: TextIO | None = None) -> Progress:
    """The progress that suits `stream` (standard error by default)."""
    stream = stream or sys.stderr
    if silent:
        return SilentProgress()
    return BarProgress(stream) if stream.isatty() else LineProgress(stream)


class SilentProgress:
    """For `--quiet`, `--json` and callers from Python."""

    def phase(self, name: str, total: int | None, unit: str) -> None: ...

    def advance(self, n: int = 1) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


class LineProgress:
    """A line at the start of every phase, and one every few seconds in a long one; notes are printed at once."""

    def __init__(self, stream: TextIO, interval: float = 5.0) -> None:
        self._stream = stream
        self._interval = interval
        self._last = time.monotonic()
        self._name, self._unit = "", ""
        self._total: int | None = None
        self._count = 0

    def phase(self, name: str, total: int | None, unit: str) -> None:
        self._name, self._total, self._unit, self._count = name, total, unit, 0
        self.note(f"{name} {unit}s" if total is None else f"{name} {_counted(total, unit)}")

    def advance(self, n: int = 1) -> None:
        self._count += n
        now = time.monotonic()
        if now - self._last >= self._interval and self._count != self._total:
            whole = "" if self._total is None else f" of {self._total:,}"
            self.note(f"{self._name}: {self._count:,}{whole} {self._unit}s")

    def note(self, text: str) -> None:
        self._last = time.monotonic()
        print(f"premask: {text}", file=self._stream, flush=True)

    def close(self) -> None: ...


def _counted(number: int, unit: str) -> str:
    return f"{number:,} {unit}" + ("" if number == 1 else "s")


class BarProgress:
    """A bar per phase, drawn by rich; it leaves nothing behind but the notes."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._bars = Bars(*columns, console=Console(file=stream), transient=True)
        self._task = self._bars.add_task("", total=None, visible=False)
        self._bars.start()

    def phase(self, name: str, total: int | None, unit: str) -> None:
        self._bars.remove_task(self._task)  # not `reset`, which keeps the old total where the new one is None
        self._task = self._bars.add_task(f"{name} {unit}s", total=total)

    def advance(self, n: int = 1) -> None:
        self._bars.advance(self._task, n)

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._bars.stop()
