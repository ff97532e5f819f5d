"""Our masks against the `{% generation %}` regions that templates mark themselves (trl's training twins, LFM2.5).

Where the two differ, every difference is one of the declared kinds, and every kind that is declared for a template does
occur: the table is neither too long nor too short.
"""

import re

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

WHITE_SPACE = "theirs: white space behind the terminator (generation has stopped by then)"
OPENING = "theirs: the opening of the thinking, which the generation prompt gives (never sampled)"
HEADER = "theirs: the role header, or its last character (given with the generation prompt, never sampled)"
END = "theirs: what the template writes behind the whole conversation (belongs to no turn)"
CALL = "ours: the stop token behind a call (the model has to write it, or it would go on and invent the result)"

SPACE, SPACE_AND_OPENING = {WHITE_SPACE}, {WHITE_SPACE, OPENING}
TABLE = {
    "cohere2_training": set(),
    "cohere_training": set(),
    "deepseek_r1_distill_training": {HEADER},
    "deepseekv3_training": {HEADER},
    "diffusion_gemma_training": {WHITE_SPACE, CALL},
    "gemma3_training": SPACE,
    "gemma_training": SPACE,
    "glm4moe_training": set(),
    "gptoss_training": {HEADER},
    "idefics3_training": SPACE,
    "lfm2_2_5": SPACE,
    "lfm2_2_5_v2": SPACE,
    "lfm2_2_5_vl": SPACE,
    "lfm2_training": SPACE,
    "lfm2_v2_training": SPACE,
    "llama3_training": set(),
    "llava_next_training": set(),
    "muse_glimmer_training": {HEADER},
    "nemotron_3_5_lightning_training": SPACE_AND_OPENING,
    "nemotron_3_nano_training": SPACE_AND_OPENING,
    "nemotron_3_super_training": SPACE_AND_OPENING,
    "nemotron_3_ultra_training": SPACE_AND_OPENING,
    "phi3_5_training": {WHITE_SPACE, END},
    "phi3_training": {WHITE_SPACE, END},
    "qwen2_5_training": {WHITE_SPACE, HEADER},
    "qwen2_5_vl_training": SPACE,
    "qwen3_5_nothink_training": SPACE_AND_OPENING,
    "qwen3_5_think_training": SPACE_AND_OPENING,
    "qwen3_6_training": SPACE_AND_OPENING,
    "qwen3_8_training": SPACE_AND_OPENING,
    "qwen3_instruct_2507_training": SPACE,
    "qwen3_training": SPACE,
    "qwen3_vl_training": SPACE,
    "smolvlm_training": SPACE,
}
"""Every template with `{% generation %}`, and how our mask differs from its own."""

HEADERS = {"<｜Assistant｜>", "<｜tool▁outputs▁end｜>", "<|start|>assistant", "\n"}


def test_the_table_holds_every_marked_template(families):
    marked = {n for n in families.NAMES if re.search(r"\{%-?\s*generation\b", families.source(n))}
    assert marked == set(TABLE)


@pytest.fixture(scope="module")
def marked_rows(samples, masker_of, template_of):
    """`marked_rows(name)`: the samples that are kept under a template, each with the template's own regions."""

    def rows(name):
        template = template_of(name)
        masked = masker_of(name).mask(samples)
        for n, row in enumerate(masked.examples.rows.tolist()):
            conversation = samples[row]
            if conversation.weights is None:
                yield n, conversation, regions(template, conversation), masked

    return rows


def regions(template, conversation):
    """The characters inside `{% generation %}`, as transformers reports them."""
    _, (found,) = render_jinja_template(
        [template.formed(conversation.messages)],
        tools=conversation.tools,
        chat_template=template.source,
        return_assistant_tokens_mask=True,
        **template.variables,
        **conversation.template_args,
    )
    return [(start, end) for start, end in found if start < end]


def differences(ours, theirs, size):
    """Maximal stretches of characters that one side trains and the other does not."""
    mine = {i for a, b in ours for i in range(a, b)}
    other = {i for a, b in theirs for i in range(a, b)}
    for name, characters in (("ours", mine - other), ("theirs", other - mine)):
        for run in re.finditer("x+", "".join("x" if i in characters else " " for i in range(size))):
            yield name, *run.span()


