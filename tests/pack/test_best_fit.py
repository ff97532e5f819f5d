"""best_fit, sequential and lower_bound against the textbook loops that define them."""

import importlib
from bisect import bisect_left, insort

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from premask.errors import DataError
from premask.pack.best_fit import best_fit, lower_bound, order_by, sequential, stable_order

MODULE = importlib.import_module("premask.pack.best_fit")


@st.composite
def packings(draw):
    capacity = draw(st.integers(1, 60))
    lengths = draw(st.lists(st.integers(1, capacity), max_size=80))
    return np.array(lengths, np.int32), capacity


def naive_best_fit(lengths, capacity):
    """Number of packs by best-fit decreasing, one example at a time."""
    rooms = []
    for length in sorted(map(int, lengths), reverse=True):
        tightest = bisect_left(rooms, length)
        room = rooms.pop(tightest) if tightest < len(rooms) else capacity
        insort(rooms, room - length)
    return len(rooms)


def naive_sequential(lengths, capacity):
    packs, room, number = [], 0, -1
    for length in map(int, lengths):
        if length > room:
            number, room = number + 1, capacity
        room -= length
        packs.append(number)
    return packs


def naive_bound(lengths, capacity):
    """Martello and Toth's L2 by its definition."""
    best = -(-int(lengths.sum()) // capacity)
    for threshold in range(capacity // 2 + 1):
        alone = [x for x in lengths if x > capacity - threshold]
        apart = [x for x in lengths if capacity / 2 < x <= capacity - threshold]
        small = [x for x in lengths if threshold <= x <= capacity / 2]
        missing = int(sum(small)) - (len(apart) * capacity - int(sum(apart)))
        best = max(best, len(alone) + len(apart) + max(0, -(-missing // capacity)))
    return best


def check_valid(pack, lengths, capacity):
    """Every example placed once, no pack empty or over the capacity."""
    assert pack.shape == lengths.shape
    assert pack.dtype == np.int32
    tokens = np.bincount(pack, weights=lengths)
    assert (tokens > 0).all()
    assert (tokens <= capacity).all()


@given(packings())
def test_best_fit_needs_as_many_packs_as_the_textbook_loop(packing):
    lengths, capacity = packing
    pack = best_fit(lengths, capacity)
    check_valid(pack, lengths, capacity)
    packs = int(pack.max(initial=-1)) + 1
    assert packs == naive_best_fit(lengths, capacity)
    assert lower_bound(lengths, capacity) <= packs


@given(packings())
def test_packs_are_numbered_as_they_open_and_equal_lengths_keep_their_order(packing):
    lengths, capacity = packing
    pack = best_fit(lengths, capacity)
    longest = np.zeros(int(pack.max(initial=-1)) + 1, np.int32)
    np.maximum.at(longest, pack, lengths)
    assert (np.diff(longest) <= 0).all()
    order = np.argsort(-lengths, kind="stable")
    firsts = pack[order][np.unique(pack[order], return_index=True)[1]]
    assert firsts.tolist() == list(range(len(longest)))


def test_equal_lengths_are_placed_first_come_first():
    assert best_fit(np.array([3, 3, 3, 3, 3], np.int32), 6).tolist() == [0, 0, 1, 1, 2]
    assert best_fit(np.array([2, 5, 2, 2], np.int32), 7).tolist() == [0, 0, 1, 1]


def test_the_tightest_room_is_taken():
    assert best_fit(np.array([6, 7, 3, 4], np.int32), 10).tolist() == [1, 0, 0, 1]


@given(packings())
def test_sequential_is_next_fit(packing):
    lengths, capacity = packing
    assert sequential(lengths, capacity).tolist() == naive_sequential(lengths, capacity)


@given(packings())
def test_lower_bound_is_the_definition(packing):
    lengths, capacity = packing
    assert lower_bound(lengths, capacity) == naive_bound(lengths, capacity)


@pytest.mark.parametrize("capacity", [2048, 8192, 131072])
def test_a_large_mix_is_packed_like_the_loop_and_close_to_the_bound(capacity):
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(6.3, 1.0, 20_000).astype(np.int32) + 1, capacity)
    pack = best_fit(lengths, capacity)
    check_valid(pack, lengths, capacity)
    packs = int(pack.max()) + 1
    assert packs == naive_best_fit(lengths, capacity)
    assert packs <= lower_bound(lengths, capacity) * 1.001 + 1
    assert np.array_equal(pack, best_fit(lengths.copy(), capacity))


@pytest.mark.parametrize("packer", [best_fit, sequential, lower_bound])
@pytest.mark.parametrize("length", [0, -1, 11])
def test_a_length_outside_the_capacity_is_named(packer, length):
    with pytest.raises(DataError, match=rf"example 1: expected 1 to 10 tokens, found {length} \(1 such examples\)"):
        packer(np.array([1, length], np.int32), 10)


def test_nothing_to_pack():
    none = np.zeros(0, np.int32)
    assert len(best_fit(none, 8)) == len(sequential(none, 8)) == lower_bound(none, 8) == 0


@given(st.lists(st.integers(0, 5), max_size=50))
def test_stable_order_is_a_stable_argsort(keys):
    array = np.array(keys, np.int64)
    expected = np.argsort(array, kind="stable")
    assert stable_order(array.copy()).tolist() == expected.tolist()


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 70), st.sampled_from([10, 20, 2**16, 2**16 + 1, 2**40]))
def test_keys_are_ordered_as_by_a_stable_argsort(keys, chunk, below):
    array = np.array(keys, np.int64) * (below // 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "COUNTED", chunk)
        found = order_by(array.copy(), below)
    assert found.tolist() == np.argsort(array, kind="stable").tolist()
    assert found.dtype == np.int32
