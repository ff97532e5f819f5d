"""Phase 2 as a whole: what a recipe says of duplicates, splits, weights, repeats and stages holds in the plans."""

from collections import Counter
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from premask.errors import DataError
from premask.pack.pool import Pool
from premask.planning import Planned, plan_splits
from premask.recipe import Recipe

COUNT = 3000


def digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


class Data:
    """Two sources of examples, one a row; every tenth conversation of the second stands in the first as well."""

    def __init__(self, count: int = COUNT, order: tuple[int, int] = (0, 1)) -> None:
        rng = np.random.default_rng(0)
        own = [[f"a{n}" for n in range(count)], [f"a{n}" if n % 10 == 0 else f"b{n}" for n in range(count)]]
        lengths = {name: int(rng.integers(1, 200)) for names in own for name in names}
        self.names = [name for source in order for name in own[source]]
        self.digests = np.frombuffer(b"".join(map(digest, self.names)), np.uint8).reshape(-1, 16)
        length = np.array([lengths[name] for name in self.names], np.int32)
        self.pool = Pool(
            starts=np.arange(0, 2 * count + 1, count // 2),
            first_rows=np.arange(0, 2 * count, count // 2),
            sources=np.array([0, 0, 1, 1], np.int32),
            row=np.tile(np.arange(count // 2, dtype=np.int32), 4),
            length=length,
            supervised=length // 2 + 1,
            turns=np.array([1 + len(name) % 4 for name in self.names], np.int32),
            source_turn=np.broadcast_to(np.int32(-1), 2 * count),
        )

    def plan(self, sources: Any = ("a.jsonl", "b.jsonl"), **options: Any) -> Planned:
        recipe = Recipe(sources=list(sources), tokenizer="t", max_length=512, **options)
        return plan_splits(recipe, self.pool, lambda: [self.digests[:999], self.digests[999:]], 2**14)

    def split(self, planned: Planned, split: str) -> Counter[str]:
        return Counter(self.names[n] for n in planned.plans[split].order.tolist())


DATA = Data()


def rejected_of(planned: Planned) -> Counter[str]:
    """How many source rows selection left out, by reason."""
    return Counter(lost.reason for partition in range(4) for lost in planned.lost(partition))


def test_by_default_every_example_is_packed_once() -> None:
    planned = DATA.plan()
    assert DATA.split(planned, "train") == Counter(DATA.names)
    assert list(planned.plans) == ["train"]
    assert not rejected_of(planned)


def test_duplicates_go_wherever_they_stand() -> None:
    planned = DATA.plan(duplicates="drop")
    assert DATA.split(planned, "train") == Counter(set(DATA.names))
    assert rejected_of(planned) == {"duplicate": COUNT // 10}
    assert [lost.row for lost in planned.lost(2)] == list(range(0, COUNT // 2, 10))
    assert planned.account[1]["duplicate"]["examples"] == COUNT // 10


def test_a_conversation_is_on_one_side() -> None:
    planned = DATA.plan(validation=0.1)
    train, aside = DATA.split(planned, "train"), DATA.split(planned, "validation")
    assert not set(train) & set(aside)
    assert train + aside == Counter(DATA.names)
    assert 0.08 < len(aside) / len(set(DATA.names)) < 0.12


def test_more_data_does_not_reshuffle_the_old_split() -> None:
    more = Data(count=2 * COUNT, order=(1, 0))
    old = set(DATA.split(DATA.plan(validation=0.1, seed=1), "validation"))
    new = set(more.split(more.plan(validation=0.1, seed=2), "validation"))
    assert old == new & set(DATA.names)


def test_weights_are_shares_and_repeats_bound_them() -> None:
    sources = [{"path": "a", "weight": 1}, {"path": "b", "weight": 2, "repeat": 3}]
    planned = DATA.plan(sources, validation=0.1)
    uses = np.bincount(planned.plans["train"].order, minlength=len(DATA.names))
    first, second = uses[:COUNT], uses[COUNT:]
    assert abs(second.sum() - 2 * first.sum()) <= 1
    assert set(first.tolist()) == {0, 1}
    assert second.max() == 3 or first[planned.selection.fate[:COUNT] != 1].min() == 1
    entry = planned.account[1]
    assert entry["train"]["examples"] + entry["repeated"]["examples"] == second.sum()
    assert set(DATA.split(planned, "validation").values()) == {1, 2}  # twice: what stands in both sources


def test_the_seed_decides_what_a_weight_lets_in() -> None:
    sources = [{"path": "a", "weight": 1}, {"path": "b", "weight": 3}]
    one, again, other = (set(DATA.plan(sources, seed=seed).plans["train"].order.tolist()) for seed in (1, 1, 2))
    assert one == again != other


def test_a_curriculum_is_simple_first() -> None:
    by = DATA.pool.turns
    for schedule in ("rest", "everything"):
        plan = DATA.plan(order="curriculum", curriculum={"by": "turns", "up_to": [2, 3], "schedule": schedule}).plans[
            "train"
        ]
        bounds = plan.pack_offsets[plan.stage_offsets].tolist()
        held = [by[plan.order[a:b]] for a, b in pairwise(bounds)]
        assert [part.max() for part in held] == [2, 3, 4]
        assert [part.min() for part in held] == ([1, 3, 4] if schedule == "rest" else [1, 1, 1])
        total = len(by) if schedule == "rest" else (by <= 2).sum() + (by <= 3).sum() + len(by)
        assert len(plan.order) == total


def test_as_it_is() -> None:
    plan = DATA.plan(["a", {"path": "b", "repeat": 2}], order="as_is", pack="sequential").plans["train"]
    expected = [*range(2 * COUNT), *range(COUNT, 2 * COUNT)]
    assert plan.order.tolist() == expected


def test_no_pack_without_packing() -> None:
    plan = DATA.plan(pack="none").plans["train"]
    assert plan.packs == len(DATA.names)
    assert plan.packs_at_least == -(-int(DATA.pool.length.sum()) // 512)


def test_filters_see_names_of_sources() -> None:
    planned = DATA.plan(filters={"expression": "source = 'b.jsonl' AND turns < 3", "max_tokens": 100})
    kept = DATA.pool.length <= 100
    reasons = rejected_of(planned)
    assert reasons["filtered_tokens"] == (~kept).sum()
    assert sum(reasons.values()) + len(planned.plans["train"]) == 2 * COUNT
    assert set(planned.account[0]) == {"filtered_tokens", "filtered_expression"}


def test_a_source_that_is_lost_cannot_have_a_weight() -> None:
    sources = [{"path": "a", "weight": 1}, {"path": "b", "weight": 1}]
    with pytest.raises(DataError, match="a: expected examples for its weight, found none"):
        DATA.plan(sources, filters={"expression": "source = 'b'"})
