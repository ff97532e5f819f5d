"""The folder is a DatasetDict: its JSON is what datasets 2.19 writes, and today's datasets loads it."""

import json

import pytest

from premask.pack.plan import make_plan
from premask.store.layout import fingerprint, shard_name, shard_path, write_layout
from premask.store.manifest import read_manifest, split_entry, split_shards, write_manifest
from premask.store.reader import open_prepared
from premask.store.shards import write_shard

DATASET_INFO = """{
  "citation": "",
  "description": "",
  "features": {
    "input_ids": {
      "feature": {
        "dtype": "int32",
        "_type": "Value"
      },
      "_type": "Sequence"
    },
    "labels": {
      "feature": {
        "dtype": "int32",
        "_type": "Value"
      },
      "_type": "Sequence"
    },
    "position_ids": {
      "feature": {
        "dtype": "int32",
        "_type": "Value"
      },
      "_type": "Sequence"
    },
    "seq_lengths": {
      "feature": {
        "dtype": "int32",
        "_type": "Value"
      },
      "_type": "Sequence"
    },
    "source_rows": {
      "feature": {
        "dtype": "int64",
        "_type": "Value"
      },
      "_type": "Sequence"
    }
  },
  "homepage": "",
  "license": ""
}
"""


def test_names(tmp_path):
    assert shard_name(3, 128) == "data-00003-of-00128.arrow"
    assert shard_path(tmp_path, "train", 0, 1) == tmp_path / "train" / "data-00000-of-00001.arrow"


def test_dataset_info_is_what_datasets_2_19_writes(out):
    assert (out / "train" / "dataset_info.json").read_text() == DATASET_INFO


def test_state_names_the_shards_and_nothing_that_changes(out):
    shards = split_shards(out, read_manifest(out))["train"]
    assert len(shards) > 1
    assert json.loads((out / "train" / "state.json").read_text()) == {
        "_data_files": [{"filename": shard.file} for shard in shards],
        "_fingerprint": fingerprint(shards),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    assert json.loads((out / "dataset_dict.json").read_text()) == {"splits": ["train", "validation"]}


@pytest.mark.parametrize("options", [{}, {"source_turns": True, "weights": True}], ids=["plain", "all"])
def test_datasets_loads_it(tmp_path, prepare_in, options):
    datasets = pytest.importorskip("datasets")
    prepare_in(tmp_path, **options)
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    prepared = open_prepared(tmp_path / "out")
    assert list(loaded) == list(prepared) == ["train", "validation"]
    for name, split in prepared.splits.items():
        assert len(loaded[name]) == len(split)
        assert loaded[name].split == name
        for row, pack in zip(loaded[name], split, strict=True):
            present = {n: getattr(pack, n) for n in pack.__slots__ if getattr(pack, n) is not None}
            assert set(row) == set(present)
            assert row == {column: values.tolist() for column, values in present.items()}


def test_datasets_keeps_the_types(out):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_from_disk(str(out))["train"]
    assert {field.name: str(field.type.value_type) for field in loaded.data.schema} == {
        "input_ids": "int32",
        "labels": "int32",
        "position_ids": "int32",
        "seq_lengths": "int32",
        "source_rows": "int64",
    }


def test_the_same_input_gives_the_same_bytes(tmp_path, prepare_in):
    for name in ("a", "b"):
        prepare_in(tmp_path / name)
    files = [sorted(path for path in (tmp_path / name / "out").rglob("*") if path.is_file()) for name in ("a", "b")]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert len(files[0]) > 8
    for first, second in zip(*files, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_an_empty_split_loads(tmp_path, write_stages, candidates_of):
    stages = write_stages(tmp_path, 0, 1, 0)
    plan = make_plan(candidates_of(stages), capacity=8, seed=0, shard_tokens=8)
    entry = write_shard(shard_path(tmp_path, "train", 0, 1), stages, plan.shard(0))
    write_layout(tmp_path, {"train": [entry]})
    write_manifest(tmp_path, {"splits": {"train": split_entry([entry])}})
    assert len(open_prepared(tmp_path)["train"]) == 0
    assert open_prepared(tmp_path).find(0) == []
    datasets = pytest.importorskip("datasets")
    assert len(datasets.load_from_disk(str(tmp_path))["train"]) == 0
