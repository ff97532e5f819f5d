"""Which encoder a run takes, what is remembered of it, and that the bytes are the same whoever gives the ids."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from premask import encoders, verdicts
from premask.encode import backends
from premask.encode.admission import Verdict
from premask.encode.backends import Fastokens
from premask.encode.encoder import Encoder
from premask.encoders import choose
from premask.errors import UsageError
from premask.prepare import prepare
from premask.recipe import Recipe
from premask.run.local import Crew
from premask.verdicts import remember

ROOT = Path(__file__).parents[1]
SAMPLES = [str(path) for path in sorted((ROOT / "data/samples").iterdir())]
TOKENIZER = ROOT / "data/tokenizer"
LARGE = 2**30


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("premask.encode.admission.probes", lambda encoder: iter(["few", "probes"]))
    return tmp_path / "cache/premask/encoders"


@pytest.fixture
def encoder() -> Encoder:
    return Encoder((TOKENIZER / "tokenizer.json").read_bytes())


class Swapping:
    """The real backend, but in one text two ids of one byte each are swapped, as no length betrays."""

    def __init__(self, spec: bytes) -> None:
        self.real = Fastokens(spec)
        self.one, self.other = (int(self.real.encode([c])[0][0]) for c in "!?")

    def encode(self, texts: Sequence[str]):
        ids, offsets = self.real.encode(texts)
        ids = ids.copy()
        for n, text in enumerate(texts):
            if "stem bolts" in text:
                own = ids[offsets[n] : offsets[n + 1]]
                own[own == self.other] = self.one
        return ids, offsets


def recipe(**options) -> Recipe:
    return Recipe(sources=SAMPLES, tokenizer=str(TOKENIZER), **options)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def encoder_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())["encoder"]


def test_the_same_bytes_whichever_encoder(tmp_path: Path) -> None:
    for name in backends.BACKENDS:
        prepare(recipe(), tmp_path / name, encoder=name, workers=1)
        assert encoder_of(tmp_path / name)["backend"] == name
    assert files(tmp_path / "fastokens") == files(tmp_path / "tokenizers")
    assert encoder_of(tmp_path / "fastokens")["rows_audited"] > 0
    assert encoder_of(tmp_path / "tokenizers")["rows_audited"] == 0


def test_workers_load_the_encoder_too(tmp_path: Path) -> None:
    prepare(recipe(), tmp_path / "one", encoder="fastokens", workers=1)
    prepare(recipe(), tmp_path / "two", encoder="fastokens", workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert encoder_of(tmp_path / "two")["rows_audited"] > 0


def test_a_backend_that_lies_while_running_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    """It passed its examination, and lies about one row: the audit finds it, and all is masked again."""
    monkeypatch.setattr("premask.encode.encoder.AUDIT_EVERY", 1)
    prepare(recipe(), tmp_path / "true", encoder="tokenizers", workers=1)
    encoder = Encoder((TOKENIZER / "tokenizer.json").read_bytes())
    remember(encoder.raw, "fastokens", Verdict("", 9000))
    monkeypatch.setattr(backends, "FAST", {"fastokens": Swapping})
    monkeypatch.setattr(encoders, "SAMPLE", 1)
    notes: list[str] = []
    from premask.show.progress import SilentProgress

    monkeypatch.setattr(SilentProgress, "note", lambda self, text: notes.append(text))
    prepare(recipe(), tmp_path / "lied", encoder="fastokens", workers=1)
    assert files(tmp_path / "lied") == files(tmp_path / "true")
    found = encoder_of(tmp_path / "lied")
    assert found["backend"] == "tokenizers"
    assert "expected the ids of tokenizers, found others" in found["reason"]
    assert any("all partitions are masked again by tokenizers" in note for note in notes)
    with pytest.raises(UsageError, match="not admitted for this tokenizer: it differed while it ran"):
        prepare(recipe(), tmp_path / "again", encoder="fastokens", workers=1)


def test_receipts_of_a_backend_do_not_count_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run killed after masking with one encoder goes on with the other, and masks again."""
    with monkeypatch.context() as context:
        context.setattr(sys.modules["premask.prepare"], "write_shards", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(recipe(), tmp_path / "out", encoder="fastokens", workers=1)
    again: list[str] = []
    perform = Crew.perform
    monkeypatch.setattr(
        Crew, "perform", lambda crew, items, done: again.extend(i.name for i in items) or perform(crew, items, done)
    )
    prepare(recipe(), tmp_path / "out", encoder="tokenizers", workers=1)
    assert sum(name.startswith("partition") for name in again) == len(SAMPLES)


def test_small_inputs_take_the_reference(encoder: Encoder) -> None:
    choice = choose("auto", encoder, 1000, lambda: pytest.fail("no sample is needed"))
    assert choice.name == "tokenizers"
    assert "too small" in choice.reason


def test_large_inputs_take_the_fastest_that_is_admitted(encoder: Encoder, own_cache: Path) -> None:
    assert choose("auto", encoder, LARGE, lambda: ["some text"]).name == "fastokens"
    (verdict,) = own_cache.iterdir()
    assert json.loads(verdict.read_text())["reason"] == ""


def test_a_verdict_is_remembered(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    choose("auto", encoder, LARGE, list)
    monkeypatch.setattr("premask.encode.admission.probes", lambda encoder: pytest.fail("probed again"))
    assert choose("auto", encoder, LARGE, lambda: ["some text"]).name == "fastokens"
    assert choose("auto", encoder, encoders.WORTH_LOADING, list).name == "fastokens"  # too small to be examined for


def test_a_remembered_verdict_is_of_this_version_alone(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(encoder.raw, "fastokens", Verdict("bad"))
    assert "bad" in choose("auto", encoder, LARGE, list).reason
    monkeypatch.setattr(verdicts, "installed", lambda name: "99.0")
    assert choose("auto", encoder, LARGE, list).name == "fastokens"


@pytest.mark.parametrize("asked", ["auto", "fastokens", "tokenizers"])
@pytest.mark.parametrize("reason", [None, "", "bad"])
@pytest.mark.parametrize("size", [1000, verdicts.WORTH_LOADING, LARGE])
def test_what_is_foreseen_is_chosen(encoder: Encoder, asked: str, reason: str | None, size: int) -> None:
    """Or the reference is foreseen, which costs time alone: where a backend has yet to be examined."""
    if reason is not None:
        remember(encoder.raw, "fastokens", Verdict(reason))
    foreseen = verdicts.foreseen(asked, encoder.raw, size)
    if asked == "fastokens" and reason == "bad":
        assert foreseen == "tokenizers"
        return
    chosen = choose(asked, encoder, size, list).name
    assert foreseen == chosen or (foreseen == "tokenizers" and reason is None)


def test_texts_of_the_caller_are_examined_too(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "FAST", {"fastokens": Swapping})
    monkeypatch.setattr("premask.encode.admission.probes", lambda encoder: [])
    assert choose("auto", encoder, LARGE, lambda: ["the stem bolts!?"]).name == "tokenizers"
    assert "other ids" in choose("auto", encoder, LARGE, list).reason


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"reason": ""}', b'{"reason": "", "texts": null}'])
def test_a_damaged_cache_is_no_cache(encoder: Encoder, own_cache: Path, content: bytes) -> None:
    choose("auto", encoder, LARGE, list)
    (verdict,) = own_cache.iterdir()
    verdict.write_bytes(content)
    assert choose("auto", encoder, encoders.WORTH_LOADING, list).name == "tokenizers"
    assert choose("auto", encoder, LARGE, list).name == "fastokens"


def test_a_cache_that_cannot_be_written_is_no_cache(encoder: Encoder, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember(encoder.raw, "fastokens", Verdict("", 1))
    assert choose("auto", encoder, encoders.WORTH_LOADING, list).name == "tokenizers"


def test_writers_at_the_same_time(encoder: Encoder, own_cache: Path, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from premask.encode.admission import Verdict
from premask.encode.encoder import Encoder
from premask.verdicts import remember
encoder = Encoder(Path({str(TOKENIZER / "tokenizer.json")!r}).read_bytes())
for _ in range(200):
    remember(encoder.raw, "fastokens", Verdict("", 9000))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "pipeline")}
    writers = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    while any(writer.poll() is None for writer in writers):
        for path in own_cache.glob("*.json") if own_cache.exists() else ():
            assert json.loads(path.read_text()) == {"reason": "", "texts": 9000}
    assert [writer.wait() for writer in writers] == [0, 0]
    assert [path.suffix for path in own_cache.iterdir()] == [".json"]


def test_long_rows_are_no_sample(tmp_path: Path) -> None:
    from premask.encode.files import load_tokenizer_files
    from premask.intake import inputs_of
    from premask.maskers import build_masker

    rows = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}] for text in ("Hi?", "x" * 2**17)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    own = Recipe(sources=[str(tmp_path / "rows.jsonl")], tokenizer=str(TOKENIZER))
    masker = build_masker(own, load_tokenizer_files(str(TOKENIZER)))
    (text,) = encoders.rendered_sample(masker, inputs_of(own))
    assert "Hi?" in text


def test_names(encoder: Encoder) -> None:
    with pytest.raises(UsageError, match="--encoder: expected auto or one of tokenizers, fastokens, found 'fast'"):
        choose("fast", encoder, LARGE, list)


def test_profile(tmp_path: Path) -> None:
    from premask.show.profile import profile_lines

    prepare(recipe(), tmp_path / "out", encoder="fastokens", workers=1)
    lines = list(profile_lines(tmp_path / "out"))
    stages = {line.split()[0] for line in lines}
    assert {"masking", "writing", "read", "parse", "render", "encode", "mask", "write", "shards"} <= stages
    assert lines[-1].startswith("ids by fastokens")
    how = json.loads((tmp_path / "out/run.json").read_text())
    assert 0 < sum(how["stages"].values()) <= how["seconds"]
