"""Shards against a naive loop over examples and tokens; their bytes, their schema; a plan for other stages."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premask.errors import DataError
from premask.pack.plan import make_plan
from premask.store import stage as stage_module
from premask.store.atomic import Written
from premask.store.gather import gather, labels, lengths_of, loss_weights, positions
from premask.store.receipts import unchanged
from premask.store.shards import SHARD_COLUMNS, shard_schema, write_shard
from premask.store.stage import read_stage, write_stage


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shards")


def example(batches, index):
    """ids, spans and weights of one example, by counting through the batches."""
    for batch in batches:
        if index < len(batch):
            ids = batch.ids[batch.offsets[index] : batch.offsets[index + 1]].tolist()
            spans = slice(batch.span_offsets[index], batch.span_offsets[index + 1])
            return ids, batch.spans[spans].tolist(), batch.span_weights[spans].tolist()
        index -= len(batch)
    raise IndexError


def naive_shard(batches, rows):
    """The rows of a shard, token by token, from the batches of every stage."""
    packs = {}
    for n in range(len(rows)):
        pack = packs.setdefault(int(rows.pack[n]), {name: [] for name in SHARD_COLUMNS})
        ids, spans, weights = example(batches[int(rows.partition[n])], int(rows.index[n]))
        for position, token in enumerate(ids):
            inside = [w for (start, end), w in zip(spans, weights, strict=True) if start <= position < end]
            pack["input_ids"].append(token)
            pack["labels"].append(token if inside else -100)
            pack["position_ids"].append(position)
            pack["loss_weights"].append(inside[0] if inside else 0.0)
        pack["seq_lengths"].append(len(ids))
        pack["source_rows"].append(int(rows.source_row[n]))
        pack["source_turns"].append(int(rows.source_turn[n]))
    return [packs[number] for number in sorted(packs)]


def plan_of(stages, candidates_of, seed=0):
    return make_plan(candidates_of(stages), capacity=16, seed=seed, shard_tokens=50)


@given(
    seed=st.integers(0, 10**6),
    partitions=st.integers(1, 4),
    batches=st.integers(0, 3),
    count=st.integers(0, 6),
    turns=st.booleans(),
    weights=st.booleans(),
    joined=st.booleans(),
)
@settings(deadline=None)
def test_shards_are_the_naive_gathering(
    folder, write_stages, batches_of, candidates_of, seed, partitions, batches, count, turns, weights, joined
):
    with pytest.MonkeyPatch.context() as patch:
        if not joined:
            patch.setattr(stage_module, "BATCH_TOKENS", 0)
        stages = write_stages(folder, seed, partitions, batches, count=count, weighted=weights)
    plan = plan_of(stages, candidates_of, seed)
    for number in range(plan.shards):
        rows = plan.shard(number)
        path = folder / "shard.arrow"
        entry = write_shard(path, stages, rows, source_turns=turns, weights=weights)
        with pa.OSFile(str(path)) as file:
            found = pa.ipc.open_stream(file).read_all()
        found.validate(full=True)
        expected = naive_shard({n: batches_of(stage.path) for n, stage in stages.items()}, rows)
        asked = {"source_turns": turns, "loss_weights": weights}
        names = [name for name in SHARD_COLUMNS if asked.get(name, True)]
        assert found.column_names == names
        assert found.to_pylist() == [{name: pack[name] for name in names} for pack in expected]
        assert (entry.packs, entry.examples) == (len(expected), len(rows))
        assert entry.tokens == sum(len(pack["labels"]) for pack in expected)
        assert entry.supervised_tokens == sum(label != -100 for pack in expected for label in pack["labels"])
        assert unchanged(Written(path, entry.bytes, entry.sha256))


@given(st.lists(st.integers(1, 9), max_size=30))
def test_positions_restart_with_every_example(lengths):
    expected = [position for length in lengths for position in range(length)]
    found = positions(np.array(lengths, np.int32))
    assert found.tolist() == expected
    assert found.dtype == np.int32


def test_the_first_token_of_an_example_is_never_trained(tmp_path, write_stages):
    stages = write_stages(tmp_path, 0, 2, 2, count=40, weighted=True)
    partition = np.array([1, 0] * 30, np.int32)
    index = np.arange(60, dtype=np.int32)
    examples = gather(stages, partition, index, lengths_of(stages, partition, index))
    firsts = np.cumsum(examples.lengths) - examples.lengths
    assert (labels(examples)[firsts] == -100).all()
    assert (loss_weights(examples)[firsts] == 0).all()
    assert np.array_equal(loss_weights(examples) > 0, labels(examples) != -100)


def test_equal_plans_give_equal_bytes(tmp_path, write_stages, candidates_of):
    stages = write_stages(tmp_path, 0, 2, 2)
    rows = plan_of(stages, candidates_of).shard(0)
    first = write_shard(tmp_path / "data-00000-of-00001.arrow", stages, rows)
    content = (tmp_path / first.file).read_bytes()
    again = write_shard(tmp_path / "data-00000-of-00001.arrow", stages, rows)
    assert first == again
    assert content == (tmp_path / first.file).read_bytes()


def test_the_bytes_do_not_depend_on_how_a_stage_was_cut_into_batches(
    tmp_path, write_stages, batches_of, candidates_of, monkeypatch
):
    monkeypatch.setattr(stage_module, "BATCH_TOKENS", 0)
    shas = set()
    for cuts in ([6], [1, 5], [2, 2, 2]):
        stages = write_stages(tmp_path, 5, 1, 1, count=6)
        batch = batches_of(stages[0].path)[0]
        parts, start = [], 0
        for count in cuts:
            tokens = slice(batch.offsets[start], batch.offsets[start + count])
            spans = slice(batch.span_offsets[start], batch.span_offsets[start + count])
            of = slice(start, start + count)
            parts.append(
                replace(
                    batch,
                    ids=batch.ids[tokens],
                    offsets=batch.offsets[start : start + count + 1] - tokens.start,
                    spans=batch.spans[spans],
                    span_offsets=batch.span_offsets[start : start + count + 1] - spans.start,
                    span_weights=batch.span_weights[spans],
                    rows=batch.rows[of],
                    turns=batch.turns[of],
                    source_turns=batch.source_turns[of],
                    digests=batch.digests[of],
                )
            )
            start += count
        write_stage(tmp_path / "cut.arrow", parts)
        again = {0: read_stage(tmp_path / "cut.arrow")}
        shas.add(write_shard(tmp_path / "x", again, plan_of(again, candidates_of).shard(0)).sha256)
    assert len(shas) == 1


def test_a_plan_for_other_stages_is_refused(tmp_path, write_stages, candidates_of):
    rows = plan_of(write_stages(tmp_path, 0, 2, 2), candidates_of).shard(0)
    others = write_stages(tmp_path, 1, 2, 2)
    with pytest.raises(DataError, match=r"x: source row \d+: expected \d+ tokens, \d+ supervised, as planned; found"):
        write_shard(tmp_path / "x", others, rows)
    assert not (tmp_path / "x").exists()


def test_the_schema_names_its_features_as_sequences():
    schema = shard_schema(source_turns=True, weights=True)
    assert json.loads(schema.metadata[b"huggingface"])["info"]["features"] == {
        name: {"feature": {"dtype": dtype, "_type": "Value"}, "_type": "Sequence"}
        for name, dtype in [
            ("input_ids", "int32"),
            ("labels", "int32"),
            ("position_ids", "int32"),
            ("seq_lengths", "int32"),
            ("source_rows", "int64"),
            ("source_turns", "int32"),
            ("loss_weights", "float32"),
        ]
    }
    assert shard_schema(source_turns=False, weights=False).names == list(SHARD_COLUMNS)[:5]