def kinds(whose, start, end, judged):
    """What a difference is; what is of no kind is named as it stands."""
    text = judged.text[start:end]
    ends, starts = {b for _, b in judged.spans}, {a for a, _ in judged.spans}
    if whose == "ours" and text == "<|tool_response>" and end in ends:
        return {CALL}
    if whose == "theirs" and start in ends and text.isspace():
        return {WHITE_SPACE}
    if whose == "theirs" and start in ends and end == len(judged.text) and text.strip() == "<|endoftext|>":
        return {WHITE_SPACE, END}
    if whose == "theirs" and end in starts and text.startswith("<think>"):
        return {OPENING}
    if whose == "theirs" and end in starts and text in HEADERS:
        return {HEADER}
    return {f"{whose}: {judged.text[max(0, start - 40) : start]!r} >>> {text!r} <<<"}


@pytest.mark.parametrize("name", TABLE)
def test_differences_are_the_declared_ones(name, marked_rows, template_of, oracles):
    found, rows = set(), 0
    for _, conversation, theirs, _ in marked_rows(name):
        _, judged = oracles.judge(template_of(name), conversation)
        for whose, start, end in differences(judged.spans, theirs, len(judged.text)):
            found |= kinds(whose, start, end, judged)
        rows += 1
    assert found == TABLE[name]
    assert rows > 40


@pytest.mark.parametrize("name", TABLE)
def test_mask_generation_is_the_templates_own(name, samples, masker_of, template_of, oracles):
    """`mask=generation` against a loop: the tokens whose characters lie in a region."""
    template = template_of(name)
    masked = masker_of(name, mask="generation").mask(samples)
    compared = 0
    for n, row in enumerate(masked.examples.rows.tolist()):
        conversation = samples[row]
        found = oracles.judge(template, conversation)
        if found is None or conversation.weights is not None:
            continue
        ids, ranges = oracles.tokenized(template, found[1])
        expected = oracles.labels(ids, ranges, regions(template, conversation))
        assert oracles.arrays(masked.examples, n) == (ids, expected), f"row {row}"
        compared += 1
    assert compared > 40


@pytest.mark.parametrize("name", TABLE)
def test_mask_generation_equals_transformers(name, samples, families, masker_of, template_of):
    """With straddling tokens trained it is what `apply_chat_template(return_assistant_tokens_mask=True)` gives.

    transformers trains the first byte only of a character at a region's end that byte fallback writes as several.
    """
    template = template_of(name)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(families.family_tokenizer(name).decode()), **template.variables
    )
    masked = masker_of(name, mask="generation", straddle="train", control_tokens="allow").mask(samples)
    compared = 0
    for n, row in enumerate(masked.examples.rows.tolist()):
        conversation = samples[row]
        if conversation.weights is not None or swallows(template, conversation) or null_beside_calls(conversation):
            continue
        theirs = tokenizer.apply_chat_template(
            template.formed(conversation.messages),
            tools=conversation.tools,
            chat_template=template.source,
            return_assistant_tokens_mask=True,
            **conversation.template_args,
        )
        examples = masked.examples
        labels = [0] * (examples.offsets[n + 1] - examples.offsets[n])
        for start, end in examples.spans[examples.span_offsets[n] : examples.span_offsets[n + 1]].tolist():
            labels[start:end] = [1] * (end - start)
        ids = examples.ids[examples.offsets[n] : examples.offsets[n + 1]].tolist()
        assert ids == theirs["input_ids"]
        differing = [i for i, a, b in zip(ids, labels, theirs["assistant_masks"], strict=True) if a != b]
        assert all(re.fullmatch("<0x..>", tokenizer.convert_ids_to_tokens(i)) for i in differing), f"row {row}"
        compared += 1
    assert compared > 40


def swallows(template, conversation):
    """Whether a header swallows the beginning of an answer: transformers then trains the header (Phi-3)."""
    if not any(token.rstrip for token in template.added):
        return False
    return any(m["role"] == "assistant" and str(m["content"])[:1].isspace() for m in conversation.messages)


def null_beside_calls(conversation):
    """transformers drops the null, and DeepSeek's templates fail without it."""
    return any(m.get("tool_calls") and m.get("content") is None for m in conversation.messages)
