"""How many real conversations cannot be proven: under 0.1 % of each template's, all sources taken together."""

from collections import Counter

import pytest

SOURCES = (
    "oasst taskmaster gsm8k codegen roleplay alpaca_zh kto loss_weights glaive_en glaive_zh reasoning airline".split()  # noqa: SIM905
)
ROWS, BATCH = 1000, 500
"""Rows of a source, chosen with a seed; rows masked at a time."""


@pytest.mark.slow
def test_hardly_any_real_row_is_unproven(template_name, masker_of, shared_rows):
    masker = masker_of(template_name)
    reasons, rows, tokens = Counter(), 0, 0
    for source in SOURCES:
        conversations = shared_rows(source, ROWS)
        for first in range(0, len(conversations), BATCH):
            masked = masker.mask(conversations[first : first + BATCH])
            reasons.update(failure.reason for failure in masked.failures.values())
            tokens += len(masked.examples.ids)
        rows += len(conversations)
    print(f"{template_name}: {rows} rows, {tokens} tokens kept, {dict(reasons)}")
    assert rows > 7_000
    assert reasons["mask_unproven"] < 0.001 * rows, reasons
    assert set(reasons) <= {"template_error", "not_rendered", "nothing_to_train", "mask_unproven"}
