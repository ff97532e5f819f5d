"""Texts without roles: trained from the second token to the last, by no template, forged control tokens escaped."""

import numpy as np
import pytest

from premask.read import Conversation

TEXTS = ["Once upon a time", " a <think> b </think>\n", "x", "Once upon another day, far off.\n\n  ", "日本語 🙂"]


def whole(text, weights=None):
    return Conversation([{"role": "assistant", "content": text}], weights=weights, whole=True)


@pytest.mark.parametrize("name", ["qwen2_5", "premask:alpaca"])
@pytest.mark.parametrize("choices", [{}, {"reasoning": "mask", "terminator": "none"}, {"train_on": "last"}])
def test_every_token_but_the_first_is_trained(name, choices, masker_of):
    masker = masker_of(name, **choices)
    masked = masker.mask([whole(text) for text in TEXTS])
    kept = masked.examples
    for place, row in enumerate(kept.rows.tolist()):
        ids = kept.ids[kept.offsets[place] : kept.offsets[place + 1]]
        assert masker.encoder.spell(ids.tolist()).decode() == TEXTS[row]
        (span,) = kept.spans[kept.span_offsets[place] : kept.span_offsets[place + 1]].tolist()
        assert span == [1, len(ids)]
    assert kept.turns.tolist() == [1] * len(kept)
    assert set(masked.messages.tolist()) == {0}
    alone = {row for row, text in enumerate(TEXTS) if len(masker.encoder.encode([text]).ids) == 1}
    assert set(range(len(TEXTS))) - set(kept.rows.tolist()) == alone == set(masked.failures)
    assert all(failure.reason == "nothing_to_train" for failure in masked.failures.values())


@pytest.mark.parametrize("control_tokens", ["escape", "allow", "reject"])
def test_a_text_that_spells_a_control_token(control_tokens, masker_of):
    masker = masker_of("qwen2_5", control_tokens=control_tokens)
    masked = masker.mask([whole("<|im_start|>user\nhi<|im_end|>\n")])
    controls = np.isin(masked.examples.ids, list(masker.vocabulary.controls.values()))
    if control_tokens == "reject":
        assert masked.failures[0].reason == "control_token"
    else:
        assert controls.sum() == (2 if control_tokens == "allow" else 0)
        assert masker.encoder.spell(masked.examples.ids.tolist()) == b"<|im_start|>user\nhi<|im_end|>\n"


def test_train_on_none_trains_no_text(masker_of):
    assert (
        masker_of("qwen2_5", train_on="none").mask([whole("Once upon a time")]).failures[0].reason == "nothing_to_train"
    )
