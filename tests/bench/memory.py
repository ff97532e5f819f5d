"""Memory of a preparation: the peaks of the driver and of its workers, on some JSON Lines and on twice as many.

    python tests/bench/memory.py [--megabytes 1000] [--workers 2] [--set duplicates=drop] [--quick]

The rows are real conversations (those of the repository where `../shared/data` is absent), each with a number of its
own in its text, so that no two are equal. A preparation runs as people run it, from the command line; meanwhile the
kernel is asked what its processes hold. `peak` is VmHWM, all that was resident at once, pages of mapped files included;
`own` leaves those out (RssAnon, asked every 20 ms).

The budget: a worker's peak below 1 GB, and no higher on twice as much, two things aside: stage files that stay open (of
these it holds 256 MB at the most, which are the kernel's to take back), and the tokens of a shard, which grows with the
input up to 4 GB; the driver grows by at most 40 bytes an example, by 16 more with `duplicates=drop`.

Writes build/bench/memory.md. Exit code 1 where the budget is missed.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from premask.prepare import sizes_for
from premask.read import Conversation, convert, detect, first_rows, open_sources, parse, read_source
from premask.store.gather import HELD_BYTES

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build/bench"
SHARED = ROOT / "../shared/data"
WORKER_BYTES = 10**9
NOISE_BYTES = 50 * 2**20
"""What two runs of one preparation may differ by, and more: which rows a worker gets is chance."""
TOKEN_BYTES = 24
"""Of a worker, for every token of a shard: ids, labels and positions with room to spare, and what makes them."""
DRIVER_BYTES, DIGEST_BYTES = 40, 16
"""For every example: always, and with duplicates=drop."""
SECONDS = 0.02
NUMBER = "#number#"


class Peak(NamedTuple):
    """The most that one process held, in bytes."""

    peak: int
    own: int


class Run(NamedTuple):
    """One preparation."""

    size: int
    examples: int
    seconds: float
    driver: Peak
    workers: Sequence[Peak]

    def cells(self) -> list[str]:
        largest = [max((getattr(worker, what) for worker in self.workers), default=0) for what in Peak._fields]
        megabytes = [f"{value / 1e6:,.0f}" for value in (self.size, *self.driver, *largest)]
        return [megabytes[0], f"{self.examples:,}", f"{self.seconds:.0f}", *megabytes[1:]]


HEADS = ("MB", "examples", "seconds", "driver, peak MB", "driver, own MB", "worker, peak MB", "worker, own MB")


def templates(longest: int) -> list[bytes]:
    """Real rows as JSON lines of at most so many bytes, with `NUMBER` in the text of their first messages."""
    folder = SHARED / "chat" if SHARED.exists() else ROOT / "data/samples"
    lines = []
    for source in open_sources([str(file) for file in sorted(folder.iterdir())]):
        form = detect(first_rows(source), source.name)
        for raw in read_source(source):
            row = parse(raw)
            found = convert(form, row) if isinstance(row, dict) else row
            if isinstance(found, Conversation) and all(type(m.get("content")) is str for m in found.messages):
                first = {**found.messages[0], "content": f"{NUMBER} {found.messages[0]['content']}"}
                row = {"messages": [first, *found.messages[1:]], **({"tools": found.tools} if found.tools else {})}
                lines.append(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return [line for line in lines if len(line) <= longest]


def write_rows(path: Path, size: int, longest: int) -> None:
    """Write rows until the file has `size` bytes."""
    lines = templates(longest)
    number = written = 0
    with path.open("wb") as file:
        while written < size:
            written += file.write(lines[number % len(lines)].replace(NUMBER.encode(), str(number).encode()))
            number += 1


def processes(root: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield root
    for task in Path(f"/proc/{root}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from processes(int(child))


def program_of(process: int) -> bytes:
    """The program that a process runs, with its arguments."""
    return Path(f"/proc/{process}/cmdline").read_bytes()


def held(process: int) -> Peak:
    """What a process has held at the most, and what it holds of its own, in bytes; zeros where it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return Peak(0, 0)
    kilobytes = {key: int(value.split()[0]) for key, value in (line.split(":", 1) for line in lines) if "kB" in value}
    return Peak(1024 * kilobytes.get("VmHWM", 0), 1024 * kilobytes.get("RssAnon", 0))


