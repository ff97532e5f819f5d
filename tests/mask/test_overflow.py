"""Overflow: array code against loops, then the policies on a toy template whose every token tells its origin."""

from collections import Counter
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premask.dtypes import Examples
from premask.mask.cut import joined, last_fitting, last_trained, shortened
from premask.mask.limits import Limits
from premask.mask.overflow import fit
from premask.mask.pieces import exchanges, within_reach
from premask.mask.split import CHUNK_BYTES
from premask.read import Conversation
from premask.render.program import Failure

# --- array code -----------------------------------------------------------------------------------------------------


@st.composite
def batches(draw):
    """Examples and the message behind every span; now and then a turn goes on behind another one's."""
    ids, spans, messages, lengths, sizes = [], [], [], [], []
    count = draw(st.integers(0, 5))
    for _ in range(count):
        at, size = 1, draw(st.integers(1, 5))
        for _ in range(size):
            start = at + draw(st.integers(0, 3))
            at = start + draw(st.integers(1, 4))
            spans.append((start, at))
            messages.append(draw(st.integers(0, 3)))
        lengths.append(at + draw(st.integers(0, 3)))
        ids += [draw(st.integers(0, 99)) for _ in range(lengths[-1])]
        sizes.append(size)
    examples = Examples(
        ids=np.array(ids, np.int32),
        offsets=np.cumsum([0, *lengths]),
        spans=np.array(spans, np.int32).reshape(-1, 2),
        span_offsets=np.cumsum([0, *sizes]),
        span_weights=np.linspace(0.5, 1, len(spans), dtype=np.float32),
        rows=np.arange(count, dtype=np.int64)[::-1] // 2,
        turns=np.arange(count, dtype=np.int32),
        source_turns=np.arange(count, dtype=np.int32) - 1,
        digests=np.arange(count * 16, dtype=np.uint8).reshape(count, 16),
    )
    return examples, np.array(messages, np.int32)


def one_by_one(examples):
    """Every example as plain values."""
    found = []
    for n in range(len(examples)):
        tokens = slice(*examples.offsets[n : n + 2])
        spans = slice(*examples.span_offsets[n : n + 2])
        values = [examples.ids[tokens], examples.spans[spans], examples.span_weights[spans], examples.digests[n]]
        rest = [int(getattr(examples, name)[n]) for name in ("rows", "source_turns", "turns")]
        found.append((*rest, *(value.tolist() for value in values)))
    return found


@given(batches(), st.integers(0, 30))
def test_the_last_turn_that_fits(case, limit):
    examples, messages = case
    found = last_fitting(examples, messages, limit)
    for n in range(len(examples)):
        a, b = examples.span_offsets[n : n + 2].tolist()
        good = [
            s
            for s in range(a, b)
            if examples.spans[s, 1] <= limit and not set(messages[a : s + 1]) & set(messages[s + 1 : b])
        ]
        assert found[n] == max(good, default=-1)
        assert last_trained(examples)[n] == examples.spans[a:b, 1].max()


@given(batches(), st.data())
def test_examples_are_shortened(case, data):
    examples, _ = case
    lengths = np.array([data.draw(st.integers(0, length)) for length in examples.lengths.tolist()], np.int64)
    expected = []
    for (*rest, ids, spans, weights, hash_), length in zip(one_by_one(examples), lengths, strict=True):
        kept = [n for n, (_, end) in enumerate(spans) if end <= length]
        expected.append((*rest, ids[:length], [spans[n] for n in kept], [weights[n] for n in kept], hash_))
    assert one_by_one(shortened(examples, lengths)) == expected


@given(st.lists(batches(), min_size=1, max_size=3))
def test_batches_are_joined_in_order(cases):
    parts = [examples for examples, _ in cases]
    together = [each for part in parts for each in one_by_one(part)]
    assert one_by_one(joined(parts)) == sorted(together, key=lambda example: example[:2])


# --- where conversations may be cut ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "head", "starts"),
    [
        ("s ua ua", 1, [1, 3, 5]),
        ("ua ua", 0, [0, 2, 4]),
        ("a ua", 0, [0, 1, 3]),
        ("sd uata uua u", 2, [2, 6, 9, 10]),
        ("ua sua", 0, [0, 2, 5]),
        ("ua sa ua", 0, [0, 4, 6]),
        ("s a", 1, [1, 2]),
        ("s", 1, [1, 1]),
    ],
)
def test_exchanges_begin_where_a_user_speaks(roles, head, starts):
    names = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool"}
    messages = [{"role": names[role], "content": "x"} for role in roles.replace(" ", "")]
    found = exchanges(0, Conversation(messages), "all")
    assert (found.head, found.starts) == (head, starts)


