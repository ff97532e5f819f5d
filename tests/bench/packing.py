"""Packing: time and quality of best fit on mixes of lengths, beside TRL's packer on the same lengths.

    python tests/bench/packing.py [--examples 1000000] [--large 10000000] [--peers 50000] [--quick]

Each mix is drawn from fixed seeds, for packs of 4,096 tokens. The bound is max(ceil(sum / capacity), Martello-Toth
L2). Times are medians of five on one core, in which packers take turns. The first four mixes are those of the budget: a
million lengths in at most 0.3 s, ten million in at most ten times that, both within 0.1 % of the bound; `near-third`
and `near-quarter` are reported, to show where best fit is weak. TRL gets fewer lengths, since it would take minutes,
and no ids, since moving them is no part of packing; it packs windows of 1,000 rows, as its trainer lets it, and all
rows as one.

Writes build/bench/packing.md and packing.svg. Exit code 1 where the budget is missed.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np

from premask.dtypes import Int32Array
from premask.pack.best_fit import best_fit, lower_bound, sequential

OUT = Path(__file__).parents[2] / "build/bench"
CAPACITY = 4096
RUNS = 5
REQUIRED = ("uniform", "log-normal", "bimodal", "near-half")
BUDGET_SECONDS = 0.3
"""For a million lengths."""
BUDGET_EXCESS = 0.001
HEADS = ("mix", "packer", "lengths", "seconds", "packs", "bound", "over")

Packer = Callable[[], int]
"""Packs once and returns the number of packs."""


class Line(NamedTuple):
    """What one packer does with one mix."""

    mix: str
    packer: str
    examples: int
    seconds: float
    packs: int
    bound: int

    @property
    def over(self) -> float:
        return self.packs / self.bound - 1

    @property
    def missed(self) -> bool:
        slow = self.seconds > BUDGET_SECONDS * max(1, self.examples / 1_000_000)
        return self.packer == "best fit" and self.mix in REQUIRED and (slow or self.over > BUDGET_EXCESS)

    def cells(self) -> list[str]:
        numbers = f"{self.examples:,}", f"{self.seconds:.3f}", f"{self.packs:,}", f"{self.bound:,}", f"{self.over:.4%}"
        return [self.mix, self.packer, *numbers]


def mixes(count: int, capacity: int) -> dict[str, Callable[[], Int32Array]]:
    """Makers of the lengths `[count]` of every mix, in 1..capacity."""
    rng = np.random.default_rng
    drawn: dict[str, Callable[[], np.ndarray]] = {
        "uniform": lambda: rng(0).integers(1, capacity + 1, count),
        "log-normal": lambda: rng(1).lognormal(6.3, 1.0, count),  # median 545 tokens, the longest cut at the capacity
        "bimodal": lambda: (
            np.where(rng(2).random(count) < 0.6, rng(3).normal(0.1, 0.04, count), rng(4).normal(0.7, 0.1, count))
            * capacity
        ),
        "near-half": lambda: rng(5).normal(1 / 2, 0.05, count) * capacity,
        "near-third": lambda: rng(6).normal(1 / 3, 0.03, count) * capacity,
        "near-quarter": lambda: rng(7).normal(1 / 4, 0.02, count) * capacity,
    }
    return {
        name: lambda make=make: np.clip(make(), 1, capacity).astype(np.int32)  # type: ignore[misc]
        for name, make in drawn.items()
    }


def bound_of(lengths: Int32Array, capacity: int) -> int:
    """The lower bound by which packing is judged."""
    return max(-(-int(lengths.sum(dtype=np.int64)) // capacity), lower_bound(lengths, capacity))


def ours(packer: Callable[[Int32Array, int], Int32Array], lengths: Int32Array, capacity: int) -> Packer:
    """One of our packers: the number of every example's pack, then how many there are."""
    return lambda: int(packer(lengths, capacity).max()) + 1


def trl(lengths: Int32Array, capacity: int, window: int) -> Packer:
    """TRL's `pack_dataset`, by windows of so many rows, on examples whose ids take no room."""
    import datasets
    import pyarrow as pa
    from trl import pack_dataset  # type: ignore[attr-defined]

    datasets.disable_progress_bars()
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    ids = pa.LargeListArray.from_arrays(pa.array(offsets), pa.nulls(int(offsets[-1])))
    dataset = datasets.Dataset(pa.table({"input_ids": ids}))
    return lambda: len(pack_dataset(dataset, capacity, strategy="bfd", map_kwargs={"batch_size": window}))


