"""Stage files that stay open from shard to shard: which, how many, and that none of them is out of date."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from premask.errors import DataError
from premask.store import gather
from premask.store.gather import OpenStages, Room
from premask.store.stage import write_stage


def write(path: Path, examples, *, add: int = 0) -> str:
    write_stage(path, [replace(examples, ids=examples.ids + np.int32(add))])
    return str(path)


def ids_of(stage) -> list[int]:
    every = np.arange(len(stage), dtype=np.int32)
    return gather.gather([stage], np.zeros_like(every), every, stage.lengths).ids.tolist()


@pytest.fixture
def examples(examples_of):
    return examples_of(0, 5)


def test_a_file_is_opened_once(tmp_path, examples, monkeypatch):
    opened = []
    read_stage = gather.read_stage
    monkeypatch.setattr(gather, "read_stage", lambda path: opened.append(path.name) or read_stage(path))
    paths = [write(tmp_path / f"{n}.arrow", examples, add=n) for n in range(2)]
    stages = OpenStages(paths, Room())
    for _ in range(3):
        assert [ids_of(stages[n]) for n in range(2)] == [(examples.ids + n).tolist() for n in range(2)]
    assert opened == ["0.arrow", "1.arrow"]
    stages.room.close()
    assert ids_of(stages[1]) == (examples.ids + 1).tolist()
    assert opened == ["0.arrow", "1.arrow", "1.arrow"]


def test_a_file_that_was_written_again_is_opened_again(tmp_path, examples):
    room, path = Room(), write(tmp_path / "a.arrow", examples)
    before = room.stage(path)
    write(tmp_path / "a.arrow", examples, add=7)
    assert ids_of(room.stage(path)) == (examples.ids + 7).tolist()
    assert ids_of(before) == examples.ids.tolist()


def test_no_more_are_held_than_the_bound_allows(tmp_path, examples, monkeypatch):
    paths = [write(tmp_path / f"{n}.arrow", examples, add=n) for n in range(3)]
    monkeypatch.setattr(gather, "HELD_BYTES", 2 * Path(paths[0]).stat().st_size)
    room = Room()
    first = [room.stage(path) for path in paths]
    again = [room.stage(path) for path in paths]
    assert [a is b for a, b in zip(first, again, strict=True)] == [True, True, False]
    assert ids_of(again[2]) == (examples.ids + 2).tolist()


def test_a_file_that_is_gone_is_named(tmp_path, examples):
    room, path = Room(), write(tmp_path / "a.arrow", examples)
    room.stage(path)
    Path(path).unlink()
    with pytest.raises(DataError, match=r"a.arrow: expected a whole stage file"):
        room.stage(path)
