"""Text to ids: the reference encoder, and where every token lies in its text.

Positions are counted in UTF-8 bytes. For tokenizers that are lossless by their components (byte-level BPE, no
normalizer, no prefix) the bytes of the ids are the bytes of the text, so the positions are the running sum of a table
of lengths, and the sums must meet the text's length. For byte-level tokenizers with a normalizer every row's bytes are
compared; a row that differs, and every row of any other tokenizer, takes the offsets that `tokenizers` reports.

A token may swallow the white space beside it (`lstrip`, `rstrip`: Phi-3's control tokens do). It covers its own text
only; what it swallowed belongs to no token.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from premask.dtypes import BoolArray, Int32Array, Int64Array
from premask.errors import UsageError

BATCH = 500
"""Texts encoded at a time: live encodings are heavy, and larger batches were not faster."""

_UNICODE_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}
"""Normalizers that leave at least a quarter of a text's bytes (NFKC makes one byte of a mathematical letter's four)."""

AUDIT_EVERY = 1000
"""One row in so many is compared byte by byte also where the lengths alone are proof enough."""

_WHITE_SPACE = np.array([i for i in range(0x3001) if chr(i).isspace() and not 0x1C <= i <= 0x1F], np.uint32)
"""Unicode's `White_Space`, what `lstrip` and `rstrip` of a token swallow."""


MAX_VOCABULARY = 2**24
"""Tables have an entry for every id up to the largest; the largest known vocabularies are a sixtieth of this."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """N texts as T tokens, flat."""

    ids: Int32Array
    """`[T]` token ids."""
    offsets: Int64Array
    """`[N + 1]` first token of every text."""
    starts: Int32Array
    """`[T]` first byte of every token in its text."""
    ends: Int32Array
    """`[T]` byte behind every token in its text."""
    by_offsets: int
    """Texts whose positions come from the tokenizer's offsets."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that the tokenizer finds in a text before anything else."""

    id: int
    content: str
    special: bool


