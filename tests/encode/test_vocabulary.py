"""The flat table of a vocabulary's bytes, against one token at a time."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from premask.encode.vocabulary import spelt_vocabulary

PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [b for b in range(256) if b not in PRINTABLE]
BYTES = {chr(b): b for b in PRINTABLE} | {chr(256 + n): b for n, b in enumerate(OTHERS)}
TOKENS = st.text(st.one_of(st.sampled_from(sorted(BYTES)), st.sampled_from("\x20\xad\u0144\u4e2d🙂")), max_size=4)


@settings(max_examples=100, deadline=None)
@given(st.lists(TOKENS, unique=True, max_size=12), st.lists(st.text(max_size=3), max_size=3), st.randoms())
def test_every_id_spells_its_bytes(tokens, added, chance):
    places = list(range(len(tokens) + len(added) + 2))
    chance.shuffle(places)
    own = dict(zip(tokens, places, strict=False))
    extra = dict(zip(places[len(tokens) :], added, strict=False))
    expected = [b""] * len(places)
    for token, i in own.items():
        if all(c in BYTES for c in token):
            expected[i] = bytes(BYTES[c] for c in token)
    for i, text in extra.items():
        expected[i] = text.encode()
    table = spelt_vocabulary(own, extra, len(places))
    assert table.as_list() == expected
    assert table.lengths.tolist() == list(map(len, expected))
    ids = [chance.choice(places) for _ in range(20)]
    assert table.join(np.array(ids, np.int32)) == b"".join(expected[i] for i in ids)