def test_what_is_trained_is_stated_before_it_is_cut():
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant") * 3]
    stated = [None, None, None, 0.5, None, None]
    for train_on, expected in (("all", [1, 0.5, 1]), ("last", [0, 0.5, 1]), ("none", [0, 0.5, 0])):
        assert exchanges(0, Conversation(messages, weights=stated), train_on).conversation.weights[1::2] == expected
    piece = exchanges(0, Conversation(messages, weights=stated), "last").piece(1, 2)
    assert (piece.messages, piece.weights) == (messages[2:4], [0.0, 0.5])


def test_reach_counts_ink_only():
    contents = ["ab c", [{"type": "text", "text": " de\n"}, {"type": "text", "text": "f"}], None, "gh"]
    messages = [{"role": "user", "content": content} for content in contents]
    conversation = Conversation(messages, weights=[1.0, None, 0.0, 2.0])
    assert [len(within_reach(conversation, most).messages) for most in (2, 3, 5, 6, 7, 8)] == [0, 1, 1, 3, 3, 4]
    assert within_reach(conversation, 6).weights == [1.0, None, 0.0]
    assert within_reach(conversation, None) is conversation


# --- a toy template -------------------------------------------------------------------------------------------------

ROLES = {"system": 1, "user": 2, "assistant": 3, "tool": 4}
STOP, BREAK, THOUGHT, CALL = 8, 9, 10, 11


@dataclass
class ToyMasked:
    examples: Examples
    messages: np.ndarray
    failures: dict[int, Failure]
    counts: Counter


