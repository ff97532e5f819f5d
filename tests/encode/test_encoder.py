"""Ids and byte positions against `tokenizers` itself, one text at a time."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from premask.encode.encoder import Encoder

ROOT = Path(__file__).parents[2]
SHARED = ROOT / "../shared/data/tokenizers"
KINDS = ("bytes", "nfc", "gemma", "llama", "metaspace", "phi")
ADDED = (
    AddedToken("<s>", special=True, normalized=False),
    AddedToken("<|end|>", special=True, normalized=False),
    AddedToken("<think>", special=False, normalized=False),
    AddedToken("   ", special=False, normalized=False),
)
SWALLOWING = (
    AddedToken("<|end|>", special=True, normalized=False, rstrip=True),
    AddedToken("<|mask|>", special=True, normalized=False, lstrip=True),
    AddedToken("<|both|>", special=True, normalized=False, lstrip=True, rstrip=True),
)

PARTS = st.sampled_from(
    [
        "<s>",
        "<|end|>",
        "<|mask|>",
        "<|both|>",
        "<think>",
        " ",
        "   ",
        "\n",
        "\t",
        "\u00a0",
        "The ",
        "water",
        "Don't",
        "12",
        "é",
        "e\u0301",
        "\u0301",
        "한",
        "한",
        "Å",
        "Ｆ",
        "🙂",
        "👩\u200d🚀",
        "中文",
        "नमस्ते",
        "\u3000",
        "\x1c",
        "\x00",
    ]
)
TEXTS = st.lists(st.one_of(PARTS, st.text(max_size=4)), max_size=12).map("".join)


def naive(tokenizer, text, swallowing=()):
    """Ids and byte ranges of one text, by the offsets that `tokenizers` reports."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    ranges = []
    for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        content = tokenizer.id_to_token(token)
        if content in swallowing:
            start += text[start:end].index(content)
            end = start + len(content)
        ranges.append((len(text[:start].encode()), len(text[:end].encode())))
    return encoding.ids, ranges


def plain_offsets(raw):
    """A tokenizer that reports offsets as they are: a ByteLevel post-processor trims them."""
    tokenizer = Tokenizer.from_str(raw.decode())
    if "trim_offsets" in tokenizer.to_str():
        import json

        tokenizer = Tokenizer.from_str(json.dumps({**json.loads(raw), "post_processor": None}))
    return tokenizer


@pytest.fixture(scope="module")
def pairs(build_tokenizer):
    """By name, an encoder and the tokenizer it must agree with."""
    raws = {kind: build_tokenizer(kind, ADDED) for kind in KINDS}
    raws |= {f"{kind}-swallowing": build_tokenizer(kind, SWALLOWING) for kind in ("bytes", "llama", "phi", "gemma")}
    for path in (SHARED / "gpt-neox", SHARED / "dolma2"):
        if path.is_dir():
            raws[path.name] = (path / "tokenizer.json").read_bytes()
    return {name: (Encoder(raw), plain_offsets(raw)) for name, raw in raws.items()}


NAMES = [*KINDS, "bytes-swallowing", "llama-swallowing", "phi-swallowing", "gemma-swallowing", "gpt-neox", "dolma2"]


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_positions_are_the_tokenizers(pairs, name):
    if name not in pairs:
        pytest.skip("needs ../shared/data")
    encoder, tokenizer = pairs[name]
    swallowing = {t.content for t in SWALLOWING} if "swallowing" in name else ()

    @settings(deadline=None, max_examples=60)
    @given(st.lists(TEXTS, max_size=5))
    def holds(texts):
        encoded = encoder.encode(texts)
        assert encoded.offsets.tolist() == [0, *np.cumsum([len(naive(tokenizer, t)[0]) for t in texts])]
        for n, text in enumerate(texts):
            a, b = encoded.offsets[n], encoded.offsets[n + 1]
            ids, ranges = naive(tokenizer, text, swallowing)
            assert encoded.ids[a:b].tolist() == ids
            found = list(zip(*(places.tolist() for places in encoded.places(n)), strict=True))
            assert encoded.bases[n + 1] - encoded.bases[n] == len(text.encode()) + 1
            if encoder.byte_level:
                assert_bytes(encoder, text, ids, ranges, found)
            else:
                assert found == ranges

    holds()


def assert_bytes(encoder, text, ids, ranges, found):
    """Byte-level tokens lie within the characters that `tokenizers` reports, and their bytes are the text's."""
    spelt = b"".join(encoder.token_bytes[i] for i in ids)
    for (start, end), (low, high), i in zip(found, ranges, ids, strict=True):
        assert low <= start <= end <= high
        if spelt == text.encode():
            assert text.encode()[start:end] == encoder.token_bytes[i]


