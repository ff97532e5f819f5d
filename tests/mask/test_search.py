"""The vectorized search against a naive one, and the comparison of two sets of spans."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from premask.mask.search import Haystack, Intervals, Marker, Markers, differing, find_bytes, haystack, search

TOKENS = {1: "<s>", 2: "<e>", 3: "<u>"}
MARKERS = Markers(
    headers=(Marker(b"<s>a\n", 1), Marker(b"<s>a\n<t>", 1)),
    closings=(Marker(b"<e>", 2),),
    openings=(Marker(b"<u>", 3),),
)
BYTE_MARKERS = Markers(
    headers=(Marker(b"## R:\n", None),), closings=(Marker(b"</s>", None),), openings=(Marker(b"## I:\n", None),)
)

pieces = st.lists(
    st.sampled_from(["<s>a\n", "<s>a\n<t>", "<e>", "<u>", "<s>b", "x", " ", "\n", "é", "a\n"]), max_size=12
)
byte_pieces = st.lists(st.sampled_from(["## R:\n", "</s>", "## I:\n", "## ", "R:", "x", " ", "\n", "文"]), max_size=12)


def lay_out(texts: list[list[str]], tokens: dict[int, str]) -> Haystack:
    """A batch in which the texts of `tokens` are ids of their own and every other character is an id each."""
    ids, starts, base = [], [], 0
    for parts in texts:
        text, at = "".join(parts), 0
        while at < len(text):
            found = next((i for i, t in tokens.items() if text.startswith(t, at)), None)
            ids.append(found or 100)
            starts.append(base + len(text[:at].encode()))
            at += len(tokens[found]) if found else 1
        base += len(text.encode()) + 1
    return haystack(["".join(p) for p in texts], np.array(ids, np.int32), np.array(starts, np.int32))


def naive(text: bytes, markers: Markers) -> list[tuple[int, int]]:
    """Turns of one text, character by character."""
    spans = []
    for at in range(len(text)):
        fitting = [m.text for m in markers.headers if text.startswith(m.text, at)]
        if not fitting:
            continue
        start = end = at + len(max(fitting, key=len))
        while end < len(text):
            closing = [m.text for m in markers.closings if text.startswith(m.text, end)]
            if closing:
                end += len(closing[0])
                break
            if any(text.startswith(m.text, end) for m in (*markers.headers, *markers.openings)):
                end = start + len(text[start:end].rstrip())
                break
            end += 1
        else:
            end = start + len(text[start:].rstrip())
        if end > start:
            spans.append((start, end))
    return spans


def check(texts: list[list[str]], markers: Markers, tokens: dict[int, str]) -> None:
    hay = lay_out(texts, tokens)
    starts, ends, _ = search(hay, markers)
    expected = [
        (base + a, base + b)
        for base, parts in zip(hay.bases, texts, strict=False)
        for a, b in naive("".join(parts).encode(), markers)
    ]
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == [(int(a), int(b)) for a, b in expected]


@given(st.lists(pieces, max_size=4))
def test_search_on_ids_equals_a_naive_search(texts: list[list[str]]) -> None:
    check(texts, MARKERS, TOKENS)


@given(st.lists(byte_pieces, max_size=4))
def test_search_on_bytes_equals_a_naive_search(texts: list[list[str]]) -> None:
    check(texts, BYTE_MARKERS, {})


@given(st.text("ab\0", max_size=40), st.text("ab", min_size=1, max_size=12))
def test_find_bytes_finds_every_place(text: str, needle: str) -> None:
    raw = np.frombuffer(text.encode() + bytes(8), np.uint8)
    expected = [i for i in range(len(text)) if text.startswith(needle, i)]
    assert find_bytes(raw, needle.encode()).tolist() == expected


def test_a_turn_ends_at_any_role_and_no_marker_spans_two_texts() -> None:
    hay = lay_out([["<s>a\n", "one ", "<u>", "two"], ["<s>", "a"], ["\n", "<e>"]], TOKENS)
    starts, ends, _ = search(hay, MARKERS)
    assert [bytes(hay.raw[a:b]) for a, b in zip(starts, ends, strict=True)] == [b"one"]


def test_hits_inside_message_text_are_set_aside() -> None:
    text = "## I:\nquote ## R:\nme\n## R:\nyes</s>"
    hay = lay_out([[text]], {})
    inside = Intervals(np.array([6, 27]), np.array([20, 30]))
    starts, ends, aside = search(hay, BYTE_MARKERS, inside)
    assert [text[a:b] for a, b in zip(starts, ends, strict=True)] == ["yes</s>"]
    assert aside == 1
    assert len(search(hay, BYTE_MARKERS)[0]) == 2


spans = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5)), max_size=6, unique_by=lambda s: s[0])


@settings(max_examples=200)
@given(spans, spans)
def test_differing_names_exactly_the_texts_that_differ(
    found: list[tuple[int, int]], expected: list[tuple[int, int]]
) -> None:
    bases = np.array([0, 10, 20, 31], np.int64)

    def arrays(values: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        values = sorted(values)
        starts = np.array([s for s, _ in values], np.int64)
        return starts, starts + np.array([n for _, n in values], np.int64)

    def of_row(values: list[tuple[int, int]], row: int) -> set[tuple[int, int]]:
        return {v for v in values if bases[row] <= v[0] < bases[row + 1]}

    bad = differing(arrays(found), arrays(expected), bases)
    assert bad.tolist() == [of_row(found, r) != of_row(expected, r) for r in range(3)]


def test_a_terminator_that_a_message_completes_is_set_aside() -> None:
    text = "## R:\nyes</s>ok</s>"
    hay = lay_out([[text]], {})
    starts, ends, aside = search(hay, BYTE_MARKERS, Intervals(np.array([6, 10]), np.array([9, 15])))
    assert [text[a:b] for a, b in zip(starts, ends, strict=True)] == ["yes</s>ok</s>"]
    assert aside == 1


@given(st.lists(st.integers(0, 40), max_size=8, unique=True), st.integers(0, 40), st.integers(1, 6))
def test_intervals_equal_naive_ones(borders: list[int], start: int, length: int) -> None:
    pairs = list(zip(sorted(borders)[::2], sorted(borders)[1::2], strict=False))
    intervals = Intervals(np.array([a for a, _ in pairs], np.int64), np.array([b for _, b in pairs], np.int64))
    starts, ends = np.array([start]), np.array([start + length])
    assert intervals.contain(starts, ends)[0] == any(a <= start and start + length <= b for a, b in pairs)
    assert intervals.touch(starts, ends)[0] == any(a < start + length and start < b for a, b in pairs)