def toy_tokens(conversation, thinking):
    """Ids; spans of `(start, end, message)`. Content `"7x4"` is the token 107 four times, a call in between."""
    ids, spans = [5], []
    answers = [n for n, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    for n, message in enumerate(conversation.messages):
        uid, _, size = message["content"].partition("x")
        ids.append(ROLES[message["role"]])
        start = len(ids)
        if n in answers and thinking and n == answers[-1]:
            ids += [THOUGHT] * thinking
        ids += [100 + int(uid)] * int(size)
        if n in answers and int(size) % 3 == 0:  # a call that is not trained, before the stop token that is
            spans.append((start, len(ids), n))
            ids += [CALL] * 2
            start = len(ids)
        ids += [STOP, BREAK]
        if n in answers:
            spans.append((start, len(ids) - 1, n))
    return ids, spans


class Toy:
    def __init__(self, thinking=0, broken=None):
        self.thinking, self.broken = thinking, broken
        self.largest = 0

    def __call__(self, conversations):
        failures, kept, parts = {}, [], []
        for row, conversation in enumerate(conversations):
            answers = [n for n, message in enumerate(conversation.messages) if message["role"] == "assistant"]
            weights = conversation.weights or [None] * len(conversation.messages)
            ids, spans = toy_tokens(conversation, self.thinking)
            self.largest = max(self.largest, len(ids))
            trained = {n: 1.0 if weights[n] is None else weights[n] for n in answers}
            spans = [span for span in spans if trained[span[2]] and span[1] > span[0]]
            if self.broken is not None and any(
                m["content"].startswith(f"{self.broken}x") for m in conversation.messages[:1]
            ):
                failures[row] = Failure("template_error", "no")
            elif not spans:
                failures[row] = Failure("nothing_to_train", "nothing")
            else:
                kept.append(row)
                parts.append((ids, spans, [trained[n] for *_, n in spans], len(answers)))
        spans = [span for _, spans, _, _ in parts for span in spans]
        examples = Examples(
            ids=np.array([i for ids, *_ in parts for i in ids], np.int32),
            offsets=np.cumsum([0, *(len(ids) for ids, *_ in parts)]),
            spans=np.array([span[:2] for span in spans], np.int32).reshape(-1, 2),
            span_offsets=np.cumsum([0, *(len(spans) for _, spans, _, _ in parts)]),
            span_weights=np.array([w for _, _, weights, _ in parts for w in weights], np.float32),
            rows=np.array(kept, np.int64),
            turns=np.array([turns for *_, turns in parts], np.int32),
            source_turns=np.full(len(parts), -1, np.int32),
            digests=np.zeros((len(kept), 0), np.uint8),
        )
        messages = np.array([n for *_, n in spans], np.int32)
        return ToyMasked(examples, messages, failures, Counter(masked=len(conversations)))


@st.composite
def conversations(draw, least=0):
    """Conversations of exchanges; contents are numbered over the whole conversation."""
    roles = draw(st.sampled_from([[], ["system"]]))
    for _ in range(draw(st.integers(1, 5))):
        roles = [*roles, "user", "assistant", *draw(st.sampled_from([[], ["tool", "assistant"], ["assistant"]]))]
    roles += draw(st.sampled_from([[], ["user"]]))
    messages = [{"role": role, "content": f"{n}x{draw(st.integers(least, 12))}"} for n, role in enumerate(roles)]
    stated = st.sampled_from([None, None, None, 0.0, 2.0])
    weights = [draw(stated) if role == "assistant" else None for role in roles]
    return Conversation(messages, weights=draw(st.sampled_from([None, weights])))


def limits(**changes):
    values = {
        "max_length": 30,
        "overflow": "drop",
        "trim_tail": True,
        "train_on": "all",
        "turns": "together",
        "reach": None,
    }
    return Limits(**(values | changes))


def trained_turns(conversation, thinking=0):
    """The messages that are trained, each with its tokens from its first span to its stop token."""
    ids, spans = toy_tokens(conversation, thinking)
    weights = conversation.weights or [None] * len(conversation.messages)
    wanted = {}
    for start, end, n in spans:
        if weights[n] is None or weights[n]:
            wanted.setdefault(n, []).append((start, end))
    return ids, {n: found for n, found in wanted.items() if any(end > start for start, end in found)}


def check(fitted, given_, options):
    """What holds whatever the policy."""
    examples, counts = fitted.examples, fitted.counts
    assert (examples.lengths <= options.max_length).all()
    assert (examples.supervised > 0).all()
    assert (np.diff(examples.rows) >= 0).all()
    assert set(examples.rows.tolist()) | set(fitted.failures) == set(range(len(given_)))
    assert not set(examples.rows.tolist()) & set(fitted.failures)
    assert counts["tokens_in"] + counts["tokens_repeated"] == (
        len(examples.ids) + counts["tokens_trimmed"] + counts["tokens_dropped"]
    )
    assert counts["turns_in"] == examples.turns.sum() + counts["turns_dropped"]
    assert min(counts.values()) >= 0
    if options.trim_tail:
        assert last_trained(examples).tolist() == examples.lengths.tolist()


BATCH = st.lists(conversations(), max_size=4)


@settings(deadline=None)
@given(BATCH, st.integers(8, 60), st.booleans())
def test_drop_keeps_rows_whole(given_, most, trim):
    options = limits(max_length=most, trim_tail=trim)
    fitted = fit(Toy(), given_, [0] * len(given_), options)
    check(fitted, given_, options)
    for row, conversation in enumerate(given_):
        ids, turns = trained_turns(conversation)
        if not turns:
            assert fitted.failures[row].reason == "nothing_to_train"
            continue
        length = max(end for spans in turns.values() for _, end in spans) if trim else len(ids)
        if length > most:
            assert fitted.failures[row].detail == f"expected at most {most} tokens, found {length}; raise --max-length"
        else:
            (place,) = np.flatnonzero(fitted.examples.rows == row)
            assert one_by_one(fitted.examples)[place][3] == ids[:length]


@settings(deadline=None)
@given(BATCH, st.integers(8, 60), st.booleans())
def test_truncate_cuts_behind_the_last_turn_that_fits(given_, most, trim):
    options = limits(max_length=most, trim_tail=trim, overflow="truncate")
    fitted = fit(Toy(), given_, [0] * len(given_), options)
    check(fitted, given_, options)
    for row, conversation in enumerate(given_):
        ids, turns = trained_turns(conversation)
        if not turns:
            continue
        ends = sorted(max(end for _, end in spans) for spans in turns.values())
        length = ends[-1] if trim else len(ids)
        if length > most:
            length = max((end for end in ends if end <= most), default=0)
        if not length:
            assert "or a trained turn that ends within them" in fitted.failures[row].detail
            continue
        (place,) = np.flatnonzero(fitted.examples.rows == row)
        _, source_turn, count, own, spans, *_ = one_by_one(fitted.examples)[place]
        assert (own, source_turn) == (ids[:length], -1)
        assert spans == [
            list(span) for found in turns.values() for span in found if span[1] > span[0] and span[1] <= length
        ]
        last = max(n for n, found in turns.items() if max(found)[1] <= length)
        if length < (ends[-1] if trim else len(ids)):
            assert count == sum(m["role"] == "assistant" for m in conversation.messages[: last + 1])


def uids(ids):
    return [token - 100 for token in ids if token >= 100]


@settings(deadline=None)
@given(st.lists(conversations(least=1), max_size=4), st.integers(8, 60), st.booleans(), st.sampled_from([0, 4]))
def test_split_trains_every_turn_once(given_, most, trim, thinking):
    options = limits(max_length=most, trim_tail=trim, overflow="split")
    fitted = fit(Toy(thinking), given_, [0] * len(given_), options)
    check(fitted, given_, options)
    pieces = one_by_one(fitted.examples)
    for row, conversation in enumerate(given_):
        _, turns = trained_turns(conversation, thinking)
        messages, weights = conversation.messages, conversation.weights or [None] * len(conversation.messages)
        roles = [message["role"] for message in messages]
        seen = Counter()
        for _, source_turn, _, tokens, spans, own, _ in (piece for piece in pieces if piece[0] == row):
            trained = [set(uids(tokens[a:b])) for a, b in spans]
            seen.update(set().union(*trained))
            for uid in set().union(*trained):  # no turn without its terminator, its weight as stated
                last = [place for place, token in enumerate(tokens) if token == 100 + uid][-1]
                stop = tokens.index(STOP, last)
                assert any(a <= stop < b for a, b in spans)
                assert {w for of, w in zip(trained, own, strict=True) if uid in of} == {weights[uid] or 1.0}
            if source_turn >= 0:
                size = int(messages[0]["content"].partition("x")[2])
                head = [5, 1, *[100] * size, STOP, BREAK] if roles[0] == "system" else [5]
                assert tokens[: len(head) + 1] == [*head, ROLES["user"]]
                first = next(uid for uid in uids(tokens) if roles[uid] == "assistant")
                assert source_turn == roles[:first].count("assistant")
        assert set(seen.values()) <= {1}
        assert seen or row in fitted.failures
        for n in set(turns) - set(seen):  # too long within its own exchange, or behind a turn that is
            begin = max(k for k in range(n) if roles[k] == "user" and (not k or roles[k - 1] != "user"))
            alone = messages[: roles[0] == "system"] + messages[begin : n + 1]
            ids, _ = trained_turns(Conversation(alone), thinking)
            assert len(ids) - 1 > most or row in fitted.failures


def test_split_puts_exchanges_together_as_far_as_they_fit():
    """Eight exchanges of 10 tokens behind a head of 5: three fit into 36."""
    roles = ["system", *("user", "assistant") * 8]
    sizes = [1, *(1, 3) * 8]
    messages = [
        {"role": role, "content": f"{n}x{size}"} for n, (role, size) in enumerate(zip(roles, sizes, strict=True))
    ]
    options = limits(max_length=40, overflow="split")
    fitted = fit(Toy(), [Conversation(messages)], [0], options)
    assert fitted.examples.turns.tolist() == [3, 3, 2]
    assert fitted.examples.source_turns.tolist() == [0, 3, 6]
    assert fitted.counts["turns_dropped"] == 0
    assert fitted.counts["tokens_repeated"] == 2 * len([5, 1, 100, STOP, BREAK])


def test_a_piece_that_cannot_be_masked_rejects_its_row():
    messages = [{"role": role, "content": f"{n}x5"} for n, role in enumerate(("user", "assistant") * 4)]
    fitted = fit(Toy(broken=4), [Conversation(messages)], [0], limits(overflow="split"))
    assert (len(fitted.examples), fitted.failures[0].reason) == (0, "template_error")
    assert fitted.failures[0].detail == "from turn 2 on, split off: no"
    assert fitted.counts["turns_dropped"] == 4


def test_a_piece_beyond_reach_is_halved_before_it_is_masked():
    """The second exchange cannot be masked alone, so that its length is unknown; with its neighbours it is too much."""
    messages = [{"role": role, "content": f"{n}x4"} for n, role in enumerate(("user", "assistant") * 4)]
    for message in messages[2:4]:
        message["content"] = "0" * 60 + message["content"]
    toy = Toy(broken="0" * 60 + "2")
    fitted = fit(toy, [Conversation(messages)], [0], limits(max_length=50, overflow="split", reach=130))
    assert (len(fitted.examples), fitted.failures[0].reason) == (0, "template_error")


@pytest.mark.parametrize("policy", ["drop", "truncate", "split"])
def test_what_is_beyond_reach_is_never_encoded(policy):
    roles = ("user", "assistant", "user", "assistant", "user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": f"{n}x{4}"} for n, role in enumerate(roles)]
    messages[5] = {"role": "assistant", "content": "5x4" + " " * 10 + "0" * 5000}
    toy = Toy()
    tokens = toy_tokens

    def refuse(conversation, thinking):
        assert all(len(message["content"]) < 1000 for message in conversation.messages), "encoded all the same"
        return tokens(conversation, thinking)

    globals()["toy_tokens"] = refuse
    try:
        fitted = fit(toy, [Conversation(messages)], [6000], limits(max_length=20, overflow=policy, reach=100))
    finally:
        globals()["toy_tokens"] = tokens
    assert fitted.counts["turns_in"] == fitted.examples.turns.sum() + fitted.counts["turns_dropped"]
    if policy == "drop":
        assert fitted.failures[0].detail == "expected at most 20 tokens, found more than 20; raise --max-length"
    elif policy == "truncate":
        assert fitted.examples.turns.tolist() == [1]
        assert fitted.counts["turns_in"] == 4
    else:
        assert fitted.examples.source_turns.tolist() == [0, 1, 3]
        assert fitted.counts["turns_dropped"] == 1


