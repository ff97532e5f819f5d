"""Every text template of the installed trl, and ours, against oracles that know nothing of tracing (`oracles.py`).

Which oracle judged what: **scan** every template but `plain`; **prefix** besides, wherever the template does not
rewrite what it wrote before (Qwen3 and gpt-oss rewrite the last turn once another follows), and alone where a row
brings its own template arguments; **sentinel** besides, wherever texts come through unchanged, and alone for `plain`.
"""

import pytest

from premask.read import Conversation
from premask.render.forms import adapt

SOURCES = ("oasst", "taskmaster", "gsm8k", "codegen", "roleplay", "alpaca_zh", "kto", "loss_weights")
TOOL_SOURCES = ("glaive_en", "glaive_zh", "reasoning", "airline")

REASONS = {"template_error", "not_rendered", "nothing_to_train"}
"""Why a row may be rejected: the template refuses it, or would leave something out, or it trains nothing."""

ALTERNATING = {"call", "result", "out of turn", "late system", "developer"}
OWN = {"schemas", "call", "result", "reasoning"}
REFUSED = {
    "cohere": ALTERNATING,  # roles must alternate
    "cohere2": ALTERNATING,
    "deepseek_r1_distill": {"developer"},
    "deepseekv3": {"developer"},
    "diffusion_gemma": {"orphan result"},
    "gemma": ALTERNATING | {"system"},
    "gemma3": ALTERNATING,
    "gemma4": {"orphan result"},
    "gemma4_v2": set(),
    "glm4moe": {"developer"},
    "gptoss": {"several calls", "text beside a call", "orphan result"},  # one call, behind nothing but thinking
    "idefics3": {"call"},  # writes whatever role there is, but no calls
    "lfm2": {"call"},
    "lfm2_2_5": set(),
    "lfm2_v2": set(),
    "llama3": {"call"},
    "llama3_1": {"several calls", "text beside a call"},
    "llama3_2": {"several calls", "text beside a call"},
    "llava_next": {"call", "result", "developer"},
    "muse_glimmer": {"developer", "text beside a call"},
    "nemotron_3": set(),
    "phi3": {"call", "result", "developer"},
    "premask:alpaca": OWN | {"developer"},  # our own templates refuse rather than leave out
    "premask:chatml": set(),
    "premask:llama-3": OWN,
    "premask:plain": OWN | {"developer"},
    "premask:zephyr": OWN | {"developer"},
    "qwen2_5": {"developer"},
    "qwen2_5_vl": {"call"},
    "qwen3": {"developer"},
    "qwen3_instruct_2507": {"developer"},
    "qwen3_vl": {"developer"},
    "smolvlm": {"call"},
}
"""What a template has no place for: exactly the rows that have it are rejected. Names as in `families.FAMILIES`."""

UNCERTAIN = {
    "deepseek_r1_distill": {"call": "writes calls only where content is null; a second one has no header"},
    "deepseekv3": {"call": "writes the text beside a conversation's first call only; a second call has no header"},
}
"""Features whose rows may be rejected, `mask_unproven` included."""


def of(table, name):
    """The entry of a table for a template: that of the longest key its name begins with."""
    return table.get(max((key for key in table if name.startswith(key)), key=len, default=""), set())


def check(name, conversations, masker_of, template_of, oracles, prefixes=True):
    """Compare with the oracles; reject exactly what the template has no place for."""
    masked = masker_of(name).mask(conversations)
    tally = oracles.examine(template_of(name), conversations, masked, prefixes)
    refused, uncertain = of(REFUSED, name), of(UNCERTAIN, name)
    for row, conversation in enumerate(conversations):
        found, failure = oracles.features(conversation), masked.failures.get(row)
        if found & set(uncertain):
            continue
        assert (failure is not None) == bool(found & refused), f"row {row}, {sorted(found)}: {failure}"
        assert failure is None or failure.reason in REASONS
    return tally


def test_our_samples(template_name, samples, masker_of, template_of, oracles):
    tally = check(template_name, samples, masker_of, template_of, oracles)
    assert tally.oracles["none"] <= 1  # Qwen3.5 without thinking, in the one row that asks for thinking
    assert tally.kept > 50


@pytest.mark.parametrize("source", [*SOURCES, *TOOL_SOURCES])
def test_shared_rows(template_name, source, shared_rows, masker_of, template_of, oracles):
    tally = check(template_name, shared_rows(source, 3), masker_of, template_of, oracles)
    assert tally.oracles["none"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("source", [*SOURCES, *TOOL_SOURCES])
def test_many_shared_rows(template_name, source, shared_rows, masker_of, template_of, oracles):
    tally = check(template_name, shared_rows(source, 150), masker_of, template_of, oracles, prefixes=False)
    assert tally.oracles["none"] <= 0.01 * tally.kept


def test_every_template_of_trl_is_here(families):
    """No text template is left out: those made for processors only are rendered with contents as lists of parts."""
    assert len(families.NAMES) == len(set(families.NAMES)) > 60
    as_parts = {n for n in families.NAMES if families.family(n).parts}
    assert as_parts == {n for n in families.NAMES if n.startswith(("idefics3", "smolvlm", "llava_next"))}


def test_templates_that_take_no_strings_are_given_parts(families, masker_of):
    conversation = Conversation(
        messages=[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "World"}]
    )
    for name in families.NAMES:
        forms = masker_of(name).grammar.forms
        if families.family(name).parts:
            assert not forms.strings, name
        assert "World" in masker_of(name).program.render_plain(adapt(conversation, forms)), name
