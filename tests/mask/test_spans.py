"""`to_tokens` against a loop over tokens, and what the loop means in words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from premask.encode.encoder import Encoded
from premask.mask.spans import ByteSpans, to_tokens


def naive(tokens, span, straddle):
    """The tokens of one text that lie in a span, and whether one straddles its start, or its end."""
    start, end = span
    at_start = [k for k, (a, b) in enumerate(tokens) if a < start < b]
    at_end = [k for k, (a, b) in enumerate(tokens) if a < end < b]
    inside = [k for k, (a, b) in enumerate(tokens) if start <= a and b <= end]
    if straddle == "train":
        inside = sorted({*inside, *at_start, *at_end})
    return inside, bool(at_start), bool(at_end)


@st.composite
def texts(draw):
    """Tokens of a few texts, gaps between some (swallowed white space), and spans between any two places."""
    found, spans = [], []
    for row in range(draw(st.integers(1, 4))):
        steps = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), max_size=8))
        tokens, at = [], 0
        for gap, size in steps:
            tokens.append((at + gap, at + gap + size))
            at += gap + size
        size = at + draw(st.integers(0, 2))
        found.append((tokens, size))
        cuts = sorted(draw(st.sets(st.integers(0, size), max_size=6)))
        spans += [(row, a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    return found, spans


def batch(found, spans):
    """The texts one byte apart."""
    bases = np.cumsum([0, *(size + 1 for _, size in found)])
    tokens = [(base + a, base + b) for base, (tokens, _) in zip(bases, found, strict=False) for a, b in tokens]
    offsets = np.cumsum([0, *(len(tokens) for tokens, _ in found)])
    places = np.array(tokens, np.int32).reshape(-1, 2)
    encoded = Encoded(np.zeros(len(tokens), np.int32), offsets, bases, places[:, 0], places[:, 1], 0)
    columns = np.array(spans, np.int64).reshape(-1, 3)
    starts, ends = columns[:, 1] + bases[columns[:, 0]], columns[:, 2] + bases[columns[:, 0]]
    return encoded, ByteSpans(columns[:, 0], starts, ends, np.zeros(len(spans), np.int32))


@given(texts(), st.sampled_from(["mask", "train"]))
def test_any_spans_are_those_of_the_loop(case, straddle):
    found, spans = case
    encoded, byte_spans = batch(found, spans)
    result = to_tokens(encoded, byte_spans, straddle)
    for n, (row, start, end) in enumerate(spans):
        inside, at_start, at_end = naive(found[row][0], (start, end), straddle)
        first = encoded.offsets[row]
        assert list(range(result.starts[n] - first, result.ends[n] - first)) == inside
        assert (result.cut_at_start[n], result.cut_at_end[n]) == (at_start, at_end)


@pytest.mark.parametrize("straddle", ["mask", "train"])
def test_no_texts_and_no_spans(straddle):
    for found in ([], [([], 0)], [([(0, 2)], 2)]):
        result = to_tokens(*batch(found, []), straddle)
        assert len(result.starts) == len(result.ends) == 0


def test_a_token_over_both_borders_is_cut_twice_and_trained_once():
    found = [([(0, 3), (3, 9), (9, 12)], 12)]
    masked = to_tokens(*batch(found, [(0, 4, 8)]), "mask")
    trained = to_tokens(*batch(found, [(0, 4, 8)]), "train")
    assert (masked.starts[0], masked.ends[0]) == (1, 1) or masked.starts[0] == masked.ends[0]
    assert (trained.starts[0], trained.ends[0]) == (1, 2)
    assert masked.cut_at_start[0] and masked.cut_at_end[0]


def test_neighbouring_texts_do_not_touch():
    """A span at the end of one text and one at the start of the next take their own tokens only."""
    found = [([(0, 4)], 4), ([(0, 4)], 4)]
    result = to_tokens(*batch(found, [(0, 0, 4), (1, 0, 4)]), "train")
    assert result.starts.tolist() == [0, 1]
    assert result.ends.tolist() == [1, 2]


def test_tokens_of_one_character_share_its_place():
    """Byte fallback: the tokenizer gives all four tokens of an emoji the emoji's own place."""
    found = [([(0, 1), (1, 5), (1, 5), (1, 5), (1, 5), (5, 6)], 6)]
    result = to_tokens(*batch(found, [(0, 1, 5)]), "mask")
    assert (result.starts[0], result.ends[0]) == (1, 5)
    assert not result.cut_at_start[0] and not result.cut_at_end[0]
