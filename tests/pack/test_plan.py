"""The plan is a partition of the examples, depends on its inputs alone, and cuts shards of equal tokens."""

import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from premask.errors import DataError, UsageError
from premask.pack.best_fit import PACKERS, lower_bound, sequential
from premask.pack.plan import Candidates, PlanStage, cut_shards, make_plan, shuffle


def candidates_of(lengths):
    lengths = np.array(lengths, np.int32)
    count = len(lengths)
    return Candidates(
        partition=np.arange(count, dtype=np.int32) % 3,
        index=np.arange(count, dtype=np.int32) // 3,
        source_row=np.arange(count, dtype=np.int64) * 2,
        source_turn=np.broadcast_to(np.int32(-1), count),
        length=lengths,
        supervised=lengths // 2,
    )


@st.composite
def plans(draw):
    capacity = draw(st.integers(1, 40))
    lengths = draw(st.lists(st.integers(1, capacity), max_size=60))
    options = {
        "capacity": capacity,
        "seed": draw(st.none() | st.integers(0, 2**64)),
        "shard_tokens": draw(st.integers(1, 200)),
    }
    return candidates_of(lengths), options


@given(plans())
def test_every_example_is_in_one_pack_of_one_shard(case):
    candidates, options = case
    plan = make_plan(candidates, **options)
    rows = [plan.shard(number) for number in range(plan.shards)]
    assert sorted(np.concatenate([part.source_row for part in rows]).tolist()) == candidates.source_row.tolist()
    assert sum(map(len, rows)) == len(plan) == len(candidates)
    pack = np.concatenate([part.pack for part in rows])
    assert np.unique(pack).tolist() == list(range(plan.packs))
    assert (np.diff(pack) >= 0).all()
    tokens = np.bincount(pack, weights=np.concatenate([part.length for part in rows]))
    assert (tokens <= options["capacity"]).all()
    for number, part in enumerate(rows):
        assert (part.shard == number).all()
        assert len(part) or not len(plan)
        for column in ("partition", "index", "length", "supervised", "source_turn"):
            expected = getattr(candidates, column)[part.source_row // 2]
            assert np.array_equal(getattr(part, column), expected)


@given(plans())
def test_within_a_pack_examples_keep_their_global_order(case):
    candidates, options = case
    plan = make_plan(candidates, **options)
    for start, end in zip(plan.pack_offsets[:-1], plan.pack_offsets[1:], strict=True):
        assert (np.diff(plan.order[start:end]) > 0).all()


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(30, 200))
def test_shards_are_cut_by_tokens_and_none_is_empty(tokens, shard_tokens):
    bounds = cut_shards(np.array(tokens, np.int32), shard_tokens)
    total = sum(tokens)
    shards = max(1, total // shard_tokens)
    ends = np.cumsum([0, *tokens])
    expected = [next(p for p in range(len(tokens)) if ends[p] >= s * total // shards) for s in range(shards) if tokens]
    assert bounds.tolist() == [*(expected or [0]), len(tokens)]
    if tokens:
        assert (np.diff(bounds) > 0).all()
        sizes = np.diff(ends[bounds])
        assert sizes.max() <= total / shards + max(tokens)


def test_the_plan_depends_on_the_seed_and_nothing_else():
    candidates = candidates_of(np.random.default_rng(0).integers(1, 100, 500))
    options = {"capacity": 100, "shard_tokens": 1000}
    first, again, other = (make_plan(candidates, seed=seed, **options) for seed in (1, 1, 2))
    assert np.array_equal(first.order, again.order)
    assert not np.array_equal(first.order, other.order)
    assert len(first.order) == len(other.order)


def test_the_shuffle_is_pinned():
    """The very permutations: another one would change the bytes of every dataset."""
    assert shuffle(8, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert shuffle(8, 42).tolist() == [4, 1, 3, 6, 0, 7, 2, 5]
    assert shuffle(4, None).tolist() == [0, 1, 2, 3]
    assert shuffle(0, 0).tolist() == []


@given(st.integers(0, 300), st.integers(0, 2**63))
def test_a_shuffle_is_a_permutation(count, seed):
    assert sorted(shuffle(count, seed).tolist()) == list(range(count))


def test_without_a_seed_sequential_packing_keeps_the_order():
    plan = make_plan(candidates_of([5, 5, 5, 1, 9]), capacity=10, seed=None, shard_tokens=100, packer=sequential)
    assert plan.order.tolist() == [0, 1, 2, 3, 4]
    assert plan.pack_offsets.tolist() == [0, 2, 4, 5]


def test_without_a_seed_packs_come_in_the_order_of_their_first_examples():
    plan = make_plan(candidates_of([1, 9, 5, 5, 9]), capacity=10, seed=None, shard_tokens=100)
    assert [plan.order[a:b].tolist() for a, b in pairwise(plan.pack_offsets)] == [[0, 1], [2, 3], [4]]


@st.composite
def staged(draw):
    candidates, options = draw(plans())
    number = st.integers(0, max(0, len(candidates) - 1))
    stages = []
    for members in draw(st.lists(st.lists(number, max_size=30 if len(candidates) else 0), max_size=4)):
        cuts = draw(st.none() | st.lists(st.integers(0, len(members)), max_size=3).map(sorted))
        parts = None if cuts is None else [0, *cuts, len(members)]
        stages.append(PlanStage(np.array(members, np.int32), parts))
    return candidates, options | {"packer": PACKERS[draw(st.sampled_from(sorted(PACKERS)))]}, stages


@given(staged())
def test_no_pack_crosses_a_stage_or_a_part(case):
    candidates, options, stages = case
    plan = make_plan(candidates, stages=stages, **options)
    packs = [plan.order[a:b].tolist() for a, b in pairwise(plan.pack_offsets)]
    assert all(0 < sum(candidates.length[pack]) <= options["capacity"] for pack in packs)
    assert plan.stage_offsets.tolist()[:: len(stages) or 1] == [0, plan.packs] if stages else plan.packs == 0
    bound = 0
    for stage, (first, last) in zip(stages, pairwise(plan.stage_offsets), strict=True):
        members = packs[first:last]
        assert Counter(n for pack in members for n in pack) == Counter(stage.examples.tolist())
        bound += lower_bound(candidates.length[stage.examples], options["capacity"])
        if stage.parts is not None:
            apart = [
                make_plan(candidates, stages=[PlanStage(stage.examples[a:b])], **(options | {"seed": None}))
                for a, b in pairwise(stage.parts)
            ]
            expected = [tuple(p.order[a:b].tolist()) for p in apart for a, b in pairwise(p.pack_offsets)]
            assert Counter(map(tuple, members)) == Counter(expected)
    assert plan.packs_at_least == bound <= plan.packs
    rows = [plan.shard(number) for number in range(plan.shards)]
    assert np.concatenate([part.source_row for part in rows]).tolist() == [2 * n for pack in packs for n in pack]


def test_every_stage_is_shuffled_in_its_own_way():
    candidates = candidates_of([10] * 50)
    everything = PlanStage(np.arange(50, dtype=np.int32))
    plan = make_plan(candidates, capacity=10, seed=3, shard_tokens=100, stages=[everything, everything])
    alone = make_plan(candidates, capacity=10, seed=3, shard_tokens=100)
    assert plan.order[:50].tolist() == alone.order.tolist() != plan.order[50:].tolist()


def test_an_example_of_a_stage_that_is_too_long_is_named():
    stage = PlanStage(np.array([0, 2], np.int32))
    with pytest.raises(DataError, match=r"source row 4 \(partition 2, example 0\): expected 1 to 10 tokens, found 11"):
        make_plan(candidates_of([10, 12, 11]), capacity=10, seed=0, shard_tokens=100, stages=[stage])


def test_no_examples_make_one_empty_shard():
    plan = make_plan(candidates_of([]), capacity=10, seed=0, shard_tokens=100)
    assert (plan.packs, plan.shards, len(plan.shard(0))) == (0, 1, 0)


def test_an_example_longer_than_the_capacity_is_named():
    with pytest.raises(DataError, match=r"source row 2 \(partition 1, example 0\): expected 1 to 10 tokens, found 11"):
        make_plan(candidates_of([10, 11]), capacity=10, seed=0, shard_tokens=100)


@pytest.mark.parametrize("shard_tokens", [0, 2**29 + 1])
def test_shard_tokens_that_arrow_lists_cannot_hold_are_refused(shard_tokens):
    with pytest.raises(UsageError, match="shard_tokens and capacity: expected 1 to 536870912"):
        make_plan(candidates_of([1]), capacity=10, seed=0, shard_tokens=shard_tokens)


def test_planning_takes_few_bytes_an_example():
    lengths = np.minimum(np.random.default_rng(0).lognormal(6.3, 1.0, 200_000).astype(np.int32) + 1, 4096)
    candidates = candidates_of(lengths)
    tracemalloc.start()
    plan = make_plan(candidates, capacity=4096, seed=0, shard_tokens=5_000_000)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(plan) == len(lengths)
    assert held < 12 * len(lengths)
    assert peak < 24 * len(lengths)
