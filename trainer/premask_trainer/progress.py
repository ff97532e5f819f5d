"""What people see while a model trains: a bar on a terminal, a line now and then elsewhere, the curve at the end."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TextIO

from premask_trainer.records import METRICS

BLOCKS = " ▁▂▃▄▅▆▇█"
WIDTH, HEIGHT = 60, 8


class Progress(Protocol):
    """Where the loop says how far it has come."""

    def step(self, record: Mapping[str, Any]) -> None:
        """A step is done; the record is the one of metrics.jsonl."""

    def note(self, text: str) -> None:
        """Something that people should read."""

    def close(self) -> None:
        """The run is over; may be called twice."""


def progress_for(total: int, done: int, *, silent: bool = False, stream: TextIO | None = None) -> Progress:
    """The progress that suits `stream` (standard error by default), of `total` steps of which `done` are done."""
    stream = stream or sys.stderr
    if silent:
        return Silent()
    return Bar(stream, total, done) if stream.isatty() else Lines(stream, total)


class Silent:
    """For `--quiet`, `--json`, and all ranks but the first."""

    def step(self, record: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


class Lines:
    """The first and the last step, and one every few seconds."""

    def __init__(self, stream: TextIO, total: int, interval: float = 5.0) -> None:
        self._stream, self._total, self._interval = stream, total, interval
        self._last = -interval

    def step(self, record: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - self._last >= self._interval or record["step"] == self._total:
            self._last = now
            self.note(f"step {record['step']:,} of {self._total:,}: {described(record)}")

    def note(self, text: str) -> None:
        print(f"premask: {text}", file=self._stream, flush=True)

    def close(self) -> None: ...


class Bar:
    """A bar with the time left, drawn by rich."""

    def __init__(self, stream: TextIO, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._bars = Bars(*columns, console=Console(file=stream))
        self._task = self._bars.add_task("", total=total, completed=done)
        self._bars.start()

    def step(self, record: Mapping[str, Any]) -> None:
        self._bars.update(self._task, completed=record["step"], description=described(record))

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._bars.stop()


def described(record: Mapping[str, Any]) -> str:
    """One step in words."""
    return (
        f"loss {record['loss']:.4f}, {record['tokens_per_second']:,.0f} tokens/s "
        f"({record['trained_per_second']:,.0f} trained), waited {record['wait'] / max(record['seconds'], 1e-9):.1%}, "
        f"{record['memory'] / 2**30:.1f} GiB"
    )


def curve(losses: Sequence[float], width: int = WIDTH, height: int = HEIGHT) -> str:
    """The losses as a picture of `height` lines, each column the mean of as many steps."""
    width = min(width, len(losses))
    bounds = [len(losses) * n // width for n in range(width + 1)]
    means = [sum(losses[a:b]) / (b - a) for a, b in pairwise(bounds)]
    low, high = min(means), max(means)
    levels = [round((mean - low) / ((high - low) or 1.0) * (height * 8 - 1)) + 1 for mean in means]
    lines = []
    for row in reversed(range(height)):
        label = f"{high:8.3f} " if row == height - 1 else f"{low:8.3f} " if row == 0 else " " * 9
        lines.append((label + "".join(BLOCKS[min(max(level - row * 8, 0), 8)] for level in levels)).rstrip())
    return "\n".join(lines)


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """What to say of a run that has ended: the curve, the figures, and where everything is."""
    metrics = Path(summary["out"]) / METRICS
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [record for record in records if "loss" in record]
    lines = [f"{metrics}: {len(steps):,} steps"]
    if steps:
        losses, rest = [record["loss"] for record in steps], steps[1:] or steps
        seconds, waited = (sum(record[name] for record in rest) for name in ("seconds", "wait"))
        tokens, trained = (sum(record[name] for record in rest) for name in ("tokens", "trained"))
        lines = [
            *(curve(losses), "", f"loss {losses[0]:.4f} in the first step, {losses[-1]:.4f} in the last"),
            f"{tokens / seconds:,.0f} tokens/s, {trained / seconds:,.0f} trained; data wait {waited / seconds:.2%}",
        ]
    for record in [record["validation"] for record in records if "validation" in record][-1:]:
        by_source = ", ".join(f"{name} {loss:.4f}" for name, loss in record["by_source"].items())
        lines += [f"validation loss {record['loss']:.4f} in the end ({by_source})"]
        lines += [f"the best one {summary['best']['loss']:.4f} after step {summary['best']['step']:,}"]
    if summary["stopped"]:
        lines += [f"stopped after step {summary['steps']:,}: {summary['stopped']}"]
    return lines + [f"{name}: {summary[name]}" for name in ("adapter", "merged") if name in summary]
