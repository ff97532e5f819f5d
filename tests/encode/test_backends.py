"""Fast encoders against the reference, and what becomes of one that lies."""

import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premask.encode import backends
from premask.encode.admission import Verdict, compare, examine, probes, why_unfit
from premask.encode.backends import BackendDiffers, Fastokens
from premask.encode.encoder import AUDIT_EVERY, AUDIT_FIRST, Encoder
from premask.errors import UsageError

ROOT = Path(__file__).parents[2]
SHARED = ROOT / "../shared/data/tokenizers"
FILES = [ROOT / "data/tokenizer", SHARED / "dolma2", SHARED / "gpt-neox"]

TEXTS = st.lists(
    st.one_of(
        st.sampled_from(["<|im_start|>", "<|im_end|>\n", "<think>", " ", "\n\n", "e\u0301", "中文", "12345", "don't"]),
        st.text(max_size=6),
    ),
    max_size=10,
).map("".join)


class Liar:
    """The ids of the real backend, but for one text."""

    def __init__(self, spec: bytes, about: str = "lie", how: int = 1) -> None:
        self.real, self.about, self.how = Fastokens(spec), about, how

    def encode(self, texts: Sequence[str]):
        ids, offsets = self.real.encode(texts)
        ids = ids.copy()
        for n, text in enumerate(texts):
            if self.about in text:
                ids[offsets[n]] += self.how
        return ids, offsets


@pytest.fixture(params=FILES, ids=lambda folder: folder.name)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    if not request.param.exists():
        pytest.skip("no shared tokenizers here")
    return Encoder((request.param / "tokenizer.json").read_bytes())


@pytest.fixture
def small() -> Encoder:
    return Encoder((ROOT / "data/tokenizer/tokenizer.json").read_bytes())