def watch(driver: subprocess.Popen[bytes]) -> dict[int, Peak]:
    """The peaks of a process and all that descend from it, until it ends."""
    peaks: dict[int, Peak] = {}
    while driver.poll() is None:
        try:
            for process in processes(driver.pid):
                if process != driver.pid and program_of(process) == program_of(driver.pid):
                    continue  # a worker to be: until it loads its own program, its memory is the driver's
                now, before = held(process), peaks.get(process, Peak(0, 0))
                peaks[process] = Peak(max(now.peak, before.peak), max(now.own, before.own))
        except (FileNotFoundError, ProcessLookupError):
            pass  # it ended while it was looked at
        time.sleep(SECONDS)
    return peaks


def prepare(source: Path, work: Path, workers: int, settings: Sequence[str]) -> Run:
    """Prepare a file, and watch."""
    out = work / "prepared"
    tokenizer = SHARED / "tokenizers/dolma2" if SHARED.exists() else ROOT / "data/tokenizer"
    options = [text for setting in settings for text in ("--set", setting)]
    command = ["prepare", source, "--tokenizer", tokenizer, "--out", out, "--workers", workers, "--quiet", *options]
    start = time.monotonic()
    driver = subprocess.Popen([sys.executable, "-m", "premask", *map(str, command)], stdout=subprocess.DEVNULL)
    peaks = watch(driver)
    seconds = time.monotonic() - start
    if driver.returncode:
        raise SystemExit(f"premask prepare failed with code {driver.returncode}")
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    examples = sum(split["examples"] for split in manifest["splits"].values())
    own = peaks.pop(driver.pid)
    return Run(source.stat().st_size, examples, seconds, own, list(peaks.values()))


def measure(size: int, workers: int, settings: Sequence[str], longest: int) -> Run:
    """Prepare so many bytes in a folder that goes again."""
    OUT.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=OUT) as work:
        source = Path(work) / "rows.jsonl"
        write_rows(source, size, longest)
        run = prepare(source, Path(work), workers, settings)
    print(*(f"{head}: {cell}" for head, cell in zip(HEADS, run.cells(), strict=True)), sep="; ", flush=True)
    return run


def growth(one: Run, two: Run) -> tuple[float, float]:
    """Bytes by which the driver grows for every example: its peak, and what is its own."""
    more = two.examples - one.examples
    return (two.driver.peak - one.driver.peak) / more, (two.driver.own - one.driver.own) / more


def missed(one: Run, two: Run, settings: Sequence[str]) -> list[str]:
    """What of the budget is missed."""
    allowed = DRIVER_BYTES + DIGEST_BYTES * ("duplicates=drop" in settings)
    peaks = [max(worker.peak for worker in run.workers) for run in (one, two)]
    owns = [max(worker.own for worker in run.workers) for run in (one, two)]
    shards = [sizes_for(run.size)["shard_tokens"] for run in (one, two)]
    own = owns[0] + TOKEN_BYTES * (shards[1] - shards[0]) + NOISE_BYTES
    peak = peaks[0] + own - owns[0] + HELD_BYTES
    grown = growth(one, two)
    checks = {
        f"a worker holds {max(peaks) / 1e6:,.0f} MB": max(peaks) < WORKER_BYTES,
        f"a worker holds {(owns[1] - owns[0]) / 1e6:,.0f} MB of its own more on twice as much": owns[1] < own,
        f"a worker holds {(peaks[1] - peaks[0]) / 1e6:,.0f} MB more on twice as much": peaks[1] < peak,
        f"the driver grows by {grown[0]:.0f} bytes an example, expected {allowed}": grown[0] <= allowed,
    }
    return [what for what, holds in checks.items() if not holds]


def main() -> int:
    """Measure, print, write; 1 where the budget is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1000, help="of the smaller amount")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--longest", type=int, default=2**20, help="bytes of the longest row that is repeated")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="options of the recipe")
    parser.add_argument("--quick", action="store_true", help="a twentieth of all that")
    arguments = parser.parse_args()
    megabytes = arguments.megabytes / (20 if arguments.quick else 1)
    sizes = (int(megabytes * 1e6), int(megabytes * 2e6))
    one, two = (measure(size, arguments.workers, arguments.settings, arguments.longest) for size in sizes)
    table = [HEADS, ["---"] * len(HEADS), one.cells(), two.cells()]
    (OUT / "memory.md").write_text("".join(f"| {' | '.join(row)} |\n" for row in table))
    peak, own = growth(one, two)
    print(f"the driver grows by {peak:.1f} bytes an example, {own:.1f} of them its own")
    problems = missed(one, two, arguments.settings)
    print("\n".join([f"budget missed: {problem}" for problem in problems] or ["budget met"]))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
