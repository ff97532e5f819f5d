"""What follows from a tokenizer's components: whether its ids stand for the bytes of a text, and for all of them."""

from typing import Any

_UNICODE_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}
"""Normalizers that leave at least a quarter of a text's bytes (NFKC makes one byte of a mathematical letter's four)."""


def components(spec: Any) -> list[dict[str, Any]]:
    """The parts of a normalizer, pre-tokenizer or decoder, sequences of sequences flattened."""
    if spec is None:
        return []
    parts = spec.get("pretokenizers") or spec.get("normalizers") or spec.get("decoders")
    return [c for p in parts for c in components(p)] if parts is not None else [spec]


def is_byte_level(spec: dict[str, Any]) -> bool:
    """Whether every id stands for bytes of the (normalized) text, and nothing else is added to it."""
    pre = components(spec.get("pre_tokenizer"))
    levels = [c for c in pre if c["type"] == "ByteLevel"]
    flags = ("lstrip", "rstrip", "single_word")
    plain = not any(t.get(f) for t in spec.get("added_tokens", []) for f in flags)
    model = spec["model"]
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    return (
        model.get("type", "BPE") == "BPE"
        and len(levels) == 1
        and not levels[0]["add_prefix_space"]
        and plain
        and not affixes
    )


def is_lossless(spec: dict[str, Any]) -> bool:
    """Whether a text always comes back from its ids, by the tokenizer's components."""
    splits = {"ByteLevel", "Split", "Digits", "Whitespace", "Punctuation"}
    removing = any(
        c["type"] == "Split" and c["behavior"] == "Removed" and not c.get("invert")
        for c in components(spec["pre_tokenizer"])
    )
    known = all(c["type"] in splits - {"Whitespace"} for c in components(spec.get("pre_tokenizer")))
    return is_byte_level(spec) and not components(spec.get("normalizer")) and known and not removing


def keeps_ascii(spec: dict[str, Any]) -> bool:
    """Whether an ASCII text always comes back: nothing but Unicode's forms changes a text, and those leave it alone."""
    forms = components(spec.get("normalizer"))
    return is_lossless({**spec, "normalizer": None}) and all(f["type"] in _UNICODE_FORMS for f in forms)
