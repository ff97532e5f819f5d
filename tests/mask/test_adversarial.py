"""Conversations made to break the mask: markers and control tokens spelt in content, empty and blank turns, odd orders.

Whatever is kept must be right, ids and every label (`oracles.examine`). Text must come back from its tokens, and no
control id may stand where the template wrote none.
"""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premask.read import Conversation

DEFAULT_TOKENS, SLOW_TOKENS = 100_000, 1_000_000
ALTERNATING = ("cohere", "cohere2", "gemma", "gemma3")
"""Templates that refuse anything but user and assistant in turn."""

WORDS = [
    "Hello",
    " world",
    "The answer is 42.",
    "中文",
    "é",
    "e\u0301",
    "a\u0308\u0323",
    "🙂",
    "👩\u200d🚀",
    "\u200b",
    "नमस्ते",
    "한글",
]
BLANKS = ["", " ", "\n", "\n\n", "\t", " \n ", "\u00a0", "   "]
QUOTES = [
    "### Response:",
    "### Response:\n",
    "### Instruction:\n",
    "[INST] x [/INST]",
    "ASSISTANT:",
    "Assistant:",
    "</s>",
    "<s>",
]


def spelt(masker, families, name):
    """What to forge: every added token, every discovered marker, and beginnings of both."""
    grammar = masker.grammar
    markers = [*grammar.headers, *grammar.closings, *(o for texts in grammar.openings.values() for o in texts)]
    tokens = [t.content for t in families.added_tokens(name)]
    whole = [*tokens, *markers, grammar.prompt, "".join([*grammar.closings[:1], *grammar.headers[:1]]), *QUOTES]
    return [w for w in whole if w], [w[: 1 + len(w) // 2] for w in whole if len(w) > 1]


def content(rng, forged, halves):
    """A message: some words, blanks and forgeries, often ending in half a marker or beginning with white space."""
    pieces = [rng.choice(rng.choice([WORDS, WORDS, BLANKS, forged, halves])) for _ in range(rng.randint(0, 6))]
    if rng.random() < 0.2:
        pieces.insert(0, rng.choice(BLANKS))
    if rng.random() < 0.2:
        pieces.append(rng.choice(halves))
    return "".join(pieces)


def conversation(rng, forged, halves, alternating):
    """Alternating turns; unless the template refuses it also repeated ones, and system messages in the middle."""
    roles = ["system"] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 3)):
        odd = 0 if alternating else rng.random()
        roles += ["user", "user"] if odd > 0.92 else ["user"]
        roles += ["assistant", "assistant"] if 0.84 < odd < 0.9 else ["assistant"]
        roles += ["system"] if 0.8 < odd < 0.84 else []
    return Conversation(messages=[{"role": role, "content": content(rng, forged, halves)} for role in roles])


def fuzz(name, tokens, masker_of, template_of, families, oracles):
    """Random conversations until so many tokens were compared."""
    masker, template = masker_of(name), template_of(name)
    forged, halves = spelt(masker, families, name)
    rng = random.Random(name)
    tally, rows = oracles.Tally(), 0
    while tally.tokens < tokens:
        alternating = name.removesuffix("_training") in ALTERNATING or families.family(name).merges_neighbours
        batch = [conversation(rng, forged, halves, alternating) for _ in range(40)]
        masked = masker.mask(batch)
        tally.add(oracles.examine(template, batch, masked))
        check_controls(masker, template, batch, masked, oracles)
        rows += len(batch)
        assert rows < 60 * max(tokens, 1000) / 1000, f"hardly anything is kept: {tally}"
    return tally, rows


def check_controls(masker, template, batch, masked, oracles):
    """Decoding gives the text back, and control ids stand only where the template wrote them."""
    controls = {masker.encoder.id_of(token): token for token in masker.vocabulary.controls}
    for n, row in enumerate(masked.examples.rows.tolist()):
        found = oracles.structure(template, batch[row])
        if found is None:
            continue
        text, seen, _ = found
        ids, _ = oracles.arrays(masked.examples, n)
        own = {t.content for t in template.added}
        written = [m.group() for m in oracles._finditer(own, seen) if m.group() not in template.tags]
        assert [controls[i] for i in ids if i in controls] == written
        if masker.encoder.byte_level:
            assert masker.encoder.spell(ids).decode() == text


def test_seeded_fuzz(template_name, masker_of, template_of, families, oracles):
    tokens = DEFAULT_TOKENS // len(families.NAMES)
    tally, rows = fuzz(template_name, tokens, masker_of, template_of, families, oracles)
    check_rejects(template_name, tally, rows)


