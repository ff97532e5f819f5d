"""Masks from ids alone, against a naive search that spells every token and looks at every byte."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premask.mask.responses import SpeltMarkers, control, mask_responses, spelt_marker, spelt_markers
from premask.mask.search import Markers

S, E, U, BOS = map(control, range(4))
"""Control tokens; the other ids spell text, in many ways."""
TABLE = [
    S, E, U, BOS, b"a", b"\n", b"x", b" ", b"#", b"##", b"R", b"R:", b":", b"\n#", b".\n\n", b"# R",
    b" \n", b"a\n", b":x", b":\n", b"xa", b"\n\n", b"I", b"#I:", b"e",
]  # fmt: skip
WHITE = b" \n\t\r\v\f"


@dataclass(frozen=True)
class Family:
    headers: tuple[bytes, ...]
    closings: tuple[bytes, ...]
    openings: tuple[bytes, ...]
    anchors: dict[bytes, bytes]
    restarts: tuple[bytes, ...] = (BOS,)

    def compiled(self) -> SpeltMarkers:
        headers, openings = (sorted(group, key=len, reverse=True) for group in (self.headers, self.openings))
        borders = [*headers, *openings]
        groups = (headers, self.closings, openings)
        return spelt_markers(
            TABLE,
            Markers(*(tuple(spelt_marker(text) for text in group) for group in groups)),
            [self.anchors.get(text, b"") for text in borders],
            self.restarts,
        )


FAMILIES = {
    "control tokens": Family((S + b"a\n", S + b"a\n\nx"), (E,), (U, S + b"x", BOS), {S + b"a\n": E + b"\n", U: E}),
    "plain text": Family((b"#R:", b"# R:\n"), (E,), (b"#I:", BOS), {b"#R:": b"\n", b"#I:": b"\n\n"}),
    "no terminator": Family((b"R:",), (), (b"I", BOS), {}),
    "closed by text": Family((b"R",), (b"x", b"x\n"), (b"#",), {b"R": b"\n", b"#": b"\n"}, ()),
}
MADE = {name: family.compiled() for name, family in FAMILIES.items()}


def places(text, marker):
    return [at for at in range(len(text)) if text.startswith(marker, at)]


def naive_borders(text, family):
    """(place, end, whether it is a header, whether it is genuine) of every marker, one at a place, in order."""
    found = {}
    for rank, group in enumerate((family.headers, family.openings)):
        for marker in group:
            for at in places(text, marker):
                found[at] = min(found.get(at, (9,)), (rank, -len(marker), marker))
    borders, previous = [], None
    for at, (rank, _, marker) in sorted(found.items()):
        first = previous is None or previous in family.restarts
        genuine = first or text[:at].endswith(family.anchors.get(marker, b""))
        borders.append((at, at + len(marker), rank == 0, genuine))
        previous = marker
    return borders


def naive_quotations(borders):
    """Markers that begin nothing: those without their anchor, but for one that may follow a turn cut short."""
    for n, (at, end, header, genuine) in enumerate(borders):
        if genuine:
            continue
        before = next(b for b in reversed(borders[:n]) if b[3])  # the first one always is
        after = next((b for b in borders[n:] if b[3]), None)
        if header or not (before[2] and after is not None and after[2]):
            yield at, end, header


def naive_turns(row, family):
    """Byte ranges of a row's turns; and how many headers were taken for quotations."""
    text = b"".join(TABLE[token] for token in row)
    quoted = list(naive_quotations(naive_borders(text, family)))
    void = {at for at, _, _ in quoted}

    def hits(markers):
        return [(at, at + len(marker)) for marker in markers for at in places(text, marker) if at not in void]

    headers = {}
    for a, b in hits(family.headers):
        headers[a] = max(headers.get(a, 0), b)
    closings = sorted(hits(family.closings))
    borders = sorted({*headers, *(a for a, _ in hits(family.openings))})
    turns = []
    for start in headers.values():
        limit = next((a for a in borders if a >= start), len(text))
        closing = next((a for a, _ in closings if a >= start), None)
        if closing is not None and closing <= limit:
            end = max(b for a, b in closings if a == closing)
        else:
            end = limit
            while end > start and text[end - 1] in WHITE:
                end -= 1
        if end > start:
            turns.append((start, end))
    return sorted(turns), sum(header for _, _, header in quoted)


def naive_labels(row, family, last=False):
    ends = list(itertools.accumulate(len(TABLE[token]) for token in row))
    spans, quoted = naive_turns(row, family)
    inside = [
        [n for n, token in enumerate(row) if start <= ends[n] - len(TABLE[token]) and ends[n] <= end]
        for start, end in spans
    ]
    inside = [tokens for tokens in inside if tokens]
    kept = {n for tokens in (inside[-1:] if last else inside) for n in tokens}
    return [token if n in kept else -100 for n, token in enumerate(row)], quoted


def flat(rows):
    return np.array([t for row in rows for t in row], np.int32), np.cumsum([0, *map(len, rows)]).astype(np.int64)


token = st.integers(0, len(TABLE) - 1)
chunk = st.sampled_from(
    [[0, 4, 5], [0, 17], [0, 4, 21, 6], [1], [1, 5], [1, 5, 0, 4, 5], [1, 2], [2], [8, 10, 12], [13, 11], [15, 12, 5],
     [14, 23], [21, 23], [9, 22], [3], [5, 10], [5, 8]]
)  # fmt: skip
rows = st.lists(
    st.lists(chunk | token.map(lambda t: [t]), max_size=14).map(lambda chunks: [*itertools.chain(*chunks)]), max_size=5
)


@pytest.mark.parametrize("name", FAMILIES)
@given(rows=rows, last=st.booleans())
@settings(max_examples=300, deadline=None)
def test_labels_equal_a_naive_search(name, rows, last):
    ids, offsets = flat(rows)
    labels, quoted = mask_responses(ids, offsets, MADE[name], last_response_only=last)
    expected = [naive_labels(row, FAMILIES[name], last) for row in rows]
    assert labels.tolist() == [label for found, _ in expected for label in found]
    assert quoted.tolist() == [count for _, count in expected]


def test_the_naive_search_finds_what_a_reader_would():
    """<s>a\\n is the header, <e>\\n its anchor, <u> opens another role's turn."""
    family = FAMILIES["control tokens"]
    row = [2, 6, 1, 5, 0, 4, 5, 6, 0, 4, 5, 6, 1, 5, 0, 4, 5, 4]
    labels, quoted = naive_labels(row, family)
    assert [n for n, label in enumerate(labels) if label != -100] == [7, 8, 9, 10, 11, 12, 17]
    assert quoted == 1
    cut_short = [0, 4, 5, 6, 2, 6, 1, 5, 0, 4, 5, 6, 1]
    assert [n for n, label in enumerate(naive_labels(cut_short, family)[0]) if label != -100] == [3, 11, 12]


def test_labels_that_rows_have_already_are_kept_within_responses():
    ids, offsets = flat([[0, 4, 5, 6, 7, 1, 2, 6]])
    given_ = np.array([9, 9, 9, 9, -100, 9, 9, 9], np.int32)
    found, _ = mask_responses(ids, offsets, MADE["control tokens"], given=given_)
    assert found.tolist() == [-100, -100, -100, 9, -100, 9, -100, -100]
    assert found.dtype == np.int32