class Encoder:
    """A tokenizer, loaded from the bytes of its `tokenizer.json`; never adds special tokens of its own."""

    def __init__(self, tokenizer_json: bytes) -> None:
        spec: dict[str, Any] = orjson.loads(tokenizer_json)
        # Nothing is cut, padded or added, so a post-processor could only trim spaces off the offsets.
        self._spec = {**spec, "truncation": None, "padding": None, "post_processor": None}
        self._tokenizer = _loaded(self._spec)
        declared = self._spec.get("added_tokens") or []
        # The ids that the tokenizer gives, which are not always those that its file names.
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.added = [AddedToken(ids[t["content"]], t["content"], t["special"]) for t in declared]
        self.byte_level, self.lossless = _byte_level(self._spec), _lossless(self._spec)
        self.vocabulary_size = max(ids.values(), default=-1) + 1
        if not 0 < self.vocabulary_size <= MAX_VOCABULARY:
            raise UsageError(
                f"tokenizer.json: expected ids from 0 to {MAX_VOCABULARY - 1:,}, found {self.vocabulary_size - 1:,} "
                "as the largest. The file is damaged: fetch it again"
            )
        self._swallowing = {ids[t["content"]]: t["content"] for t in declared if t.get("lstrip") or t.get("rstrip")}

    @functools.cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of every id; empty where it has none of its own. Byte-level tokenizers only."""
        to_byte = _byte_alphabet()
        table = [b""] * self.vocabulary_size
        for token, i in self._tokenizer.get_vocab(with_added_tokens=False).items():
            if all(c in to_byte for c in token):
                table[i] = bytes(to_byte[c] for c in token)
        for added in self.added:
            table[added.id] = added.content.encode()
        return table

    @functools.cached_property
    def byte_lengths(self) -> Int32Array:
        """`[V]` int32, bytes of every id."""
        return np.array([len(b) for b in self.token_bytes], np.int32)

    @functools.cached_property
    def bytes_per_token(self) -> int | None:
        """No token stands for more bytes of a text, white space aside; None where there is no such bound."""
        forms = _components(self._spec.get("normalizer"))
        if not _lossless({**self._spec, "normalizer": None}) or any(f["type"] not in _UNICODE_FORMS for f in forms):
            return None
        return int(self.byte_lengths.max()) * (4 if forms else 1)

    def renamed(self, names: Mapping[str, str]) -> "Encoder":
        """The same tokenizer, finding other texts in place of some added tokens (their ids may differ)."""
        added = [{**t, "content": names.get(t["content"], t["content"])} for t in self._spec.get("added_tokens") or []]
        return Encoder(orjson.dumps({**self._spec, "added_tokens": added}))

    def id_of(self, token: str) -> int | None:
        """The id of a token."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    @functools.cached_property
    def _own_lengths(self) -> Int32Array:
        """`[V]` int32, characters of every token that swallows white space, 0 for any other."""
        table = np.zeros(self.vocabulary_size, np.int32)
        for token, content in self._swallowing.items():
            table[token] = len(content) if content.strip() else 0
        return table

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode texts. Nothing is added, cut or padded."""
        tokenizer = self._tokenizer
        encode = (
            tokenizer.encode_batch_fast if self.byte_level else tokenizer.encode_batch
        )  # the fast one has no offsets
        parts, places, lengths = [], [], np.zeros(len(texts) + 1, np.int64)
        for first in range(0, len(texts), BATCH):
            batch = encode(list(texts[first : first + BATCH]), add_special_tokens=False)
            for n, encoding in enumerate(batch, first + 1):
                parts.append(np.array(encoding.ids, np.int32))
                lengths[n] = len(parts[-1])
                if not self.byte_level:
                    places.append(self._to_bytes(texts[n - 1], encoding))
        ids = np.concatenate([np.zeros(0, np.int32), *parts])
        offsets = np.cumsum(lengths)
        if self.byte_level:
            return self.locate(texts, ids, offsets)
        starts, ends = np.concatenate([np.zeros((0, 2), np.int32), *places]).T
        return Encoded(ids, offsets, starts, ends, len(texts))

    def locate(self, texts: Sequence[str], ids: Int32Array, offsets: Int64Array) -> Encoded:
        """Where the tokens `ids` lie in `texts`."""
        if not self.byte_level:
            starts, ends = np.zeros(len(ids), np.int32), np.zeros(len(ids), np.int32)
            differing = np.ones(len(texts), bool)
        else:
            starts, ends = _running(self.byte_lengths[ids], offsets)
            differing = self._differing(texts, ids, offsets, ends)
        for row in np.flatnonzero(differing):
            a, b = offsets[row], offsets[row + 1]
            encoding = self._tokenizer.encode(texts[row], add_special_tokens=False)
            if encoding.ids != ids[a:b].tolist():
                raise AssertionError("bug in premask: offsets were asked for ids that are not the tokenizer's own")
            starts[a:b], ends[a:b] = self._to_bytes(texts[row], encoding).T
        return Encoded(ids, offsets, starts, ends, int(differing.sum()))

    def _differing(self, texts: Sequence[str], ids: Int32Array, offsets: Int64Array, ends: Int32Array) -> BoolArray:
        """Rows whose ids do not spell their text, byte for byte."""
        table = self.token_bytes
        differing = np.zeros(len(texts), bool)
        for row, text in enumerate(texts):
            a, b = offsets[row], offsets[row + 1]
            spelt = ends[b - 1] if b > a else 0
            if spelt != (len(text) if text.isascii() else len(text.encode())):
                differing[row] = True
            elif not self.lossless or row % AUDIT_EVERY == 0:
                differing[row] = b"".join([table[i] for i in ids[a:b].tolist()]) != text.encode()
        return differing

    def _to_bytes(self, text: str, encoding: Encoding) -> Int32Array:
        """`[t, 2]` int32: the offsets of an encoding, counted in bytes."""
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        if self._swallowing:
            lengths = self._own_lengths[encoding.ids]
            own = _first_ink(codes)[offsets[:, 0]]
            ends = np.minimum(own + lengths, offsets[:, 1])
            offsets = np.where(lengths[:, None] > 0, np.stack([own, ends], axis=1), offsets)
        positions = np.zeros(len(text) + 1, np.int32)
        np.cumsum(1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF), out=positions[1:])
        return positions[offsets]

    def spell(self, ids: Sequence[int]) -> bytes:
        """The bytes of some ids, for showing them."""
        if self.byte_level:
            return b"".join(self.token_bytes[i] for i in ids)
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False)).encode()


def _loaded(spec: dict[str, Any]) -> Tokenizer:
    try:
        return Tokenizer.from_str(orjson.dumps(spec).decode())
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # an interrupt
        raise UsageError(
            f"tokenizer.json: expected a tokenizer that can be loaded, found: {error}. Fetch or save it again"
        ) from error


def _running(lengths: Int32Array, offsets: Int64Array) -> tuple[Int32Array, Int32Array]:
    """Starts and ends `[T]` of tokens of the given byte lengths, counted from the start of each text."""
    total = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=total[1:])
    base = np.repeat(total[offsets[:-1]], np.diff(offsets))
    return (total[:-1] - base).astype(np.int32), (total[1:] - base).astype(np.int32)


def _first_ink(codes: NDArray[np.uint32]) -> Int64Array:
    """`[n + 1]` the first place at or behind every character of a text that is not white space."""
    places = np.append(np.where(np.isin(codes, _WHITE_SPACE), len(codes), np.arange(len(codes))), len(codes))
    return np.minimum.accumulate(places[::-1])[::-1]


def _components(spec: Any) -> list[dict[str, Any]]:
    if spec is None:
        return []
    parts = spec.get("pretokenizers") or spec.get("normalizers") or spec.get("decoders")
    return [c for p in parts for c in _components(p)] if parts is not None else [spec]


def _byte_level(spec: dict[str, Any]) -> bool:
    """Whether every id stands for bytes of the (normalized) text, and nothing else is added to it."""
    pre = _components(spec.get("pre_tokenizer"))
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


def _lossless(spec: dict[str, Any]) -> bool:
    """Whether a text always comes back from its ids, by the tokenizer's components."""
    splits = {"ByteLevel", "Split", "Digits", "Whitespace", "Punctuation"}
    removing = any(
        c["type"] == "Split" and c["behavior"] == "Removed" and not c.get("invert")
        for c in _components(spec["pre_tokenizer"])
    )
    known = all(c["type"] in splits - {"Whitespace"} for c in _components(spec.get("pre_tokenizer")))
    return _byte_level(spec) and not _components(spec.get("normalizer")) and known and not removing


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: the printable character that stands for every byte
    (https://github.com/openai/gpt-2/blob/master/src/encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
