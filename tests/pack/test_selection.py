"""Selection against loops that say the same one example at a time, and the promises of its parts."""

import tracemalloc
from collections import Counter
from fractions import Fraction
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from premask.errors import DataError
from premask.pack.account import account, lost_rows
from premask.pack.plan import PlanStage, make_plan
from premask.pack.pool import Pool
from premask.pack.selection import (
    LOST,
    TRAIN,
    VALIDATION,
    Mix,
    draw,
    drawn,
    duplicated,
    filter_rows,
    in_validation,
    select,
    shares,
    stages,
)


def digest(text):
    return blake2b(str(text).encode(), digest_size=16).digest()


def digests_of(names):
    return np.frombuffer(b"".join(map(digest, names)), np.uint8).reshape(-1, 16)


def pool_of(rows, partitions=(), sources=()):
    """A pool of `(row, length, supervised, turns)`; `partitions` are where they begin, the first aside."""
    columns = np.array(rows, np.int32).reshape(-1, 4).T
    starts = np.array([0, *partitions, len(rows)])
    return Pool(
        starts=starts,
        first_rows=np.arange(len(starts) - 1) * 1000,
        sources=np.array(sources or [0] * (len(starts) - 1), np.int32),
        row=columns[0],
        length=columns[1],
        supervised=columns[2],
        turns=columns[3],
        source_turn=np.broadcast_to(np.int32(-1), len(rows)),
    )


@st.composite
def pools(draw_):
    """A pool of a few partitions and sources, rows of one or several examples, and hashes of which some are equal."""
    rows, partitions, names = [], [], []
    parts = draw_(st.integers(1, 4))
    for part in range(parts):
        if part:
            partitions.append(len(rows))
        for row in range(draw_(st.integers(0, 6))):
            name = draw_(st.integers(0, 8))
            for _ in range(draw_(st.integers(1, 3))):
                length = draw_(st.integers(1, 30))
                rows.append((row, length, draw_(st.integers(1, length)), draw_(st.integers(1, 4))))
                names.append(name)
    sources = sorted(draw_(st.lists(st.integers(0, 2), min_size=parts, max_size=parts)))
    return pool_of(rows, partitions, sources), names


def rows_of(pool):
    """The global row of every example, one at a time."""
    found = []
    for part, (start, end) in enumerate(zip(pool.starts[:-1], pool.starts[1:], strict=True)):
        found += [(part, int(row)) for row in pool.row[start:end]]
    return found


# --- where examples lie ---------------------------------------------------------------------------------------------


@given(pools())
def test_a_pool_knows_where_its_examples_lie(case):
    pool, _ = case
    which = np.arange(len(pool), dtype=np.int32)[::-1]
    taken = pool.take(which)
    rows = rows_of(pool)
    assert [(p, r) for p, r in zip(taken.partition, taken.source_row - taken.partition * 1000, strict=True)] == rows[
        ::-1
    ]
    assert [int(pool.starts[p] + i) for p, i in zip(taken.partition, taken.index, strict=True)] == which.tolist()
    assert taken.length.tolist() == pool.length[::-1].tolist()
    assert pool.begins_row().tolist() == [n == 0 or rows[n] != rows[n - 1] for n in range(len(rows))]
    assert pool.source().tolist() == [pool.sources[part] for part, _ in rows]


# --- filters --------------------------------------------------------------------------------------------------------


@given(pools(), *[st.none() | st.integers(1, 40)] * 4)
def test_filters_judge_source_rows(case, least_turns, most_turns, least_tokens, most_tokens):
    pool, _ = case
    rows = rows_of(pool)
    turns, tokens = Counter(), Counter()
    for n, row in enumerate(rows):
        turns[row] += int(pool.turns[n])
        tokens[row] += int(pool.length[n])

    def fate(row):
        if not (least_turns or 0) <= turns[row] <= (most_turns or 10**9):
            return 2 + LOST.index("filtered_turns")
        if not (least_tokens or 0) <= tokens[row] <= (most_tokens or 10**9):
            return 2 + LOST.index("filtered_tokens")
        return 2 + LOST.index("filtered_expression") if turns[row] % 2 and pool_sources[row[0]] == 0 else 0

    pool_sources = pool.sources.tolist()
    found = filter_rows(
        pool,
        turns=(least_turns, most_turns),
        tokens=(least_tokens, most_tokens),
        expression=lambda columns: (columns["turns"] % 2 == 0) | (columns["source"] != 0),
    )
    assert found.tolist() == [fate(row) for row in rows]
    assert not filter_rows(pool).any()