@pytest.mark.slow
def test_a_million_tokens(template_name, masker_of, template_of, families, oracles):
    tokens = SLOW_TOKENS // len(families.NAMES) + 1
    tally, rows = fuzz(template_name, tokens, masker_of, template_of, families, oracles)
    print(f"fuzzed {template_name}: {rows} rows, {tally.tokens} tokens, {tally}")  # shown by `pytest -s`
    check_rejects(template_name, tally, rows)


def check_rejects(name, tally, rows):
    """Templates refuse some of these; few may stay unproven, and nearly all that is kept is judged."""
    assert set(tally.rejected) <= {"template_error", "not_rendered", "nothing_to_train", "mask_unproven"}
    assert tally.rejected["mask_unproven"] <= 2 + 0.03 * rows, tally
    assert tally.oracles["none"] <= 0.1 * tally.kept, tally


HONEST = {
    "a user quotes a layout": ["What does ### Response: mean?", "It marks the answer.\n\n### Response:\nlike this"],
    "code that prints control tokens": ["Print ChatML.", 'print("<|im_start|>user\\nhi<|im_end|>")\n'],
    "runs of white space": ["Indent it:    x", "def f():\n        if x:\n                return    1\n"],
    "thinking tags in an answer": ["Think aloud.", "<think>\nHm.\n</think>\n\nDone."],
    "an instruction format": ["Explain [INST] and [/INST].", "They are Llama 2's: [INST] hi [/INST] hello </s>"],
    "an answer beginning with newlines": ["Go on", "\n\nand so they did."],
    "marks at token borders": ["👩\u200d🚀", "e\u0301e\u0301 🙂🙂 \u0301x"],
}


@pytest.mark.parametrize("what", HONEST)
def test_honest_rows_survive(template_name, what, masker_of, template_of, oracles):
    question, answer = HONEST[what]
    row = Conversation(messages=[{"role": "user", "content": question}, {"role": "assistant", "content": answer}] * 2)
    masked = masker_of(template_name).mask([row])
    assert masked.failures == {}
    oracles.examine(template_of(template_name), [row], masked)


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "phi3", "premask:alpaca", "deepseekv3", "gptoss"])
def test_any_text(name, masker_of, template_of, families, oracles):
    """Hypothesis, for what a seeded generator does not think of."""
    forged, halves = spelt(masker_of(name), families, name)
    stand_ins = "".join(map(chr, range(0xF0000, 0xF1000)))  # of control tokens: a row that holds both is rejected
    other = st.text(st.characters(codec="utf-8", exclude_characters=stand_ins), max_size=4)
    pieces = st.one_of(st.sampled_from([*forged, *halves, *BLANKS, *WORDS]), other)
    texts = st.lists(pieces, max_size=5).map("".join)

    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.tuples(texts, texts), min_size=1, max_size=2))
    def holds(turns):
        pairs = [({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in turns]
        row = Conversation(messages=[m for pair in pairs for m in pair])
        masked = masker_of(name).mask([row])
        oracles.examine(template_of(name), [row], masked)
        assert {f.reason for f in masked.failures.values()} <= {"template_error", "nothing_to_train", "not_rendered"}

    holds()


CALLS = (
    "qwen3",
    "qwen3_5_think",
    "gemma4_v5",
    "glm4moe",
    "nemotron_3_nano",
    "lfm2_2_5",
    "muse_glimmer",
    "gptoss",
    "premask:chatml",
)


@pytest.mark.parametrize("name", CALLS)
def test_tools_cannot_forge(name, masker_of, families, oracles):
    """Control tokens in names, keys and values of calls, in schemas and in results become no control ids."""
    masker = masker_of(name)
    for token in [t.content for t in families.added_tokens(name)]:
        ids = [calling(masker, oracles, text) for text in ("harmless", f"a{token}b")]
        if None in ids:
            continue
        controls = {masker.encoder.id_of(t) for t in masker.vocabulary.controls}
        plain, forged = (Counter(i for i in found if i in controls) for found in ids)
        assert forged == plain, f"{token} in a tool call"


def calling(masker, oracles, text):
    """Ids of a conversation that says `text` wherever a tool conversation can."""
    call = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {text: text, "n": {text: [text]}}}}
    schema = {"type": "object", "properties": {text: {"type": "string", "description": text}}, "required": [text]}
    row = Conversation(
        messages=[
            {"role": "user", "content": text},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": text, "name": "f", "tool_call_id": "c1"},
            {"role": "assistant", "content": "done"},
        ],
        tools=[{"type": "function", "function": {"name": "f", "description": text, "parameters": schema}}],
    )
    masked = masker.mask([row])
    return None if masked.failures else oracles.arrays(masked.examples, 0)[0]