@pytest.mark.parametrize("kind", KINDS)
def test_positions_by_given_ids_are_the_same(pairs, kind):
    """`locate`, for encoders that bring ids only."""
    encoder, _ = pairs[kind]
    texts = ["", "The water is 20 °C.", "<s>e\u0301 한국어 <|end|>\n🙂   <think>", "Ｆ\u00a0x"]
    encoded = encoder.encode(texts)
    again = encoder.locate(texts, encoded.ids, encoded.offsets)
    for name in ("ids", "offsets", "bases", "starts", "ends"):
        assert np.array_equal(getattr(encoded, name), getattr(again, name))
    assert again.by_offsets == encoded.by_offsets


def test_ids_of_another_text_are_not_believed(pairs):
    encoder, _ = pairs["gemma"]
    encoded = encoder.encode(["water"])
    with pytest.raises(AssertionError, match="bug in premask"):
        encoder.locate(["fire"], encoded.ids, encoded.offsets)


def test_which_tokenizers_are_lossless(pairs):
    expected = {"bytes": (True, True), "nfc": (True, False), "dolma2": (True, True), "gpt-neox": (True, False)}
    for name, (encoder, _) in pairs.items():
        assert (encoder.byte_level, encoder.lossless) == expected.get(name, (False, False)), name


def test_rows_that_a_normalizer_changes_take_offsets(pairs):
    encoder, _ = pairs["nfc"]
    assert encoder.encode(["plain", "caf\u00e9", "cafe\u0301", "\u212b"]).by_offsets == 2
    # Equal lengths prove nothing: the Angstrom sign shrinks by a byte, what the ohm sign becomes does not grow it back.
    swapped = encoder.encode(["\u0958 \u212b"])
    assert swapped.by_offsets == 1


def test_leading_spaces_belong_to_their_token():
    """gpt-neox's post-processor trims spaces off the offsets; a token that straddles a border by its space would not
    show."""
    path = SHARED / "gpt-neox/tokenizer.json"
    if not path.is_file():
        pytest.skip("needs ../shared/data")
    encoded = Encoder(path.read_bytes()).encode(["Ho: e\u0301 Hello"])
    assert encoded.by_offsets == 1
    assert encoded.starts.tolist() == [0, 2, 3, 7]


def test_a_swallowing_token_covers_its_own_text(pairs):
    encoder, tokenizer = pairs["phi-swallowing"]
    text = "Hi<|end|>\n\n there <|mask|>x  <|both|>  y"
    encoded = encoder.encode([text])
    for name in ("<|end|>", "<|mask|>", "<|both|>"):
        (at,) = np.flatnonzero(encoded.ids == tokenizer.token_to_id(name))
        assert text[encoded.starts[at] : encoded.ends[at]] == name


def test_bytes_of_every_id(pairs):
    """`token_bytes` is what decoding a single byte-level token gives, whole characters or not."""
    encoder, tokenizer = pairs["bytes"]
    for i in range(encoder.vocabulary_size):
        decoded = tokenizer.decode([i], skip_special_tokens=False)
        assert encoder.token_bytes[i].decode(errors="replace") == decoded
    assert encoder.byte_lengths.tolist() == [len(b) for b in encoder.token_bytes]


@pytest.mark.parametrize("name", ["gpt-neox", "dolma2"])
def test_bytes_of_every_id_of_real_tokenizers(pairs, name):
    if name not in pairs:
        pytest.skip("needs ../shared/data")
    encoder, tokenizer = pairs[name]
    for i in range(0, encoder.vocabulary_size, 7):
        if tokenizer.id_to_token(i) is not None:
            assert encoder.token_bytes[i].decode(errors="replace") == tokenizer.decode([i], skip_special_tokens=False)


def test_added_tokens_have_the_ids_that_the_tokenizer_gives(pairs):
    for encoder, tokenizer in pairs.values():
        for added in encoder.added:
            assert added.id == tokenizer.token_to_id(added.content) == encoder.id_of(added.content)
    assert pairs["bytes"][0].id_of("<|nothing|>") is None


def test_nothing_is_cut_padded_or_added(build_tokenizer):
    tokenizer = Tokenizer.from_str(build_tokenizer("bytes", ADDED).decode())
    plain = tokenizer.encode("The water " * 50, add_special_tokens=False).ids
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=512)
    encoded = Encoder(tokenizer.to_str().encode()).encode(["The water " * 50, "x"])
    assert encoded.ids[: encoded.offsets[1]].tolist() == plain
    assert len(encoded.ids) == len(plain) + 1


def test_no_texts(pairs):
    for encoder, _ in pairs.values():
        assert encoder.encode([]).offsets.tolist() == [0]
        assert encoder.encode(["", ""]).offsets.tolist() == [0, 0, 0]


def test_spelling_ids(pairs):
    assert (
        pairs["bytes"][0].spell(pairs["bytes"][1].encode("<s>né🙂", add_special_tokens=False).ids) == "<s>né🙂".encode()
    )
    assert b"water" in pairs["llama"][0].spell(pairs["llama"][1].encode("water", add_special_tokens=False).ids)
