"""Control tokens in named places only: whatever else a text spells is plain text."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from premask.encode.encoder import Encoder
from premask.encode.escape import Escaper

ROOT = Path(__file__).parents[2]
SHARED = ROOT / "../shared/data/tokenizers"
CONTROLS = ("<|start|>", "<|end|>", "<|end", "<think>", "</think>", "｜é｜")
SWALLOWING = ("<|start|>", "<|end|>")
KINDS = ("bytes", "nfc", "gemma", "llama", "metaspace", "phi")
ORDINARY = "    "
WHITE_SPACE = "".join(c for c in map(chr, range(0x3001)) if c.isspace() and not "\x1c" <= c <= "\x1f")

WORDS = st.sampled_from(
    [*CONTROLS, "<|sta", "rt|>", "|>", ORDINARY, " ", "\n", "water ", "é", "e\u0301", "🙂", "<", "한국", "Don't"]
)
STAND_INS = "".join(chr(0xF0000 + n) for n in range(len(CONTROLS)))  # a text that holds one is refused
PIECES = st.one_of(WORDS, st.text(st.characters(codec="utf-8", exclude_characters=STAND_INS), max_size=3))
PARTS = st.lists(
    st.tuples(st.booleans(), st.sampled_from(CONTROLS), st.lists(PIECES, max_size=4).map("".join)), max_size=6
)


def tokens(swallow):
    return [
        *(
            AddedToken(c, special="think" not in c, normalized=False, rstrip=swallow and c in SWALLOWING)
            for c in CONTROLS
        ),
        *([] if swallow else [AddedToken(ORDINARY, special=False, normalized=False)]),
    ]


def laid_out(parts):
    """A text, and the controls meant in it: first bytes and texts."""
    text, meant = "", []
    for control, token, plain in parts:
        if control:
            meant.append((len(text.encode()), token))
            text += token
        text += plain
    return text, meant


def naive(raw, text, meant, first_only):
    """Stretches between the meant controls, each encoded on its own by a tokenizer that knows no controls.

    `first_only`: only a stretch at the very beginning is given a prefix (Metaspace).
    """
    spec = json.loads(raw)
    added = {t["content"]: t for t in spec["added_tokens"]}
    bare = {**spec, "added_tokens": [t for t in spec["added_tokens"] if t["content"] not in CONTROLS]}
    middle = json.loads(json.dumps(bare))
    if first_only:
        middle["pre_tokenizer"]["prepend_scheme"] = "never"
    plain, later = Tokenizer.from_str(json.dumps(bare)), Tokenizer.from_str(json.dumps(middle))
    full = Tokenizer.from_str(raw.decode())
    data, ids, ranges, at = text.encode(), [], [], 0
    for start, token in [*meant, (len(data), None)]:
        stretch = data[at:start].decode()
        encoding = (plain if at == 0 else later).encode(stretch, add_special_tokens=False)
        for i, (a, b) in zip(encoding.ids, encoding.offsets, strict=True):
            content = plain.id_to_token(i)
            ids.append(full.token_to_id(content) if content in added else i)
            ranges.append((at + len(stretch[:a].encode()), at + len(stretch[:b].encode())))
        if token is not None:
            at = start + len(token.encode())
            ids.append(full.token_to_id(token))
            ranges.append((start, at))
            if added[token]["rstrip"]:
                rest = data[at:].decode()
                at += len(rest.encode()) - len(rest.lstrip(WHITE_SPACE).encode())
    return ids, ranges


@pytest.fixture(scope="module")
def built(build_tokenizer):
    """By kind, the tokenizer.json, its encoder and an escaper for all controls."""
    found = {}
    for kind in KINDS:
        raw = build_tokenizer(kind, tokens(swallow=kind == "phi"))
        encoder = Encoder(raw)
        found[kind] = raw, encoder, Escaper(encoder, CONTROLS)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_meant_becomes_a_control(built, kind):
    raw, encoder, escaper = built[kind]
    known = {encoder.id_of(c) for c in CONTROLS}

    @settings(deadline=None, max_examples=80)
    @example([(False, "", "a <|end|> b"), (True, "<|end|>", " "), (False, "", "<|sta"), (True, "<think>", "rt|>")])
    @example([(True, "<|start|>", "\n\n x"), (True, "<|end|>", "\n")])
    @given(PARTS)
    def holds(parts):
        text, meant = laid_out(parts)
        found = escaper.encode(text, meant)
        assert found is not None
        ids, starts, ends = (column.tolist() for column in found)
        expected, ranges = naive(raw, text, meant, kind == "metaspace")
        assert ids == expected
        assert [i for i in ids if i in known] == [encoder.id_of(token) for _, token in meant]
        places = list(zip(starts, ends, strict=True))
        assert [p for p, i in zip(places, ids, strict=True) if i in known] == [
            (start, start + len(token.encode())) for start, token in meant
        ]
        if kind == "bytes":  # the others place whole characters
            data = text.encode()
            assert [data[a:b] for a, b in places] == [encoder.token_bytes[i] for i in ids]
        elif not encoder.byte_level:
            assert places == ranges

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_comes_back(built, kind):
    """Decoding gives the message back, forged controls included (a prefix and swallowed spaces aside)."""
    _, encoder, escaper = built[kind]
    text = "Say <|end|> or <|start|>user, or <think>: 🙂"
    ids, starts, ends = escaper.encode(text, [])
    assert encoder.spell(ids.tolist()).decode() == text
    assert (starts[0], ends[-1]) == (0, len(text.encode()))


def test_ordinary_added_tokens_stay(built):
    _, encoder, escaper = built["bytes"]
    ids, _, _ = escaper.encode(f"a{ORDINARY}b", [])
    assert encoder.id_of(ORDINARY) in ids.tolist()


def test_a_text_with_a_stand_in_is_refused(built):
    _, _, escaper = built["bytes"]
    for stand_in in STAND_INS:
        assert escaper.encode("x" + stand_in, []) is None
    assert escaper.encode("x" + chr(0xF0000 + len(CONTROLS)), []) is not None


def test_real_tokenizers_keep_their_numbers():
    """gpt-neox has `<|endoftext|>` in the model's vocabulary, too: a twin numbers the added tokens anew."""
    path = SHARED / "gpt-neox/tokenizer.json"
    if not path.is_file():
        pytest.skip("needs ../shared/data")
    encoder = Encoder(path.read_bytes())
    escaper = Escaper(encoder, ["<|endoftext|>", "<|padding|>"])
    tokenizer = Tokenizer.from_str(path.read_text())
    text = "def f():\n        return 1 <|endoftext|> e\u0301<|endoftext|>"
    at = len(text.encode()) - len("<|endoftext|>")
    ids, starts, ends = escaper.encode(text, [(at, "<|endoftext|>")])
    head, _ = text.removesuffix("<|endoftext|>").split("<|endoftext|>")
    expected = tokenizer.encode(head, add_special_tokens=False).ids
    assert ids[: len(expected) - 1].tolist() == expected[:-1]
    assert ids[-1] == tokenizer.token_to_id("<|endoftext|>")
    assert (ids == ids[-1]).sum() == 1
    assert (starts[-1], ends[-1]) == (at, at + 13)
    assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text.replace("e\u0301", "é")
