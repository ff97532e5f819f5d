"""Which packs a step trains, and which rank takes them: nothing lost, nothing twice, near-equal work."""

from itertools import combinations, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from premask.feed.order import deal, make_schedule

COSTS = st.lists(st.tuples(st.integers(1, 4096), st.integers(1, 4096**2)), min_size=1, max_size=60).map(
    lambda rows: np.array(rows, np.int64)
)


def naive_deal(costs, bins):
    """The rule of `deal`, item by item."""
    means = [max(sum(column) / len(costs), 1) for column in zip(*costs.tolist(), strict=True)]
    share = [sum(cost / mean for cost, mean in zip(row, means, strict=True)) for row in costs.tolist()]
    queue = sorted(range(len(costs)), key=lambda item: -int(costs[item][0]))
    loads, found = [0.0] * bins, [0] * len(costs)
    for start in range(0, len(queue), bins):
        row = sorted(queue[start : start + bins], key=lambda item: -share[item])
        least = sorted(range(bins), key=lambda number: loads[number])
        for item, number in zip(row, least, strict=False):
            found[item] = number
            loads[number] += share[item]
    return found


@given(COSTS, st.integers(1, 9))
def test_dealing_is_what_its_rule_says_and_keeps_its_promises(costs, bins):
    found = deal(costs, bins)
    assert found.tolist() == naive_deal(costs, bins)
    counts = np.bincount(found, minlength=bins)
    assert counts.max() - counts.min() <= 1
    trained = np.bincount(found, weights=costs[:, 0], minlength=bins)
    assert trained.max() - trained.min() <= costs[:, 0].max()


@given(COSTS, st.integers(1, 9), st.integers(0, 9), st.booleans())
def test_every_pack_comes_once_an_epoch(costs, batch_size, seed, shuffled):
    schedule = make_schedule(costs, batch_size=batch_size, seed=[seed, 0] if shuffled else None, stages=[0, len(costs)])
    steps = [schedule.step(number) for number in range(len(schedule))]
    assert len(steps) == -(-len(costs) // batch_size)
    assert sorted(np.concatenate(steps).tolist()) == list(range(len(costs)))
    assert max(map(len, steps)) - min(map(len, steps)) <= 1
    assert schedule.totals.tolist() == [costs[step].sum(axis=0).tolist() for step in steps]
    if not shuffled:
        assert np.concatenate(steps).tolist() == list(range(len(costs)))


@given(COSTS, st.integers(1, 9), st.lists(st.integers(0, 60), max_size=3))
def test_stages_come_one_after_the_other(costs, batch_size, bounds):
    stages = [0, *sorted(min(bound, len(costs)) for bound in bounds), len(costs)]
    schedule = make_schedule(costs, batch_size=batch_size, seed=[0, 0], stages=stages)
    order = np.concatenate([schedule.step(number) for number in range(len(schedule))])
    for start, end in pairwise(stages):
        assert sorted(order[start:end].tolist()) == list(range(start, end))


def test_steps_are_balanced_shuffled_and_repeatable():
    generator = np.random.default_rng(0)
    trained = generator.integers(100, 4096, 2000)
    costs = np.stack([trained, generator.integers(10**5, 4096**2, 2000)], axis=1)
    plain = generator.permutation(2000).reshape(125, 16)
    schedules = [make_schedule(costs, batch_size=16, seed=[0, epoch], stages=[0, 2000]) for epoch in (0, 0, 1)]
    for cost in (0, 1):
        balanced = schedules[0].totals[:, cost]
        assert balanced.std() < 0.25 * costs[plain, cost].sum(axis=1).std()
        assert balanced.max() < 1.05 * balanced.mean()
    assert schedules[0].packs.tolist() == schedules[1].packs.tolist()
    assert schedules[0].packs.tolist() != schedules[2].packs.tolist()
    # Who meets whom in a step is left to chance: few pairs of one epoch are pairs of the next.
    steps = [schedule.packs.reshape(125, 16).tolist() for schedule in schedules]
    pairs = [{frozenset(pair) for step in epoch for pair in combinations(step, 2)} for epoch in steps]
    assert len(pairs[0] & pairs[2]) < 0.1 * len(pairs[0])