@given(st.lists(TEXTS, max_size=6))
@settings(max_examples=60, deadline=None)
def test_the_same_ids_and_places_whichever_backend(texts: list[str]) -> None:
    raw = (ROOT / "data/tokenizer/tokenizer.json").read_bytes()
    reference, fast = Encoder(raw), Encoder(raw)
    fast.use("fastokens")
    expected, found = reference.encode(texts), fast.encode(texts)
    for name in ("ids", "offsets", "starts", "ends"):
        a, b = getattr(expected, name), getattr(found, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert expected.by_offsets == found.by_offsets


def test_real_tokenizers_are_admitted(encoder: Encoder) -> None:
    verdict = examine(encoder, "fastokens", ["A text of the caller's."])
    assert verdict.admitted, verdict.reason
    assert verdict.texts > 9000
    assert len(encoder.token_bytes) == encoder.vocabulary_size


def test_probes_hold_every_added_token_and_both_planes(small: Encoder) -> None:
    text = "".join(probes(small))
    assert all(text.count(token.content) > 10 for token in small.added)
    held = set(text)
    assert all(chr(c) in held for c in range(0x20000) if not 0xD800 <= c < 0xE000)


@pytest.mark.parametrize("about", ["<|im_end|>\u0301", "\U00011de3", "\u2009", "一"])
def test_a_backend_that_lies_is_not_admitted(small: Encoder, monkeypatch: pytest.MonkeyPatch, about: str) -> None:
    monkeypatch.setattr(backends, "FAST", {"fastokens": lambda spec: Liar(spec, about)})
    verdict = examine(small, "fastokens")
    assert not verdict.admitted
    assert "other ids than the reference for" in verdict.reason


def test_the_callers_own_texts_count(small: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "FAST", {"fastokens": lambda spec: Liar(spec, "a rare phrase")})
    assert examine(small, "fastokens").admitted
    assert not examine(small, "fastokens", ["here is a rare phrase"]).admitted


def test_a_backend_that_fails_is_not_admitted(small: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def encode(self, texts: Sequence[str]):
            raise RuntimeError("no")

    def refusing(spec: bytes) -> Failing:
        raise ValueError("unknown pretokenizer")

    assert compare(small, Failing(), ["x"]) == Verdict("it fails: RuntimeError: no", 0)
    monkeypatch.setattr(backends, "FAST", {"fastokens": refusing})
    assert examine(small, "fastokens").reason == "it refuses the tokenizer: ValueError: unknown pretokenizer"


def test_interrupts_go_through_an_examination(small: Encoder) -> None:
    class Interrupted:
        def encode(self, texts: Sequence[str]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(small, Interrupted(), ["x"])


def test_static_rules(build_tokenizer) -> None:
    reasons = {kind: why_unfit(Encoder(build_tokenizer(kind, ()))) for kind in ("bytes", "nfc", "metaspace", "llama")}
    assert reasons["bytes"] == reasons["nfc"] == ""
    assert "not byte-level" in reasons["metaspace"]
    assert "not byte-level" in reasons["llama"]


def test_the_audit_finds_other_ids_of_the_same_length(small: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ids that both stand for one byte are swapped: no length betrays it."""
    one, other = small.encode(["a"]).ids[0], small.encode(["b"]).ids[0]
    monkeypatch.setattr(backends, "FAST", {"fastokens": lambda spec: Liar(spec, "a", int(other) - int(one))})
    small.use("fastokens")
    texts = ["b"] * AUDIT_EVERY
    small.encode(texts)
    assert small.audited == AUDIT_FIRST
    with pytest.raises(BackendDiffers, match="expected the ids of tokenizers, found others"):
        small.encode(["a", *texts])


def test_one_row_in_a_thousand_is_audited_whatever_the_batches(small: Encoder) -> None:
    small.use("fastokens")
    for size in (1, 998, 1, 1, 1500, 499):
        small.encode(["x"] * size)
    assert small.audited == AUDIT_FIRST + 2


@pytest.mark.parametrize("before", [0, AUDIT_FIRST - 1])
def test_the_first_rows_are_all_audited(small: Encoder, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    one, other = small.encode(["a"]).ids[0], small.encode(["b"]).ids[0]
    monkeypatch.setattr(backends, "FAST", {"fastokens": lambda spec: Liar(spec, "a", int(other) - int(one))})
    small.use("fastokens")
    small.encode(["b"] * before)
    with pytest.raises(BackendDiffers):
        small.encode(["a"] * 3)


def test_lengths_that_differ_stop_a_backend_at_once(small: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = small.byte_lengths
    first = int(small.reference_ids("the word")[0])
    other = int(np.flatnonzero(lengths > lengths[first])[0])
    monkeypatch.setattr(backends, "FAST", {"fastokens": lambda spec: Liar(spec, "word", other - first)})
    small.use("fastokens")
    small.encode(["fine"] * AUDIT_FIRST)  # which are audited
    with pytest.raises(BackendDiffers):
        small.encode(["the word"])


def test_differing_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(BackendDiffers("x")))  # noqa: S301
    assert isinstance(error, BackendDiffers)
    assert str(error) == "x"


def test_a_backend_that_is_not_installed(small: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "installed", lambda name: None)
    with pytest.raises(UsageError, match=r"--encoder fastokens: expected the package .*premask\[fast\]"):
        small.use("fastokens")
    small.use("tokenizers")
    assert small.backend == "tokenizers"


def test_one_thread_encodes() -> None:
    """Processes are the parallelism: a backend that starts threads in each would get in their way."""
    code = f"""
import os
from pathlib import Path
from premask.encode.encoder import Encoder
encoder = Encoder(Path({str(ROOT / "data/tokenizer/tokenizer.json")!r}).read_bytes())
encoder.use("fastokens")
encoder.encode(["some text that is not so short " * 50] * 2000)
print(len(os.listdir("/proc/self/task")))
"""
    environment = {"PYTHONPATH": str(ROOT / "pipeline"), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