# --- duplicates -----------------------------------------------------------------------------------------------------


@given(pools(), st.data())
def test_a_conversation_is_a_duplicate_of_an_earlier_row(case, data):
    pool, names = case
    among = np.array(data.draw(st.lists(st.booleans(), min_size=len(pool), max_size=len(pool))), bool)
    first, expected = {}, []
    for n, row in enumerate(rows_of(pool)):
        expected.append(bool(among[n]) and first.setdefault(names[n], row) != row)
    found = duplicated(pool, digests_of(names), among)
    assert found[among].tolist() == [value for value, used in zip(expected, among, strict=True) if used]
    assert not found[~among].any()


def test_hashes_that_differ_in_one_byte_are_no_duplicates():
    hashes = np.repeat(digests_of([1]), 17, axis=0)
    for byte in range(16):
        hashes[byte, byte] ^= 1
    pool = pool_of([(n, 1, 1, 1) for n in range(17)])
    assert not duplicated(pool, hashes, np.ones(17, bool)).any()


# --- validation -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(), max_size=50), st.floats(0, 0.999))
def test_a_conversation_is_aside_by_its_own_hash(names, share):
    expected = [int.from_bytes(digest(name)[8:], "little") < int(share * 2**64) for name in names]
    assert in_validation(digests_of(names), share).tolist() == expected


def test_the_share_is_met_within_sampling_error_and_grows_only():
    hashes = digests_of(range(20_000))
    sides = {share: in_validation(hashes, share) for share in (0.01, 0.05, 0.3)}
    for share, side in sides.items():
        assert abs(side.mean() - share) < 4 * np.sqrt(share * (1 - share) / len(hashes))
    assert not (sides[0.01] & ~sides[0.05]).any()


# --- the mix --------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 5), st.floats(0.01, 100)), min_size=1, max_size=6))
def test_shares_are_those_of_the_largest_mix(sources):
    available, repeats, weights = zip(*sources, strict=True)
    mix = Mix(repeats=repeats, weights=weights, names=[""] * len(sources))
    counts = shares(available, mix)
    total = sum(counts)
    for count, there, repeat in zip(counts, available, repeats, strict=True):
        assert 0 <= count <= there * repeat
    for count, weight in zip(counts, weights, strict=True):
        ideal = Fraction(weight) / sum(map(Fraction, weights)) * total
        assert abs(count - ideal) <= len(counts)
    assert any(count == there * repeat for count, there, repeat in zip(counts, available, repeats, strict=True))


def test_without_weights_everything_is_used_as_often_as_it_is_repeated():
    assert shares([5, 0, 7], Mix(repeats=[1, 2, 3], weights=None, names=["a", "b", "c"])) == [5, 0, 21]


def test_a_weight_without_examples_is_named():
    with pytest.raises(DataError, match=r"b\.jsonl: expected examples for its weight, found none that can be used"):
        shares([5, 0], Mix(repeats=[1, 1], weights=[1, 1], names=["a.jsonl", "b.jsonl"]))


