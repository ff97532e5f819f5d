"""Text to ids: the reference encoder, and where every token lies in its text.

Positions are counted in UTF-8 bytes, over a whole batch: its texts lie one byte apart. For tokenizers that are lossless
by their components (byte-level BPE, no normalizer, no prefix) the bytes of the ids are the bytes of the text, so the
positions are the running sum of a table of lengths, and the sums must meet the text's length. For byte-level tokenizers
with a normalizer every row's bytes are compared; a row that differs, and every row of any other tokenizer, takes the
offsets that `tokenizers` reports.

A token may swallow the white space beside it (`lstrip`, `rstrip`: Phi-3's control tokens do). It covers its own text
only; what it swallowed belongs to no token.

A fast backend (`backends.py`) may give the ids of byte-level tokenizers. The reference encodes the first rows and one
in a thousand again, and the lengths of every row are checked as ever; the first difference raises `BackendDiffers`.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from premask.dtypes import BoolArray, Int32Array, Int64Array, offsets_of
from premask.encode.backends import REFERENCE, Backend, BackendDiffers, load
from premask.encode.files import parsed
from premask.encode.kind import is_byte_level, is_lossless, keeps_ascii
from premask.encode.measure import Positions, running, sizes_of
from premask.encode.vocabulary import SpeltVocabulary, spelt_vocabulary
from premask.errors import UsageError

BATCH = 500
"""Texts encoded at a time: live encodings are heavy, and larger batches were not faster."""

AUDIT_EVERY = 1000
"""One row in so many is compared byte by byte also where the lengths alone are proof enough, and encoded by the
reference also where another backend is admitted."""

AUDIT_FIRST = 250
"""The first rows of a process that the reference encodes too, every one: a backend was admitted on other texts."""

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
    bases: Int64Array
    """`[N + 1]` where every text begins in the batch, the texts laid out one byte apart; and where one more would."""
    starts: Positions
    """`[T]` first byte of every token, counted from the start of the batch."""
    ends: Positions
    """`[T]` byte behind every token, likewise."""
    by_offsets: int
    """Texts whose positions come from the tokenizer's offsets."""

    def places(self, row: int) -> tuple[Int64Array, Int64Array]:
        """`[t]` first byte and byte behind of every token of one text, counted from the start of that text."""
        tokens = slice(self.offsets[row], self.offsets[row + 1])
        return self.starts[tokens] - self.bases[row], self.ends[tokens] - self.bases[row]


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that the tokenizer finds in a text before anything else."""

    id: int
    content: str
    special: bool


class Encoder:
    """A tokenizer, loaded from the bytes of its `tokenizer.json`; never adds special tokens of its own."""

    def __init__(self, tokenizer_json: bytes) -> None:
        self.spec = bare(tokenizer_json)
        self.raw = orjson.dumps(self.spec)
        self._tokenizer = _loaded(self.raw)
        declared = self.spec.get("added_tokens") or []
        # The ids that the tokenizer gives, which are not always those that its file names.
        ids = {t["content"]: i for t in declared if (i := self.id_of(t["content"])) is not None}
        self.added = [AddedToken(ids[t["content"]], t["content"], t["special"]) for t in declared]
        self._keeps_ascii = keeps_ascii(self.spec)
        self.byte_level, self.lossless = is_byte_level(self.spec), is_lossless(self.spec)
        self._own = self._own_vocabulary()
        self.vocabulary_size = max(max(self._own.values(), default=-1), max(ids.values(), default=-1)) + 1
        if not 0 < self.vocabulary_size <= MAX_VOCABULARY:
            raise UsageError(
                f"tokenizer.json: expected ids from 0 to {MAX_VOCABULARY - 1:,}, found {self.vocabulary_size - 1:,} "
                "as the largest. The file is damaged: fetch it again"
            )
        self._swallowing = {ids[t["content"]]: t["content"] for t in declared if t.get("lstrip") or t.get("rstrip")}
        self.backend = REFERENCE
        """Who gives the ids."""
        self._fast: Backend | None = None
        self._seen = 0
        self.audited = 0
        """Rows of a fast backend that the reference encoded again, and found to be the same."""

    def use(self, backend: str, loaded: Backend | None = None) -> None:
        """Take the ids from a backend, one of `backends.BACKENDS`: the one that is `loaded` for `raw`, or a new one.

        Byte-level tokenizers only; UsageError as `load`.
        """
        if backend != self.backend:
            self._fast = None if backend == REFERENCE else loaded or load(backend, self.raw)
            self.backend = backend

    def _own_vocabulary(self) -> dict[str, int]:
        model = self.spec["model"]
        if model.get("type") == "BPE":  # as it stands in the file; the tokenizer is slow to tell it
            own: dict[str, int] = model["vocab"]
            return own
        return dict(self._tokenizer.get_vocab(with_added_tokens=False))

    @functools.cached_property
    def _spelt(self) -> SpeltVocabulary:
        return spelt_vocabulary(self._own, {token.id: token.content for token in self.added}, self.vocabulary_size)

    @functools.cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of every id; empty where it has none of its own. Byte-level tokenizers only."""
        return self._spelt.as_list()

    @property
    def byte_lengths(self) -> Int32Array:
        """`[V]` int32, bytes of every id. Byte-level tokenizers only."""
        return self._spelt.lengths

    @functools.cached_property
    def bytes_per_token(self) -> int | None:
        """No token stands for more bytes of a text, white space aside; None where there is no such bound."""
        if not self._keeps_ascii:
            return None
        return int(self.byte_lengths.max()) * (1 if self.lossless else 4)

    def renamed(self, names: Mapping[str, str]) -> "Encoder":
        """The same tokenizer, finding other texts in place of some added tokens (their ids may differ)."""
        added = [{**t, "content": names.get(t["content"], t["content"])} for t in self.spec.get("added_tokens") or []]
        return Encoder(orjson.dumps({**self.spec, "added_tokens": added}))

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
        """Encode texts. Nothing is added, cut or padded. Raises `BackendDiffers` (see above)."""
        if self._fast is None:
            return self._by_reference(texts)
        ids, offsets = self._fast.encode(texts)
        first = range(min(len(texts), max(0, AUDIT_FIRST - self._seen)))
        for row in sorted({*first, *range(-self._seen % AUDIT_EVERY, len(texts), AUDIT_EVERY)}):
            if not np.array_equal(self.reference_ids(texts[row]), ids[offsets[row] : offsets[row + 1]]):
                raise self._differs()
            self.audited += 1
        self._seen += len(texts)
        return self.locate(texts, ids, offsets)

    def reference_ids(self, text: str) -> Int32Array:
        """The ids of a text by the reference."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def _differs(self) -> Exception:
        if self._fast is None:
            return AssertionError("bug in premask: offsets were asked for ids that are not the tokenizer's own")
        return BackendDiffers(
            f"--encoder {self.backend}: expected the ids of {REFERENCE}, found others; use --encoder {REFERENCE}"
        )

    def _by_reference(self, texts: Sequence[str]) -> Encoded:
        tokenizer = self._tokenizer
        encode = (
            tokenizer.encode_batch_fast if self.byte_level else tokenizer.encode_batch
        )  # the fast one has no offsets
        parts, places, lengths = [], [], np.zeros(len(texts), np.int64)
        for first in range(0, len(texts), BATCH):
            batch = encode(list(texts[first : first + BATCH]), add_special_tokens=False)
            for n, encoding in enumerate(batch, first):
                parts.append(np.array(encoding.ids, np.int32))
                lengths[n] = len(parts[-1])
                if not self.byte_level:
                    places.append(self._to_bytes(texts[n], encoding))
        ids, offsets = np.concatenate([np.zeros(0, np.int32), *parts]), offsets_of(lengths)
        if self.byte_level:
            return self.locate(texts, ids, offsets)
        bases = offsets_of(sizes_of(texts)[0] + 1)
        starts, ends = np.concatenate([np.zeros((0, 2), np.int64), *places]).T + np.repeat(bases[:-1], lengths)
        return Encoded(ids, offsets, bases, starts, ends, len(texts))

    def locate(self, texts: Sequence[str], ids: Int32Array, offsets: Int64Array) -> Encoded:
        """Where the tokens `ids` lie in `texts`."""
        sizes, plain = sizes_of(texts)
        bases = offsets_of(sizes + 1)
        if not self.byte_level:
            starts, ends = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
            differing = np.ones(len(texts), bool)
        else:
            starts, ends, spelt = running(self.byte_lengths, ids, offsets, bases)
            differing = self._differing(texts, ids, offsets, (sizes, plain, spelt))
        for row in np.flatnonzero(differing):
            a, b = offsets[row], offsets[row + 1]
            encoding = self._tokenizer.encode(texts[row], add_special_tokens=False)
            if encoding.ids != ids[a:b].tolist():
                raise self._differs()
            starts[a:b], ends[a:b] = self._to_bytes(texts[row], encoding).T + bases[row]
        return Encoded(ids, offsets, bases, starts, ends, int(differing.sum()))

    def _differing(
        self,
        texts: Sequence[str],
        ids: Int32Array,
        offsets: Int64Array,
        measured: tuple[Int64Array, BoolArray, Int64Array],
    ) -> BoolArray:
        """`[N]` which rows have ids that do not spell their text, byte for byte.

        `measured` are the texts' bytes, which of them are ASCII, and the bytes of their ids.
        """
        sizes, plain, spelt = measured
        differing: BoolArray = spelt != sizes
        compared = ~differing & ~(plain & self._keeps_ascii | self.lossless)
        compared[::AUDIT_EVERY] |= ~differing[::AUDIT_EVERY]
        for row in np.flatnonzero(compared):
            spelling = self._spelt.join(ids[offsets[row] : offsets[row + 1]])
            differing[row] = spelling != texts[row].encode()
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
            return self._spelt.join(np.array(ids, np.int32))
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False)).encode()


def bare(tokenizer_json: bytes) -> dict[str, Any]:
    """A `tokenizer.json` that cuts, pads and adds nothing; a post-processor could only trim spaces off the offsets."""
    spec: dict[str, Any] = parsed(tokenizer_json)
    return {**spec, "truncation": None, "padding": None, "post_processor": None}


def _loaded(spec: bytes) -> Tokenizer:
    try:
        return Tokenizer.from_str(spec.decode())
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # an interrupt
        raise UsageError(
            f"tokenizer.json: expected a tokenizer that can be loaded, found: {error}. Fetch or save it again"
        ) from error


def _first_ink(codes: NDArray[np.uint32]) -> Int64Array:
    """`[n + 1]` the first place at or behind every character of a text that is not white space."""
    places = np.append(np.where(np.isin(codes, _WHITE_SPACE), len(codes), np.arange(len(codes))), len(codes))
    return np.minimum.accumulate(places[::-1])[::-1]