def compare(mix: str, lengths: Int32Array, packers: Mapping[str, Packer], capacity: int = CAPACITY) -> list[Line]:
    """Run the packers in turns: median seconds and packs of each."""
    seconds: dict[str, list[float]] = {name: [] for name in packers}
    packs: dict[str, int] = {}
    for _ in range(RUNS):
        for name, packer in packers.items():
            start = perf_counter()
            packs[name] = packer()
            seconds[name].append(perf_counter() - start)
    bound = bound_of(lengths, capacity)
    return [Line(mix, name, len(lengths), median(seconds[name]), packs[name], bound) for name in packers]


def of_best_fit(count: int) -> list[Line]:
    """Best fit on every mix."""
    lines = []
    for mix, make in mixes(count, CAPACITY).items():
        lengths = make()
        lines += compare(mix, lengths, {"best fit": ours(best_fit, lengths, CAPACITY)})
        print(*lines[-1].cells(), sep="  ", flush=True)
    return lines


def beside_trl(count: int) -> list[Line]:
    """Best fit, next fit and TRL on the same lengths; without TRL where it is not installed."""
    lines = []
    for mix, make in mixes(count, CAPACITY).items():
        lengths = make()
        packers = {"best fit": ours(best_fit, lengths, CAPACITY), "next fit": ours(sequential, lengths, CAPACITY)}
        try:
            packers["TRL, 1,000 rows at a time"] = trl(lengths, CAPACITY, 1000)
            packers["TRL, all rows at once"] = trl(lengths, CAPACITY, count)
        except ImportError:
            print("TRL is not installed: pip install premask[bench]")
        lines += compare(mix, lengths, packers)
        for line in lines[-len(packers) :]:
            print(*line.cells(), sep="  ", flush=True)
    return lines


def table(lines: Sequence[Line]) -> str:
    """A table in Markdown."""
    rows = [HEADS, ("---",) * len(HEADS), *(line.cells() for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def picture(small: Sequence[Line], beside: Sequence[Line], path: Path) -> None:
    """Two plots: packs over the bound, and microseconds an example, both by mix and packer."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(line.mix for line in small))
    packers = list(dict.fromkeys(line.packer for line in beside))
    figure, (quality, speed) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for n, packer in enumerate(packers):
        lines = [line for line in beside if line.packer == packer]
        places = np.arange(len(names)) + (n - len(packers) / 2 + 0.5) * 0.2
        quality.bar(places, [max(100 * line.over, 1e-4) for line in lines], 0.19, label=packer)
        speed.bar(places, [1e6 * line.seconds / line.examples for line in lines], 0.19, label=packer)
    quality.axhline(100 * BUDGET_EXCESS, color="black", linestyle=":", label="budget of the first four mixes")
    for axes, what in ((quality, "packs over the lower bound, %"), (speed, "microseconds an example")):
        axes.set(yscale="log", ylabel=what)
        axes.set_xticks(range(len(names)), names, rotation=20)
    figure.legend(*quality.get_legend_handles_labels(), loc="outside lower center", ncols=len(packers) + 1)
    figure.suptitle(f"Packing {beside[0].examples:,} examples into packs of {CAPACITY:,} tokens")
    figure.savefig(path)


def main() -> int:
    """Measure, print, write; 1 where the budget is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--large", type=int, default=10_000_000, help="examples of the large mixes; 0 leaves them out")
    parser.add_argument("--peers", type=int, default=50_000, help="examples for the peers; 0 leaves them out")
    parser.add_argument("--quick", action="store_true", help="a tenth of all that")
    arguments = parser.parse_args()
    tenth = 10 if arguments.quick else 1
    small = of_best_fit(arguments.examples // tenth)
    large = of_best_fit(arguments.large // tenth) if arguments.large else []
    beside = beside_trl(arguments.peers // tenth) if arguments.peers else []
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "packing.md").write_text(table([*small, *large]) + "\n" + table(beside))
    if beside:
        picture(small, beside, OUT / "packing.svg")
    for one, other in zip(small, large, strict=False):
        times = other.seconds / one.seconds
        print(f"{one.mix}: {other.examples / one.examples:g} times the lengths take {times:.1f} times as long")
    missed = [f"{line.mix} ({line.examples:,})" for line in [*small, *large] if line.missed]
    print(f"budget missed: {', '.join(missed)}" if missed else f"budget met on {', '.join(REQUIRED)}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
