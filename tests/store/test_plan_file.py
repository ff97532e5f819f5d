"""plan.arrow gives back the plan, shard by shard, as views."""

from dataclasses import fields

import numpy as np
import pyarrow as pa
import pytest

from premask.errors import DataError
from premask.pack.plan import PlanRows, make_plan
from premask.store.plan_file import PLAN_COLUMNS, read_plan, write_plan


@pytest.fixture
def plans(tmp_path, write_stages, candidates_of):
    candidates = candidates_of(write_stages(tmp_path, 0, 3, 2))
    cuts = {"train": slice(0, 30), "validation": slice(30, None), "empty": slice(0, 0)}
    return {name: make_plan(candidates.take(cut), capacity=16, seed=0, shard_tokens=40) for name, cut in cuts.items()}


def test_a_plan_is_read_as_it_was_written(tmp_path, plans):
    written = write_plan(tmp_path / "plan.arrow", plans)
    stored = read_plan(tmp_path / "plan.arrow")
    assert stored.shards == {name: plan.shards for name, plan in plans.items()}
    assert stored.shards["train"] > 1
    for name, plan in plans.items():
        for number, found in enumerate(stored.rows(name)):
            expected = plan.shard(number)
            for field in fields(PlanRows):
                values = getattr(found, field.name)
                assert np.array_equal(values, getattr(expected, field.name))
                assert values.dtype == getattr(expected, field.name).dtype
                assert not values.flags.writeable
    assert write_plan(tmp_path / "again.arrow", plans).sha256 == written.sha256


def test_the_file_is_plain_arrow(tmp_path, plans):
    write_plan(tmp_path / "plan.arrow", plans)
    with pa.OSFile(str(tmp_path / "plan.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.column_names == list(PLAN_COLUMNS)
    assert len(table) == sum(map(len, plans.values()))
    assert table["split"].to_pylist() == [0] * len(plans["train"]) + [1] * len(plans["validation"])


def test_a_shard_that_is_not_there(tmp_path, plans):
    write_plan(tmp_path / "plan.arrow", plans)
    stored = read_plan(tmp_path / "plan.arrow")
    with pytest.raises(IndexError, match=r"empty: expected a shard from 0 to 0, found 1"):
        stored.shard("empty", 1)


@pytest.mark.parametrize("damage", ["missing", "cut", "another", "no metadata"])
def test_a_damaged_plan_is_named(tmp_path, plans, damage):
    path = tmp_path / "plan.arrow"
    write_plan(path, plans)
    match damage:
        case "missing":
            path.unlink()
        case "cut":
            path.write_bytes(path.read_bytes()[:-9])
        case "another" | "no metadata":
            metadata = {"splits": "[]"} if damage == "another" else None
            with pa.OSFile(str(path), "wb") as file:
                pa.ipc.new_file(file, pa.schema({"a": pa.int8()}, metadata=metadata)).close()
    with pytest.raises(DataError, match=r"plan.arrow: expected a plan.*, found.*; run again"):
        read_plan(path)
