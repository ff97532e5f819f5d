"""Overflow with real templates and conversations: what is left is a part of what masking the whole row leaves."""

import re
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest

from premask.dtypes import Examples
from premask.mask.limits import Limits
from premask.mask.overflow import fit

SOURCES = {"oasst": 60, "taskmaster": 40, "glaive_en": 60, "airline": 12, "reasoning": 20, "loss_weights": 40}
TEMPLATES = ["qwen2_5", "llama3_1", "qwen3", "premask:alpaca"]


@dataclass
class WithMessages:
    examples: Examples
    messages: np.ndarray
    failures: dict
    counts: Counter


def messages_of(masker, conversations, masked):
    """The message behind every span, told by weights that number the messages."""
    numbered = []
    for conversation in conversations:
        weights = conversation.weights or [None] * len(conversation.messages)
        numbers = [0.0 if weight == 0 else n + 1.0 for n, weight in enumerate(weights)]
        numbered.append(replace(conversation, weights=numbers))
    examples = masker.mask(numbered).examples
    assert examples.spans.tolist() == masked.examples.spans.tolist()
    return examples.span_weights.astype(np.int32) - 1


def numbering(masker):
    """The masker as overflow wants it."""

    def mask(conversations):
        masked = masker.mask(conversations)
        messages = messages_of(masker, conversations, masked)
        return WithMessages(masked.examples, messages, masked.failures, masked.counts)

    return mask


def limits(most, policy):
    return Limits(max_length=most, overflow=policy, trim_tail=True, train_on="all", turns="together", reach=None)


@pytest.fixture(scope="module", params=sorted(SOURCES))
def rows(request, shared_rows):
    return shared_rows(request.param, SOURCES[request.param])


def spelled(examples, masker):
    """The trained spans of every example, as bytes; without the thinking, which Qwen3 writes in the last turn only."""
    found = []
    for n in range(len(examples)):
        ids = examples.ids[slice(*examples.offsets[n : n + 2])]
        spans = examples.spans[slice(*examples.span_offsets[n : n + 2])].tolist()
        texts = [masker.encoder.spell(ids[a:b].tolist()) for a, b in spans]
        found.append([re.sub(rb"<think>.*?</think>\n\n", b"", text, flags=re.DOTALL) for text in texts])
    return found


def adds_up(fitted):
    counts, examples = fitted.counts, fitted.examples
    kept = len(examples.ids) + counts["tokens_trimmed"] + counts["tokens_dropped"]
    assert counts["tokens_in"] + counts["tokens_repeated"] == kept
    assert counts["turns_in"] == examples.turns.sum() + counts["turns_dropped"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_truncated_row_is_the_beginning_of_the_whole_one(name, rows, masker_of):
    masker = masker_of(name)
    whole = masker.mask(rows)
    most = int(np.median(whole.examples.lengths)) if len(whole.examples) else 100
    fitted = fit(numbering(masker), rows, [0] * len(rows), limits(most, "truncate"))
    adds_up(fitted)
    examples = fitted.examples
    places = {row: n for n, row in enumerate(whole.examples.rows.tolist())}
    messages = messages_of(masker, rows, whole)
    for n, row in enumerate(examples.rows.tolist()):
        of = places[row]
        a, b = whole.examples.offsets[of : of + 2]
        ids = examples.ids[slice(*examples.offsets[n : n + 2])]
        assert len(ids) <= most
        assert ids.tolist() == whole.examples.ids[a : a + len(ids)].tolist()
        assert a + len(ids) <= b
        spans = range(*whole.examples.span_offsets[of : of + 2])
        ends = {int(messages[s]): int(whole.examples.spans[s, 1]) for s in spans}  # the last of each turn
        last = max(ends.values())
        assert len(ids) == (last if last <= most else max(end for end in ends.values() if end <= most))
    lost = set(places) - set(examples.rows.tolist())
    assert all(fitted.failures[row].reason == "too_long" for row in lost)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_pieces_of_a_row_train_what_the_row_trains(name, rows, masker_of):
    masker = masker_of(name)
    whole = masker.mask(rows)
    most = int(np.median(whole.examples.lengths)) if len(whole.examples) else 100
    fitted = fit(numbering(masker), rows, [0] * len(rows), limits(most, "split"))
    adds_up(fitted)
    assert (fitted.examples.lengths <= most).all()
    trained = dict(zip(whole.examples.rows.tolist(), spelled(whole.examples, masker), strict=True))
    found: dict[int, Counter] = {}
    for row, texts in zip(fitted.examples.rows.tolist(), spelled(fitted.examples, masker), strict=True):
        found.setdefault(row, Counter()).update(texts)
    for row, counts in found.items():
        assert counts <= Counter(trained[row]), row
    lost = sum(len(texts) for texts in trained.values()) - sum(counts.total() for counts in found.values())
    assert lost <= fitted.counts["turns_dropped"]
    assert {fitted.failures[row].reason for row in set(trained) - set(found)} <= {"too_long"}
