"""The kinds of tokenizers that chat models have, made here: one byte-level BPE, several with byte fallback."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = Path(__file__).parents[2]
KINDS = ("bytes", "nfc", "gemma", "llama", "phi", "metaspace")
"""`bytes` is byte-level BPE; `nfc` is that with a normalizer. The others have byte fallback and U+2581 for spaces:
`gemma` adds no prefix, `llama` (and `phi`) one before every stretch of text, `metaspace` one at the very beginning.
"""


@functools.cache
def _base(kind: str) -> str:
    """A tokenizer without added tokens, as JSON."""
    if kind in ("bytes", "nfc"):
        spec = json.loads((ROOT / "data/tokenizer/tokenizer.json").read_text())
        normalizer = {"type": "NFC"} if kind == "nfc" else None
        return json.dumps({**spec, "normalizer": normalizer, "added_tokens": []})
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))  # noqa: S106
    spaces = normalizers.Replace(" ", "▁")
    if kind == "gemma":
        tokenizer.normalizer = spaces
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    words = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(words if kind == "gemma" else [*words, decoders.Strip(" ", 1, 0)])
    fallback = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=["<unk>", *fallback], show_progress=False, max_token_length=16
    )
    tokenizer.train_from_iterator((ROOT / "data/prose.txt").read_text().splitlines(), trainer)
    return json.dumps({**json.loads(tokenizer.to_str()), "added_tokens": []})


def build(kind: str, added: Sequence[AddedToken] = ()) -> bytes:
    """The `tokenizer.json` of a kind with the given added tokens."""
    tokenizer = Tokenizer.from_str(_base(kind))
    for token in added:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer.to_str().encode()
