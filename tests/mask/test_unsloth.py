"""The rule of Unsloth's function: vectorized against a naive re-statement that walks over the tokens as that does.

The function itself is compared in `tests/trainers/test_unsloth_zoo.py` (`make test-trainers`).
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premask.mask.responses import mask_responses
from premask.mask.unsloth import Core, UnslothMarkers, core_of, unsloth_markers


def naive_labels(row, markers, old=None, last=False):
    """Labels of a row by the rule of Unsloth's function, walking over it as that does.

    `markers` are UnslothMarkers. The rule, as observed: from behind a response marker, look at every token. An EOS is
    kept and ends the span; a BOS, the opener of both markers or another response marker ends it and is looked at again;
    an instruction marker ends it with its optional tokens; so does the last token, whatever it is.
    """
    answer, user, n = markers.response, markers.instruction, len(row)

    def stands(sequence, at):
        return bool(sequence) and row[at : at + len(sequence)] == list(sequence)

    def past(at, optional):
        for token in optional:
            if at >= n or row[at] != token:
                break
            at += 1
        return at

    def back(at, optional):
        for token in reversed(optional):
            if at < 1 or row[at - 1] != token:
                break
            at -= 1
        return at

    spans, at = [], 0
    while at < n:
        if not stands(answer.ids, at):
            at += 1
            continue
        start = at = past(at + len(answer.ids), answer.right)
        while at < n:
            if row[at] == markers.eos:
                spans.append((start, at + 1))
                at += 1
                break
            if row[at] == markers.bos or stands(markers.opener, at) or stands(answer.ids, at):
                spans.append((start, at))
                break
            if at == n - 1 or stands(user.ids, at):
                end = back(at, user.left)
                at = n if at == n - 1 else past(at + len(user.ids), user.right)
                spans.append((start, n if end == n - 1 else end))
                break
            at += 1
    labels = [-100] * n
    for start, end in spans[-1:] if last else spans:
        labels[start:end] = (old or row)[start:end]
    return labels


few = st.integers(0, 5)
some = st.lists(few, max_size=2)
cores = st.builds(Core, st.lists(few, min_size=1, max_size=3), some, some)
maybe = st.one_of(st.none(), few)
any_markers = st.builds(UnslothMarkers, response=cores, instruction=cores, opener=some, bos=maybe, eos=maybe)


@st.composite
def rows_with(draw, markers):
    pieces = [
        markers.response.ids, markers.response.ids + markers.response.right, markers.instruction.ids,
        markers.instruction.left + markers.instruction.ids + markers.instruction.right, markers.opener,
    ]  # fmt: skip
    piece = st.one_of(st.sampled_from(pieces), few.map(lambda token: [token]))
    return draw(
        st.lists(
            st.lists(piece, max_size=10).map(lambda parts: [token for part in parts for token in part]), max_size=4
        )
    )


@given(st.data(), any_markers, st.booleans(), st.booleans())
@settings(max_examples=500)
def test_labels_equal_the_walk(data, markers, last, with_labels):
    rows = data.draw(rows_with(markers))
    ids = np.array([token for row in rows for token in row], np.int32)
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    old = [[-100 if (n + len(row)) % 3 else 50 + n for n in range(len(row))] for row in rows] if with_labels else None
    given_ = np.array([label for row in old for label in row], np.int32) if old else None
    found, _ = mask_responses(ids, offsets, markers, last_response_only=last, given=given_)
    expected = [naive_labels(row, markers, old and old[n], last) for n, row in enumerate(rows)]
    assert found.tolist() == [label for row in expected for label in row]


QUIRKS = UnslothMarkers(response=Core([7, 8], [], [9]), instruction=Core([5], [4], [6]), opener=[], bos=1, eos=2)


@pytest.mark.parametrize(
    ("row", "trained"),
    [
        ([5, 10, 7, 8, 9, 11, 2, 5], [5, 6]),  # the optional token is the marker's; EOS is kept
        ([7, 8, 11, 5], [2, 3]),  # an instruction marker that is the last token is trained
        ([7, 8, 11, 4, 5, 12], [2]),  # and its optional token before it is not
        ([7, 8, 11, 4, 12], [2]),  # nor the last token behind it, with no instruction in sight
        ([7, 8, 11, 4], [2, 3]),
        ([7, 8, 11, 12, 4, 13], [2, 3]),
        ([7, 8, 11, 1, 12], [2]),  # BOS: another sample
        ([7, 8, 7, 8, 11], [4]),
        ([7, 8], []),
    ],
)
def test_quirks(row, trained):
    ids = np.array(row, np.int32)
    found, _ = mask_responses(ids, np.array([0, len(row)]), QUIRKS)
    assert np.flatnonzero(found != -100).tolist() == trained


@pytest.mark.parametrize(("row", "trained"), [([7, 8, 11, 2, 7, 8, 5, 3], []), ([7, 8, 11, 2, 7, 8], [2, 3])])
def test_the_last_turn_may_be_empty_but_not_at_the_end(row, trained):
    found, _ = mask_responses(np.array(row, np.int32), np.array([0, len(row)]), QUIRKS, last_response_only=True)
    assert np.flatnonzero(found != -100).tolist() == trained


def letters(text):
    """A tokenizer of letters, in which a line break takes in the letter behind it."""
    ids = []
    for n, letter in enumerate(text):
        if n and text[n - 1] == "\n" and letter.islower():
            ids[-1] = 500
        else:
            ids.append(ord(letter))
    return ids


def test_edges_that_neighbours_change_are_optional_beside_an_added_token():
    assert core_of("<u\n", letters, True, frozenset({ord("<")})) == Core([ord("<"), ord("u")], [], [10])
    assert core_of("<u\n", letters, True, frozenset()) == Core([ord("<"), ord("u"), 10], [], [])


def test_without_force_match_what_all_spellings_share_is_looked_for():
    assert core_of("\nuv:\n", letters, False, frozenset()) == Core([ord("v"), ord(":")], [500], [10])


def test_without_force_match_a_short_marker_has_no_core():
    assert (
        core_of("\nu:\n", letters, False, frozenset()).ids == []
    )  # a 0 that is put behind every spelling is as common


def test_a_marker_without_tokens_has_no_core():
    assert core_of("", lambda text: [], True, frozenset()).ids == []


def test_the_opener_is_what_both_markers_begin_with_if_that_is_control_tokens():
    user, answer = Core([3, 4, 5], [], []), Core([3, 4, 6], [], [])
    options = {"special": frozenset({3}), "named": frozenset({3}), "bos": None, "eos": 2}
    assert unsloth_markers(user, answer, **options).opener == []
    both = {**options, "special": frozenset({3, 4})}
    assert unsloth_markers(user, answer, **both).opener == [3, 4]
    assert unsloth_markers(user, answer, **{**both, "named": frozenset()}).opener == []


def test_a_marker_that_begins_the_other_one_gets_its_edge_back():
    user, answer = Core([3, 5], [], []), Core([3], [], [6])
    made = unsloth_markers(user, answer, special=frozenset(), named=frozenset(), bos=None, eos=None)
    assert made.response == Core([3, 6], [], [])
