"""The reader: read-only views of the memory map, found by source row, and every damage named with its remedy."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from premask.errors import DataError
from premask.store.manifest import FORMAT_VERSION, read_manifest, write_manifest
from premask.store.reader import open_prepared


def arrays(pack):
    return {name: getattr(pack, name) for name in pack.__slots__ if getattr(pack, name) is not None}


def test_packs_are_zero_copy_read_only_views(out):
    prepared = open_prepared(out)
    train = prepared["train"]
    before = pa.total_allocated_bytes()
    packs = list(train)
    assert pa.total_allocated_bytes() == before
    for name, values in arrays(packs[0]).items():
        flat = train.shard(0).columns[name]
        assert np.shares_memory(values, flat), name
        assert not values.flags.writeable
        assert not values.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's maps")
def test_the_views_lie_in_the_memory_map(out):
    split = open_prepared(out)["train"]
    path = split.path / split.shards[0].file
    ids = split[0].input_ids
    address = ids.__array_interface__["data"][0]
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    ranges = [[int(end, 16) for end in line[0].split("-")] for line in lines]
    assert any(start <= address < end for start, end in ranges)


def test_packs_hold_what_the_plan_says(tmp_path, prepare_in):
    plans = prepare_in(tmp_path)
    prepared = open_prepared(str(tmp_path / "out"))
    for name, plan in plans.items():
        split = prepared[name]
        rows = np.concatenate([plan.shard(number).source_row for number in range(plan.shards)])
        assert len(split) == plan.packs
        assert np.concatenate([pack.source_rows for pack in split]).tolist() == rows.tolist()
        for pack in split:
            assert len(pack.input_ids) == len(pack.labels) == len(pack.position_ids) == pack.seq_lengths.sum()
            assert (pack.source_turns, pack.loss_weights) == (None, None)
            assert np.flatnonzero(pack.position_ids == 0).tolist() == [0, *np.cumsum(pack.seq_lengths)[:-1].tolist()]


def test_optional_columns(tmp_path, prepare_in):
    prepare_in(tmp_path, source_turns=True, weights=True)
    for pack in open_prepared(tmp_path / "out")["train"]:
        assert pack.source_turns.shape == pack.source_rows.shape
        assert pack.loss_weights.dtype == np.float32
        assert np.array_equal(pack.loss_weights > 0, pack.labels != -100)


def test_it_is_a_sequence(out):
    split = open_prepared(out)["train"]
    ids = [pack.input_ids.tolist() for pack in split]
    assert split[-1].input_ids.tolist() == ids[-1]
    assert [pack.input_ids.tolist() for pack in split[1:5:2]] == ids[1:5:2]
    for index in (len(split), -len(split) - 1):
        with pytest.raises(IndexError, match=rf"expected a pack from 0 to {len(split) - 1}, found {index}"):
            split[index]


def test_find_gives_every_place_of_a_source_row(out):
    prepared = open_prepared(out)
    places = {}
    for name, split in prepared.splits.items():
        for pack, content in enumerate(split):
            for piece, row in enumerate(content.source_rows.tolist()):
                places.setdefault(row, []).append((name, pack, piece))
    for row in range(2100):
        assert prepared.find(row) == places.get(row, [])
    name, pack, piece = next(iter(places.values()))[0]
    assert (pack, piece) in prepared[name].find(next(iter(places)))


def test_a_split_pickles_as_its_paths(out):
    split = open_prepared(out)["train"]
    first = split[0]
    copy = pickle.loads(pickle.dumps(split))  # noqa: S301
    assert np.array_equal(copy[0].input_ids, first.input_ids)
    assert len(pickle.dumps(split)) < 10_000


def test_an_unknown_split_is_named(out):
    with pytest.raises(KeyError, match="expected one of the splits train, validation, found 'test'"):
        open_prepared(out)["test"]


def test_without_a_manifest_the_run_did_not_finish(out):
    (out / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest.json: expected a manifest, found none: .*did not finish; .* again"):
        open_prepared(out)


@pytest.mark.parametrize("version", [None, 2, "1"])
def test_an_unknown_format_version_is_refused(out, version):
    path = out / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": version}))
    with pytest.raises(DataError, match=rf"expected format version {FORMAT_VERSION}, found {version!r}; use the"):
        open_prepared(out)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format_version": 1}', '{"format_version": 1, "splits": {"a": 1}}']
)
def test_a_damaged_manifest_is_named(out, content):
    (out / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest.json: expected .*, found .*;"):
        open_prepared(out)


def test_the_manifest_is_deterministic_and_totals_its_shards(out):
    before = (out / "manifest.json").read_bytes()
    manifest = read_manifest(out)
    train = manifest["splits"]["train"]
    for name in ("packs", "examples", "tokens", "supervised_tokens", "bytes"):
        assert train[name] == sum(shard[name] for shard in train["shards"])
    write_manifest(out, dict(reversed(manifest.items())))
    assert (out / "manifest.json").read_bytes() == before
    assert before.endswith(b"}\n")


@pytest.mark.parametrize("damage", ["missing", "cut", "longer", "garbage", "another"])
def test_a_damaged_shard_is_named_with_its_remedy(out, damage):
    split = open_prepared(out)["train"]
    path = split.path / split.shards[0].file
    content = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "cut":
            path.write_bytes(content[:-100])
        case "longer":
            path.write_bytes(content + b"\0")
        case "garbage":
            path.write_bytes(b"x" * len(content))
        case "another":
            other = (split.path / split.shards[1].file).read_bytes()
            path.write_bytes(other[: len(content)].ljust(len(content), b"\0"))
    with pytest.raises(DataError, match=rf"{path.name}: expected .*, found:? .*; .*premask verify.*premask repair"):
        split[0]
    assert len(split[split.shards[0].packs].input_ids)  # the next shard is still read
