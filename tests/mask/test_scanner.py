"""Where ids and markers stand, against naive searches over every token and every byte."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premask.mask import places
from premask.mask.places import places_of
from premask.mask.responses import control, spelt_marker
from premask.mask.threads import scanner_for

some_ids = st.integers(0, 9) | st.sampled_from([65535, 65536, 65537, 131073, 200_000])


@given(ids=st.lists(some_ids, max_size=60), wanted=st.sets(some_ids, max_size=6), few=st.sampled_from([2, 24]))
@settings(max_examples=300)
def test_places_equal_a_walk(ids, wanted, few):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "FEW", few)
        patch.setattr(places, "BLOCK", 16)
        found = places_of(np.array(ids, np.int32), sorted(wanted))
    assert [n for n in found.tolist() if ids[n] in wanted] == [n for n, token in enumerate(ids) if token in wanted]
    assert found.dtype == np.int64


def test_places_of_rare_ids_only():
    ids = np.tile(np.arange(1000, dtype=np.int32), 100)
    assert len(places_of(ids, [5, 995])) == 600  # with those behind 995, which are rare
    assert len(places_of(ids, [5, 6, 7, 8, 900])) == 500  # without those behind 900, which are many


S, E = control(0), control(70_000)
PIECES = [
    b"", b"a", b"b", b"ab", b"ba", b"aab", b"abab", b"c", b"bc", b"cab", b"\n", b"\n\n", b"b\n", b"\na", b"aa", b"ca",
    b"abc\n",
]  # fmt: skip
TABLE = [S, *PIECES, *(b"z" for _ in range(70_000 - 1 - len(PIECES))), E]
MARKERS = {
    "of text": {b"ab": b"", b"abc": b"\n", b"aba": b"b", b"b\nb": b"aa", b"cab": b"c"},
    "of control tokens": {S + b"a\n": E + b"\n", S + b"a": E, S: b"", E: b"a", b"a" + S + b"b": b"", b"a": S},
    "that no id spells": {b"y": b"", b"ay": b"b"},
}
SCANNERS = {
    name: scanner_for(TABLE, [spelt_marker(text) for text in markers], [*markers.values()])
    for name, markers in MARKERS.items()
}
token = st.integers(0, len(PIECES)) | st.sampled_from([0, 70_000])


def naive_hits(rows, markers):
    """(marker, token and byte where it starts, token and byte where it ends, anchored, row) by looking everywhere."""
    found, first = set(), 0
    for row, ids in enumerate(rows):
        words = [TABLE[token] for token in ids]
        text = b"".join(words)
        owners = [(first + n, byte, len(word)) for n, word in enumerate(words) for byte in range(len(word))]
        for number, (marker, anchor) in enumerate(markers.items()):
            for at in range(len(text) - len(marker) + 1):
                if not text.startswith(marker, at) or (marker[:1] == b"\xff" and owners[at][1]):
                    continue
                last, byte, size = owners[at + len(marker) - 1]
                end = (last + 1, 0) if byte + 1 == size else (last, byte + 1)
                found.add((number, *owners[at][:2], *end, text[:at].endswith(anchor), row))
        first += len(ids)
    return found


@pytest.mark.parametrize("name", MARKERS)
@given(rows=st.lists(st.lists(token, min_size=1, max_size=16), min_size=1, max_size=4))
@settings(max_examples=500, deadline=None)
def test_hits_equal_a_search_through_all_bytes(name, rows):
    scanner = SCANNERS[name]
    ids = np.array([token for row in rows for token in row], np.int32)
    hits = scanner.scan(ids, np.cumsum([0, *map(len, rows)]))
    byte = (1 << scanner.bits) - 1
    found = [
        (m, s >> scanner.bits, s & byte, e >> scanner.bits, e & byte, a, r)
        for m, s, e, a, r in zip(
            *(c.tolist() for c in (hits.marker, hits.starts, hits.ends, hits.anchored, hits.rows)), strict=True
        )
    ]
    assert set(found) == naive_hits(rows, MARKERS[name])
    assert len(found) == len(set(found))


def test_pivots_are_bytes_that_few_ids_hold_and_that_markers_share():
    table = [b"#", b"##", b"###", b"R", b"Re", b"e", b"I", b"In", b"n", b":", b":\n", b"\n"]
    scanner = scanner_for(table, [spelt_marker(b"###Re:\n"), spelt_marker(b"###In:\n")], [b"", b""])
    assert scanner.pivots == (9, 10)
