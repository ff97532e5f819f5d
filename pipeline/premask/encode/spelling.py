"""What every id of a vocabulary spells, whatever the scheme: the table that lets ids be searched as bytes.

Byte-level vocabularies write bytes in GPT-2's alphabet; those with SentencePiece's conventions write a space as U+2581
and single bytes as `<0x0A>`. A space that a tokenizer puts before a text is spelt like any other: whoever compares
with a text has to allow for it.
"""

import re
from typing import Any

import orjson

from premask.encode.encoder import Encoder
from premask.errors import UsageError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def spell_vocabulary(encoder: Encoder, tokenizer_json: bytes) -> list[bytes]:
    """`[V]` the UTF-8 bytes of every id of `encoder`, made from `tokenizer_json`; empty where there is no such id.

    Raises UsageError for word pieces, whose ids do not say where white space was.
    """
    spec = orjson.loads(tokenizer_json)
    model = spec["model"]
    kind = model.get("type", "BPE")
    if kind not in ("BPE", "Unigram"):
        raise UsageError(
            f"This tokenizer is a {kind} model: expected BPE or Unigram, whose ids spell the text with its white "
            "space. Prepare the conversations themselves instead: `premask prepare`."
        )
    if '"ByteLevel"' in str(orjson.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])):
        return encoder.token_bytes
    table = [b""] * encoder.vocabulary_size
    for token, i in _entries(model["vocab"]):
        byte = _BYTE.fullmatch(token) if model.get("byte_fallback") else None
        table[i] = bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
    for added in encoder.added:
        table[added.id] = added.content.encode()
    return table


def _entries(vocabulary: Any) -> list[tuple[str, int]]:
    """A vocabulary as BPE has it (token to id) or as Unigram has it (tokens with their scores, in order)."""
    if isinstance(vocabulary, dict):
        return list(vocabulary.items())
    return [(token, i) for i, (token, _) in enumerate(vocabulary)]
