"""Masks from ids alone against those of `prepare`, which knows from whom every byte comes; and the markers sought."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from premask.errors import UsageError
from premask.feed.markers import KnownTokenizer, sampled_markers
from premask.mask.responses import mask_responses


def known(families, name):
    stops = [families.encoder(name).id_of(stop) for stop in families.vocabulary(name).stops]
    return KnownTokenizer(
        tokenizer_json=families.family_tokenizer(name),
        chat_template=families.source(name),
        special_tokens=families.variables(name),
        stops=stops,
    )


@pytest.mark.parametrize("name", ["llama3_1", "qwen3", "gemma3", "phi3", "premask:alpaca", "glm4moe"])
def test_labels_from_ids_are_those_of_prepare(name, families, samples, masker_of):
    """But in rows whose text spells a control token, of which no ids can tell who wrote it."""
    forging = ("<|", "[INST]", "</s>", "### ", "<think>", "<tool_call>")
    rows = [
        replace(c, weights=None, template_args={})
        for c in samples
        if not any(word in str(message) for message in c.messages for word in forging)
    ]
    examples = masker_of(name, control_tokens="allow").mask(rows).examples
    assert len(examples) > 40
    markers, _ = sampled_markers(known(families, name), None)
    labels, quoted = mask_responses(examples.ids, examples.offsets, markers)
    assert not quoted.any()
    spans = iter(np.split(examples.spans, examples.span_offsets[1:-1]))
    for start, end in itertools.pairwise(examples.offsets.tolist()):
        right = np.full(end - start, -100)
        for first, behind in next(spans).tolist():
            right[first:behind] = examples.ids[start + first : start + behind]
        assert labels[start:end].tolist() == right.tolist()


def test_a_template_without_markers_says_so(families):
    with pytest.raises(UsageError, match="cannot be found by markers"):
        sampled_markers(known(families, "premask:plain"), None)


def test_parts_that_are_not_the_templates_stand_alone(families):
    markers, sought = sampled_markers(known(families, "qwen3"), ("<|im_start|>human\n", "<|im_start|>bot\n"))
    assert sought.headers == ("<|im_start|>bot\n",)
    assert sought.closings == ("<|im_end|>",)
    assert sought.openings == ("<|im_start|>human\n", "<|im_start|>")  # with it, any other role ends a turn
    assert not sought.anchors
    assert markers.restarts.sum() == 1


def test_anchors_are_what_a_template_always_writes_before_a_marker(families):
    _, sought = sampled_markers(known(families, "qwen3"), None)
    assert sought.anchors["<|im_start|>user\n"] == "<|im_end|>\n"
    assert sought.anchors["<|im_start|>assistant\n"] == "<|im_end|>\n"
    _, sought = sampled_markers(known(families, "premask:alpaca"), None)
    assert sought.anchors["### Response:\n"] == "\n\n"