@pytest.mark.parametrize("policy", ["truncate", "split"])
def test_what_is_trained_is_decided_by_the_whole_row(policy):
    """The last turn lies beyond reach: the one before it is not the last, and stays untrained."""
    roles = ("user", "assistant") * 3
    messages = [{"role": role, "content": f"{n}x{2}"} for n, role in enumerate(roles)]
    messages[5]["content"] = "5x9" + "0" * 500
    options = limits(max_length=20, overflow=policy, reach=100, train_on="last")
    fitted = fit(Toy(), [Conversation(messages)], [600], options)
    assert fitted.failures[0].detail == (
        "expected at most 20 tokens, or a trained turn that ends within them, found more than 20; raise --max-length"
    )
    stated = Conversation(messages, weights=[None, 1.0, None, None, None, None])
    fitted = fit(Toy(), [stated], [600], options)
    assert [uids(ids) for *_, ids, _, _, _ in one_by_one(fitted.examples)] == [[0, 0, 1, 1]]


def test_pieces_are_masked_a_few_at_a_time():
    """Every piece repeats the head: masked all at once, a row would take as many times its memory."""
    head = {"role": "system", "content": "0x5" + " " * 2**20}
    roles = ("user", "assistant") * 20
    messages = [head, *({"role": role, "content": f"{n}x2"} for n, role in enumerate(roles, 1))]
    toy, sizes = Toy(), []

    def mask(given_):
        sizes.append(sum(len(m["content"]) for c in given_ for m in c.messages))
        return toy(given_)

    options = limits(max_length=30, overflow="split")
    fitted = fit(mask, [Conversation(messages)] * 3, [2**21] * 3, options)
    check(fitted, [Conversation(messages)] * 3, options)
    assert fitted.counts["turns_dropped"] == 0
    assert max(sizes) < 2 * CHUNK_BYTES < sum(sizes)