@given(pools(), st.integers(0, 2**70), st.lists(st.integers(1, 3), min_size=3, max_size=3), st.data())
def test_examples_are_drawn_by_lot(case, seed, repeats, data):
    pool, names = case
    hashes = digests_of(names)
    source = pool.source()
    there = [int((source == n).sum()) for n in range(3)]
    weights = data.draw(st.none() | st.lists(st.floats(0.1, 10), min_size=3, max_size=3))
    if weights and 0 in there:
        return
    mix = Mix(repeats=repeats, weights=weights, names="abc")
    times = draw(pool, lambda: [hashes[:5], hashes[5:]], np.ones(len(pool), bool), mix, seed)
    counts = shares(there, mix)
    lots = drawn(hashes, seed)
    for n in range(3):
        of = [i for i in range(len(pool)) if source[i] == n]
        ranked = sorted(of, key=lambda i: (int(lots[i]), i))
        expected = {i: counts[n] // len(of) + (place < counts[n] % len(of)) for place, i in enumerate(ranked)}
        assert {i: int(times[i]) for i in of} == expected
        assert sum(times[of].tolist()) == counts[n]


def test_lots_differ_by_seed_and_are_spread():
    hashes = digests_of(range(10_000))
    one, other = drawn(hashes, 1), drawn(hashes, 2)
    assert len(np.unique(one)) == 10_000
    assert abs(np.corrcoef(one.astype(float), other.astype(float))[0, 1]) < 0.05
    assert np.histogram(one, bins=10, range=(0, 2**32))[0].min() > 850


def test_lots_are_pinned():
    """The very numbers: others would change what is in datasets whose sources have weights."""
    assert drawn(digests_of([0]), 0).tolist() == [PINNED]


PINNED = 3889469101


# --- all together ---------------------------------------------------------------------------------------------------


@given(pools(), st.booleans(), st.sampled_from([0.0, 0.5]), st.integers(0, 3))
def test_every_example_has_one_fate_and_the_account_adds_up(case, duplicates, validation, seed):
    pool, names = case
    hashes = digests_of(names)
    filtered = filter_rows(pool, turns=(None, 6))
    mix = Mix(repeats=[1, 2, 3], weights=None, names="abc")
    chosen = select(pool, lambda: [hashes], filtered, duplicates=duplicates, validation=validation, mix=mix, seed=seed)
    assert ((chosen.times > 0) == (chosen.fate == TRAIN)).all()
    sides = {}
    for name, fate in zip(names, chosen.fate.tolist(), strict=True):
        if fate <= VALIDATION:
            assert sides.setdefault(name, fate) == fate
    entries = account(pool, chosen, chosen.times, 3)
    rows = rows_of(pool)
    for source, by_fate in enumerate(entries):
        of = [i for i in range(len(pool)) if pool.source()[i] == source]
        inside = {name: entry for name, entry in by_fate.items() if name != "repeated"}
        assert sum(entry["rows"] for entry in inside.values()) == len({rows[i] for i in of})
        assert sum(entry["examples"] for entry in inside.values()) == len(of)
        assert sum(entry["tokens"] for entry in inside.values()) == pool.length[of].sum()
        assert sum(entry["turns"] for entry in inside.values()) == pool.turns[of].sum()
        written = sum(entry["supervised_tokens"] for name, entry in by_fate.items() if name in ("train", "repeated"))
        assert written == (pool.supervised[of] * chosen.times[of]).sum()
    lost = [(part, row) for part in range(len(pool.sources)) for row, *_ in lost_rows(pool, chosen, part)]
    used = {row for row, fate in zip(rows, chosen.fate.tolist(), strict=True) if fate <= VALIDATION}
    assert sorted(lost) == sorted(set(rows) - used)


def test_the_reason_of_a_lost_row():
    pool = pool_of([(0, 5, 5, 1), (1, 5, 5, 1), (3, 5, 5, 9)])
    hashes = digests_of("aab")
    chosen = select(
        pool,
        lambda: [hashes],
        filter_rows(pool, turns=(None, 3)),
        duplicates=True,
        validation=0,
        mix=Mix(repeats=[1], weights=None, names=["a"]),
        seed=0,
    )
    assert list(lost_rows(pool, chosen, 0)) == [(1, "duplicate", 1, 5), (3, "filtered_turns", 9, 5)]


# --- stages ---------------------------------------------------------------------------------------------------------


@given(pools(), st.integers(0, 5) | st.none(), st.booleans(), st.data())
def test_stages_hold_what_their_bounds_say(case, seed, again, data):
    pool, _ = case
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(pool), max_size=len(pool))), np.uint16)
    found = stages(pool, times, seed=seed, by=pool.length, up_to=[5, 20], again=again)
    assert len(found) == 3
    for stage, least, most in zip(found, [0, 0, 0] if again else [0, 5, 20], [5, 20, 10**9], strict=True):
        expected = Counter({n: int(times[n]) for n in range(len(pool)) if least < pool.length[n] <= most and times[n]})
        assert Counter(stage.examples.tolist()) == expected


