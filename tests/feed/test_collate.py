import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from premask.feed.collate import PackCollator

collate = PackCollator()


def pack_of(*examples):
    """A pack of examples, each a list of ids; every token but the first of each example is trained."""
    ids = [token for example in examples for token in example]
    labels = [-100 if place == 0 else token for example in examples for place, token in enumerate(example)]
    positions = [place for example in examples for place in range(len(example))]
    return {
        "input_ids": ids,
        "labels": labels,
        "position_ids": positions,
        "seq_lengths": [len(example) for example in examples],
        "source_rows": list(range(len(examples))),
    }


def test_packs_become_one_flattened_sequence():
    batch = collate([pack_of([1, 2, 3], [4, 5]), pack_of([6, 7])])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[1, 2, 3, 4, 5, 6, 7]],
        "labels": [[-100, 2, 3, -100, 5, -100, 7]],
        "position_ids": [[0, 1, 2, 0, 1, 0, 1]],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_read_only_numpy_and_torch_columns_serve_as_well_as_lists():
    pack = pack_of([1, 2, 3], [4, 5])
    arrays = {name: np.array(column, np.int32) for name, column in pack.items()}
    for array in arrays.values():
        array.flags.writeable = False
    tensors = {name: torch.tensor(column, dtype=torch.int32) for name, column in pack.items()}
    for features in (arrays, tensors):
        batch, expected = collate([features]), collate([pack])
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
        batch["labels"][0, 1] = 9  # a copy: writing to it leaves the shard alone
        assert pack["labels"][1] == 2


@given(st.lists(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=5), min_size=1))
def test_positions_counted_from_lengths_are_those_of_the_shard(packs):
    features = [pack_of(*examples) for examples in packs]
    without = [{name: column for name, column in pack.items() if name != "position_ids"} for pack in features]
    assert torch.equal(collate(features)["position_ids"], collate(without)["position_ids"])


def test_what_cannot_be_told_apart_is_refused():
    pack = pack_of([1, 2], [3])
    with pytest.raises(ValueError, match=r"Pack 1 of the batch has neither position_ids nor seq_lengths"):
        collate([pack, {"input_ids": [1], "labels": [1]}])
    with pytest.raises(ValueError, match=r"Pack 0 .*found input_ids 3, labels 2, position_ids 3"):
        collate([{**pack, "labels": [1, 2]}])


def test_importing_it_does_not_import_torch():
    code = "import sys, premask.feed.collate as c; c.PackCollator(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
