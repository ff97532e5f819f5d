"""The loader gives the packs of the shards, all of them, wherever it is stopped and however many ranks share them."""

import importlib
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import premask
from premask.feed.collate import PackCollator
from premask.feed.prefetch import prefetched
from premask.recipe import Recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Our samples in packs of 128 tokens, with loss weights, a validation split, and shards of about 512 tokens."""
    folder = tmp_path_factory.mktemp("loader") / "prepared"
    sources = sorted(str(path) for path in (ROOT / "data/samples").iterdir())
    recipe = Recipe(sources=sources, tokenizer=str(ROOT / "data/tokenizer"), max_length=128, validation=0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("premask.prepare"), "SHARD_TOKENS", 512)
        premask.prepare(recipe, folder)
    found = premask.open(folder)
    assert len(found["train"].shards) > 2 and "loss_weights" in found.manifest["columns"]
    return found


def packs_of(batch):
    """The ids of a batch cut at its examples, as bytes."""
    return [part.numpy().tobytes() for part in torch.split(batch.ids, batch.cu_seqlens.diff().tolist())]


def test_a_batch_is_its_packs_end_to_end(prepared):
    loader = prepared.loader(batch_size=5, micro_batch_size=3)
    split, numbers = prepared["train"], []
    for step in loader:
        packs = loader.schedule(0).step(step.number)
        numbers += packs.tolist()
        assert [len(batch.source_rows) > 0 for batch in step.batches] == [True] * -(-len(packs) // 3)
        for place, batch in enumerate(step.batches):
            wanted = [split[number] for number in packs[place * 3 : place * 3 + 3].tolist()]
            columns = PackCollator()([{name: getattr(pack, name) for name in pack.__slots__} for pack in wanted])
            for name, column in columns.items():
                found = getattr(batch, name)
                assert found.dtype == torch.int64 and torch.equal(found, column)
            lengths = np.concatenate([pack.seq_lengths for pack in wanted])
            assert batch.cu_seqlens.tolist() == [0, *np.cumsum(lengths).tolist()]
            assert batch.max_seqlen == lengths.max()
            assert batch.source_rows.tolist() == np.concatenate([pack.source_rows for pack in wanted]).tolist()
            trained = (columns["labels"][0] != -100).nonzero()[:, 0]
            assert torch.equal(batch.rows, trained - 1) and torch.equal(batch.targets, columns["labels"][0, trained])
            weights = torch.tensor(np.concatenate([pack.loss_weights for pack in wanted]))
            assert torch.equal(batch.weights, weights[trained])
    assert sorted(numbers) == list(range(len(split)))


def test_counts_and_denominators_are_those_of_the_manifest(prepared):
    steps = list(prepared.loader(batch_size=4))
    told = prepared.manifest["splits"]["train"]
    assert len(steps) == len(prepared.loader(batch_size=4)) == -(-told["packs"] // 4)
    assert sum(step.tokens for step in steps) == told["tokens"]
    assert sum(step.trained for step in steps) == told["supervised_tokens"]
    for step in steps:
        weight = sum(float(batch.weights.double().sum()) for batch in step.batches)
        assert step.denominator == pytest.approx(weight, rel=1e-12)
        assert step.denominator != step.trained or weight == step.trained


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_every_step_without_padding_or_loss(prepared, world_size):
    alone = list(prepared.loader(batch_size=5))
    ranks = [list(prepared.loader(batch_size=5, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for steps in zip(alone, *ranks, strict=True):
        whole, *shares = steps
        assert {(step.denominator, step.tokens, step.trained) for step in steps} == {
            (whole.denominator, whole.tokens, whole.trained)
        }
        examples = sorted(example for share in shares for batch in share.batches for example in packs_of(batch))
        assert examples == sorted(example for batch in whole.batches for example in packs_of(batch))
        counts = [len(share.batches) for share in shares]
        assert max(counts) - min(counts) <= 1  # with seven ranks some have none


def test_it_goes_on_where_it_stood_also_with_other_ranks(prepared):
    whole = prepared.loader(batch_size=4, epochs=2, seed=3)
    expected = [sorted(packs_of(batch) for batch in step.batches) for step in whole]
    first = prepared.loader(batch_size=4, epochs=2, seed=3, prefetch=2)
    seen = []
    for step in first:  # into the second epoch
        seen.append(sorted(packs_of(batch) for batch in step.batches))
        if step.number == whole.steps_per_epoch + 1:
            break
    state = first.state_dict()
    assert state["position"] == whole.steps_per_epoch + 2
    ranks = [prepared.loader(batch_size=4, epochs=2, seed=3, rank=rank, world_size=3) for rank in range(3)]
    for loader in ranks:
        loader.load_state_dict(state)
    seen += [sorted(packs_of(b) for share in shares for b in share.batches) for shares in zip(*ranks, strict=True)]
    assert seen == expected
    assert expected[0] != expected[whole.steps_per_epoch]


def test_what_would_not_be_the_same_steps_is_refused(prepared):
    state = prepared.loader(batch_size=4).state_dict()
    with pytest.raises(premask.UsageError, match="batch_size 4, found 5"):
        prepared.loader(batch_size=5).load_state_dict(state)
    with pytest.raises(premask.UsageError, match="seed 0, found 1"):
        prepared.loader(batch_size=4, seed=1).load_state_dict(state)
    with pytest.raises(premask.UsageError, match="batch_size: expected at least 1, found 0"):
        prepared.loader(batch_size=0)
    with pytest.raises(premask.UsageError, match=r"rank: expected 0 to 1 \(world_size - 1\), found 2"):
        prepared.loader(batch_size=1, rank=2, world_size=2)


def test_resuming_reads_no_pack(prepared, monkeypatch):
    loader = prepared.loader(batch_size=4, epochs=1000)
    loader.load_state_dict({**loader.state_dict(), "position": 900 * loader.steps_per_epoch + 1})
    read = []
    place = type(prepared["train"]).place
    monkeypatch.setattr(type(prepared["train"]), "place", lambda self, n: read.append(n) or place(self, n))
    step = next(iter(loader))
    assert (step.epoch, step.number) == (900, 900 * loader.steps_per_epoch + 1)
    assert sorted(read) == sorted(2 * loader.packs(step.number).tolist())  # once for the weights


def test_a_thread_reads_ahead_and_hands_its_errors_on(prepared):
    plain, ahead = (list(prepared.loader(batch_size=4, prefetch=prefetch)) for prefetch in (0, 2))
    assert [packs_of(b) for s in plain for b in s.batches] == [packs_of(b) for s in ahead for b in s.batches]
    made = []

    def steps():
        for step in plain:
            made.append(step.number)
            yield step
        raise OSError("the disk is gone")

    few = prefetched(steps(), 2, "cpu")
    next(few)
    few.close()
    assert len(made) <= 4 and not [thread for thread in threading.enumerate() if thread.name == "premask-prefetch"]
    with pytest.raises(OSError, match="the disk is gone"):
        list(prefetched(steps(), 2, "cpu"))


def test_labels_that_are_not_the_planned_ones_are_noticed(prepared, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(prepared.path, folder)
    shard = folder / "train" / prepared["train"].shards[0].file
    data = bytearray(shard.read_bytes())
    label = np.int32(prepared["train"][0].labels[prepared["train"][0].labels != -100][0]).tobytes()
    place = data.rindex(label, 0, data.rindex(prepared["train"][0].position_ids.tobytes()))
    data[place : place + 4] = np.int32(-100).tobytes()
    shard.write_bytes(data)
    with pytest.raises(premask.DataError, match=r"expected \d+ trained tokens, as planned, found \d+"):
        list(premask.open(folder).loader(batch_size=4))


def test_a_curriculum_keeps_its_stages(tmp_path):
    source = str(ROOT / "data/samples/tutor.sharegpt.jsonl")
    recipe = Recipe(
        sources=[source],
        tokenizer=str(ROOT / "data/tokenizer"),
        max_length=512,
        order="curriculum",
        curriculum={"by": "length", "up_to": [80, 160]},
    )
    premask.prepare(recipe, tmp_path / "prepared")
    prepared = premask.open(tmp_path / "prepared")
    longest = [max(b.max_seqlen for b in step.batches) for step in prepared.loader(batch_size=1, epochs=1)]
    assert [(x > 80) + (x > 160) for x in longest] == sorted((x > 80) + (x > 160) for x in longest)
    assert len({(x > 80) + (x > 160) for x in longest}) == 3


def test_opening_a_dataset_does_not_import_torch(prepared):
    code = f"import sys, premask; premask.open({str(prepared.path)!r})['train'][0]; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
