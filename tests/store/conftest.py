"""Random examples, and a small prepared dataset on disk, for the tests of the store."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from premask.dtypes import Examples
from premask.pack.plan import Candidates, Plan, make_plan
from premask.store.layout import shard_path, write_layout
from premask.store.manifest import split_entry, write_manifest
from premask.store.plan_file import write_plan
from premask.store.shards import ShardEntry, write_shard
from premask.store.stage import Stage, read_stage, write_stage


def random_examples(seed: int, count: int, *, longest: int = 12, weighted: bool = False) -> Examples:
    """`count` examples of 1 to `longest` tokens with 0 to 3 spans each, touching ones among them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count)
    spans, span_counts = [], []
    for length in lengths:
        edges = np.sort(rng.choice(np.arange(1, length + 1), size=min(int(length), 6) // 2 * 2, replace=False))
        pairs = edges.reshape(-1, 2)[: rng.integers(0, 4)]
        if len(pairs) == 2 and rng.random() < 0.5:
            pairs[1, 0] = pairs[0, 1]
        spans.append(pairs)
        span_counts.append(len(pairs))
    flat = np.concatenate([np.zeros((0, 2)), *spans]).astype(np.int32)
    weights = rng.choice([0.25, 1.0, 2.0], len(flat)) if weighted else np.ones(len(flat))
    digests = [list(hashlib.md5(bytes([seed % 256, n % 256]), usedforsecurity=False).digest()) for n in range(count)]
    return Examples(
        ids=rng.integers(0, 1000, lengths.sum(), np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        spans=flat,
        span_offsets=np.concatenate([[0], np.cumsum(span_counts)]).astype(np.int64),
        span_weights=weights.astype(np.float32),
        rows=np.cumsum(rng.integers(1, 3, count)).astype(np.int64),
        turns=rng.integers(1, 4, count, np.int32),
        source_turns=rng.integers(-1, 4, count, np.int32),
        digests=np.array(digests, np.uint8).reshape(count, 16),
    )


def batches_in(path: Path) -> list[Examples]:
    """The record batches of a stage file as examples, read by pyarrow alone."""
    found = []
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    for batch in (reader.get_batch(number) for number in range(reader.num_record_batches)):
        ids, spans = batch.column("input_ids"), batch.column("spans")
        width = 16 if "digest" in batch.schema.names else 0
        digests = batch.column("digest").to_pylist() if width else [b""] * len(batch)
        found.append(
            Examples(
                ids=ids.flatten().to_numpy(),
                offsets=ids.offsets.to_numpy(),
                spans=spans.flatten().flatten().to_numpy().reshape(-1, 2),
                span_offsets=spans.offsets.to_numpy(),
                span_weights=batch.column("span_weights").flatten().to_numpy(),
                rows=batch.column("row").to_numpy(),
                turns=batch.column("turns").to_numpy(),
                source_turns=batch.column("source_turn").to_numpy(),
                digests=np.array([list(digest) for digest in digests], np.uint8).reshape(len(batch), width),
            )
        )
    return found


def stages_in(
    folder: Path, seed: int, partitions: int, batches: int, *, count: int = 7, weighted: bool = False
) -> dict[int, Stage]:
    """Stage files of random examples, memory-mapped, by partition number."""
    stages = {}
    for number in range(partitions):
        path = folder / f"stage-{number}.arrow"
        seeds = [seed + 100 * number + batch for batch in range(batches)]
        write_stage(path, (random_examples(each, count, weighted=weighted) for each in seeds))
        stages[number] = read_stage(path)
    return stages


def candidates_from(stages: dict[int, Stage]) -> Candidates:
    """Every example of the stages; source rows are numbered on from partition to partition, 1000 apart."""
    none = np.zeros(0, np.int64)

    def column(of: Callable[[int, Stage], np.ndarray], dtype: type) -> np.ndarray:
        return np.concatenate([none, *(of(number, stage) for number, stage in stages.items())]).astype(dtype)

    return Candidates(
        partition=column(lambda number, stage: np.full(len(stage), number), np.int32),
        index=column(lambda _, stage: np.arange(len(stage)), np.int32),
        source_row=column(lambda number, stage: stage.rows + 1000 * number, np.int64),
        source_turn=column(lambda _, stage: stage.source_turns, np.int32),
        length=column(lambda _, stage: stage.lengths, np.int32),
        supervised=column(lambda _, stage: stage.supervised, np.int32),
    )


def prepare(folder: Path, *, seed: int = 0, source_turns: bool = False, weights: bool = False) -> dict[str, Plan]:
    """A whole prepared dataset in `folder / "out"`: two splits, the first of several shards."""
    stages = stages_in(folder, seed, 3, 2, weighted=weights)
    candidates = candidates_from(stages)
    cuts = {"train": candidates.take(slice(0, 33)), "validation": candidates.take(slice(33, None))}
    plans = {name: make_plan(part, capacity=16, seed=seed, shard_tokens=60) for name, part in cuts.items()}
    out = folder / "out"
    write_plan(out / "plan.arrow", plans)
    options = {"source_turns": source_turns, "weights": weights}
    splits: dict[str, list[ShardEntry]] = {
        name: [
            write_shard(shard_path(out, name, n, plan.shards), stages, plan.shard(n), **options)
            for n in range(plan.shards)
        ]
        for name, plan in plans.items()
    }
    write_layout(out, splits, **options)
    write_manifest(out, {"splits": {name: split_entry(shards) for name, shards in splits.items()}})
    return plans


@pytest.fixture(scope="session")
def examples_of() -> Callable[..., Examples]:
    """random_examples."""
    return random_examples


@pytest.fixture(scope="session")
def batches_of() -> Callable[[Path], list[Examples]]:
    """batches_in."""
    return batches_in


@pytest.fixture(scope="session")
def write_stages() -> Callable[..., dict[int, Stage]]:
    """stages_in."""
    return stages_in


@pytest.fixture(scope="session")
def candidates_of() -> Callable[[dict[int, Stage]], Candidates]:
    """candidates_from."""
    return candidates_from


@pytest.fixture(scope="session")
def prepare_in() -> Callable[..., dict[str, Plan]]:
    """prepare."""
    return prepare


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A small prepared dataset."""
    prepare(tmp_path)
    return tmp_path / "out"