def test_a_conversation_of_very_many_turns_is_cut_in_no_time():
    messages = [{"role": role, "content": "1x1"} for role in ("user", "assistant") * 50_000]
    start = perf_counter()
    found = exchanges(0, Conversation(messages), "all")
    assert (len(found), found.turns[-1]) == (50_000, 50_000)
    assert perf_counter() - start < 5


def test_beyond_reach_but_not_trained_is_kept():
    messages = [
        {"role": role, "content": f"{n}x2"} for n, role in enumerate(("user", "assistant", "user", "assistant"))
    ]
    messages[3]["content"] = "3x2" + " " * 500
    options = limits(max_length=20, reach=100)
    fitted = fit(Toy(), [Conversation(messages, weights=[None, None, None, 0.0])], [600], options)
    assert len(fitted.examples) == 1


@pytest.mark.parametrize(("policy", "left"), [("drop", []), ("truncate", [0, 1]), ("split", [0, 1])])
def test_separate_turns_are_dropped_alone_unless_rows_are_whole(policy, left):
    sizes = (2, 2, 2, 2, 2, 20)
    roles = ("user", "assistant") * 3
    whole = Conversation(
        [{"role": r, "content": f"{n}x{s}"} for n, (r, s) in enumerate(zip(roles, sizes, strict=True))]
    )
    toy = Toy()

    def separate(given_):
        parts = [
            replace(c, messages=c.messages[:end], weights=[0.0] * (end - 1) + [1.0])
            for c in given_
            for end in (2, 4, 6)
        ]
        masked = toy(parts)
        turns = masked.examples.rows % 3
        changed = replace(
            masked.examples,
            rows=masked.examples.rows // 3,
            source_turns=turns.astype(np.int32),
            turns=np.ones(len(turns), np.int32),
        )
        return replace(masked, examples=changed)

    options = limits(overflow=policy, turns="separate")
    fitted = fit(separate, [whole], [0], options)
    check(fitted, [whole], options)
    assert fitted.examples.source_turns.tolist() == left
    assert fitted.counts["turns_dropped"] == 3 - len(left)