def test_all_of_them_once_is_no_list_at_all():
    pool = pool_of([(n, 5, 5, 1) for n in range(4)])
    assert stages(pool, np.ones(4, np.uint16), seed=0) == [PlanStage()]


def test_without_a_seed_a_source_comes_as_a_whole_before_it_comes_again():
    pool = pool_of([(n, 5, 5, 1) for n in range(5)], partitions=[1, 3], sources=[0, 0, 1])
    (only,) = stages(pool, np.array([2, 1, 2, 1, 2], np.uint16), seed=None)
    assert only.examples.tolist() == [0, 1, 2, 0, 2, 3, 4, 4]
    assert only.parts == [0, 3, 5, 7, 8]


def test_copies_of_an_example_meet_new_neighbours():
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(5, 0.8, 3000).astype(int) + 1, 1024)
    pool = pool_of([(n, length, 1, 1) for n, length in enumerate(lengths)])
    plan = make_plan(
        pool, capacity=1024, seed=1, shard_tokens=10**6, stages=stages(pool, np.full(3000, 3, np.uint16), seed=1)
    )
    pairs = Counter()
    own = 0
    for start, end in zip(plan.pack_offsets[:-1], plan.pack_offsets[1:], strict=True):
        members = sorted(plan.order[start:end].tolist())
        own += len(members) - len(set(members))
        pairs.update((a, b) for i, a in enumerate(members) for b in members[i + 1 :] if a != b)
    repeated = sum(count - 1 for count in pairs.values())
    assert repeated / sum(pairs.values()) < 0.06
    assert own == 0
    assert plan.packs <= plan.packs_at_least * 1.02


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("duplicates", "weights", "budget"), [(False, None, 40), (False, [1, 2], 40), (True, None, 56)]
)
def test_the_driver_stays_within_its_budget(duplicates, weights, budget):
    count = 400_000
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(6.3, 1.0, count).astype(np.int32) + 1, 4096)
    hashes = rng.integers(0, 256, (count, 16), dtype=np.uint8)  # as in the stage files, which are mapped
    tracemalloc.start()
    pool = Pool(
        starts=np.arange(0, count + 1, 1000),
        first_rows=np.arange(0, count, 1000),
        sources=np.arange(count // 1000, dtype=np.int32) // (count // 2000),
        row=np.arange(count, dtype=np.int32) % 1000,
        length=lengths.copy(),
        supervised=lengths // 2,
        turns=np.ones(count, np.int32),
        source_turn=np.broadcast_to(np.int32(-1), count),
    )
    mix = Mix(repeats=[1, 1], weights=weights, names=["a", "b"])
    chosen = select(
        pool,
        lambda: (hashes[start : start + 1000] for start in range(0, count, 1000)),
        filter_rows(pool),
        duplicates=duplicates,
        validation=0.01,
        mix=mix,
        seed=0,
    )
    listed = stages(pool, chosen.times, seed=0)
    entries = account(pool, chosen, chosen.times, 2)
    del chosen
    plan = make_plan(pool, capacity=4096, seed=0, shard_tokens=2**22, stages=listed)
    peak = tracemalloc.get_traced_memory()[1] / count
    tracemalloc.stop()
    assert len(plan) == sum(entry["train"]["examples"] for entry in entries)
    assert peak < budget
