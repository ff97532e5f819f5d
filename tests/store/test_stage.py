"""Stage files give back what was written, as views, and reading the plan's columns leaves the ids on the disk."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from premask.dtypes import Examples
from premask.errors import DataError
from premask.store import stage as stage_module
from premask.store.atomic import HashedFile
from premask.store.gather import gather
from premask.store.receipts import unchanged
from premask.store.stage import read_stage, write_stage


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@given(counts=st.lists(st.integers(0, 9), max_size=4), seed=st.integers(0, 99), weighted=st.booleans())
def test_a_stage_gives_back_what_was_written(folder, examples_of, batches_of, counts, seed, weighted):
    batches = [examples_of(seed + n, count, weighted=weighted) for n, count in enumerate(counts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_module, "BATCH_TOKENS", 0)
        written = write_stage(folder / "stage.arrow", batches)
    assert unchanged(written)
    stage = read_stage(folder / "stage.arrow")
    assert len(stage) == sum(counts)
    for found, expected in zip(batches_of(folder / "stage.arrow"), batches, strict=True):
        for field in fields(Examples):
            values = getattr(found, field.name)
            assert np.array_equal(values, getattr(expected, field.name)), field.name
            assert values.dtype == getattr(expected, field.name).dtype, field.name
    for name in ("lengths", "supervised", "rows", "turns", "source_turns", "digests"):
        expected = [getattr(batch, name) for batch in batches]
        found = getattr(stage, name)
        assert found.tolist() == [row for part in expected for row in part.tolist()], name
        assert not expected or found.dtype == expected[0].dtype
    assert stage.weighted == any((batch.span_weights != 1).any() for batch in batches)


def test_equal_examples_give_equal_bytes(tmp_path, examples_of):
    first = write_stage(tmp_path / "a", [examples_of(1, 5), examples_of(2, 5)])
    again = write_stage(tmp_path / "b", [examples_of(1, 5), examples_of(2, 5)])
    assert first.sha256 == again.sha256


def test_batches_are_written_as_they_come(tmp_path, examples_of, monkeypatch):
    sizes = []
    write = HashedFile.write

    def watch(self, data):
        sizes.append(write(self, data))
        return sizes[-1]

    monkeypatch.setattr(HashedFile, "write", watch)
    monkeypatch.setattr(stage_module, "BATCH_TOKENS", 100)

    def batches():
        for number in range(3):
            before = sum(sizes)
            yield examples_of(number, 100)
            assert sum(sizes) > before

    write_stage(tmp_path / "stage", batches())


def resident(path: Path) -> int:
    """Bytes of the mapping of `path` that this process has touched."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's smaps")
def test_reading_the_columns_of_the_plan_does_not_touch_the_ids(tmp_path, examples_of):
    few = examples_of(0, 4)
    tokens = 4_000_000
    big = replace(few, ids=np.zeros(tokens, np.int32), offsets=np.linspace(0, tokens, 5).astype(np.int64))
    path = tmp_path / "stage.arrow"
    assert write_stage(path, [big]).size > 4 * tokens
    before = pa.total_allocated_bytes()
    stage = read_stage(path)
    assert stage.lengths.sum() == tokens
    assert len(stage.digests) == len(stage.supervised) == len(stage.rows) == 4
    assert resident(path) < tokens
    every = np.arange(4, dtype=np.int32)
    assert gather([stage], np.zeros_like(every), every, stage.lengths).ids.sum() == 0
    assert resident(path) > 3 * tokens
    assert pa.total_allocated_bytes() - before < 100_000


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "another"])
def test_a_damaged_stage_is_named(tmp_path, examples_of, damage):
    path = tmp_path / "stage.arrow"
    write_stage(path, [examples_of(0, 50)])
    content = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "text":
            path.write_text("not an Arrow file, but long enough to be taken for one")
        case "another":
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, pa.schema({"a": pa.int8()})):
                pass
    with pytest.raises(DataError, match=r"stage.arrow: expected a .*stage file.*, found.* run again"):
        read_stage(path)


def test_an_example_that_is_not_there_is_named(tmp_path, examples_of):
    write_stage(tmp_path / "stage.arrow", [examples_of(0, 5)])
    stage = read_stage(tmp_path / "stage.arrow")
    with pytest.raises(DataError, match=r"stage.arrow: expected example 5, found 5 examples"):
        list(stage.parts(np.array([0, 5], np.int32)))
