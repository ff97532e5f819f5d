"""Loading: shuffled packs to CPU tensors, beside merely copying the same packs, plain pyarrow, and datasets.

    python tests/bench/loading.py [--repeat 400]

The dataset is our samples, each taken `--repeat` times, in packs of 4,096 tokens. `copy` copies every column of every
pack out of the memory map, in a shuffled order, and does nothing else: the bar is 80 % of its speed, for 16 packs a
batch. `pyarrow` takes the rows of the memory-mapped table one by one as numpy; `datasets` reads them with torch
formatting: the bar is 5 times its speed. Ours also gives the rows to train, cumulative lengths and denominators, which
none of the others does; `+ inputs` makes the int64 ids and positions of the model as well. Times are seconds of one
core (no reader uses a second one), the best of nine rounds in which the readers take turns.

Writes build/bench/loading.md. Exit code 1 where a bar is missed.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time

import datasets
import pyarrow as pa
import torch

import premask
from premask.dtypes import Int32Array
from premask.pack.plan import shuffle
from premask.recipe import Recipe

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build/bench"
RUNS = 9
LEAST_OF_COPY, LEAST_OF_DATASETS = 0.8, 5.0


def prepared(folder: Path, repeat: int) -> premask.Prepared:
    """Our samples, each `repeat` times."""
    sources = [{"path": str(path), "repeat": repeat} for path in sorted((ROOT / "data/samples").iterdir())]
    premask.prepare(Recipe(sources=sources, tokenizer=str(ROOT / "data/tokenizer"), max_length=4096), folder)
    return premask.open(folder)


def readers(dataset: premask.Prepared) -> dict[str, Callable[[], None]]:
    """What is measured, by name; each reads every pack once."""
    order: Int32Array = shuffle(len(dataset["train"]), 0)
    return {
        "copy": copying(dataset, order),
        "premask, 16 packs a batch": loading(dataset, 16),
        "premask, 4 packs a batch": loading(dataset, 4),
        "premask, 1 pack a batch": loading(dataset, 1),
        "premask, 16 packs a batch + inputs": loading(dataset, 16, inputs=True),
        "pyarrow": with_pyarrow(dataset, order),
        "datasets, torch": with_datasets(dataset, order),
    }


def copying(dataset: premask.Prepared, order: Int32Array) -> Callable[[], None]:
    split, names = dataset["train"], dataset.manifest["columns"]

    def read() -> None:
        for number in order.tolist():
            pack = split[number]
            for name in names:
                getattr(pack, name).copy()

    return read


def loading(dataset: premask.Prepared, size: int, *, inputs: bool = False) -> Callable[[], None]:
    loader = dataset.loader(batch_size=16, micro_batch_size=size)

    def read() -> None:
        loader.position = 0
        for step in loader:
            for batch in step.batches if inputs else ():
                _ = batch.input_ids, batch.position_ids, batch.targets

    return read


def with_pyarrow(dataset: premask.Prepared, order: Int32Array) -> Callable[[], None]:
    shards = [pa.ipc.open_stream(pa.memory_map(str(path))) for path in sorted(dataset.path.glob("train/*.arrow"))]
    table = pa.concat_tables([shard.read_all() for shard in shards]).combine_chunks()
    columns = [table.column(name).chunk(0) for name in dataset.manifest["columns"]]

    def read() -> None:
        for number in order.tolist():
            for column in columns:
                torch.tensor(column[number].values.to_numpy(zero_copy_only=True))

    return read


def with_datasets(dataset: premask.Prepared, order: Int32Array) -> Callable[[], None]:
    split = datasets.load_from_disk(str(dataset.path))["train"].with_format("torch")

    def read() -> None:
        for number in order.tolist():
            split[number]

    return read


def measure(found: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Seconds of CPU time of each reader, the best of several rounds."""
    best = dict.fromkeys(found, float("inf"))
    for _ in range(RUNS):
        for name, read in found.items():
            begun = process_time()
            read()
            best[name] = min(best[name], process_time() - begun)
    return best


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=400)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = prepared(Path(folder) / "prepared", parser.parse_args().repeat)
        seconds, told = measure(readers(dataset)), dataset.manifest["splits"]["train"]
    lines = [
        f"{told['packs']:,} packs, {told['tokens']:,} tokens, {told['supervised_tokens']:,} trained; one core\n",
        "| reader | µs a pack | tokens/s | of copying | of datasets |",
        "|---|---|---|---|---|",
    ]
    for name, time in seconds.items():
        lines.append(
            f"| {name} | {time / told['packs'] * 1e6:.1f} | {told['tokens'] / time / 1e6:,.0f} M "
            f"| {seconds['copy'] / time:.0%} | {seconds['datasets, torch'] / time:.1f}x |"
        )
    ours = seconds["premask, 16 packs a batch"]
    met = seconds["copy"] / ours >= LEAST_OF_COPY and seconds["datasets, torch"] / ours >= LEAST_OF_DATASETS
    lines.append(f"\n{'met' if met else 'MISSED'}: {LEAST_OF_COPY:.0%} of copying, {LEAST_OF_DATASETS:g}x datasets")
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "loading.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
