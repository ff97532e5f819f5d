"""`premask prepare` from sources to a dataset: equal bytes whatever happens, other readers, bad input, killed runs."""

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

import premask
from premask.cli import run
from premask.errors import DataError, UsageError
from premask.read import Conversation, convert, parse
from premask.store.stage import read_stage

ROOT = Path(__file__).parents[1]
SAMPLES = sorted((ROOT / "data/samples").iterdir())
TOKENIZER = ROOT / "data/tokenizer"
MODULE = importlib.import_module("premask.prepare")  # `premask.prepare` is the function
GOOD = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}\n'


def call(*sources: Path | str, out: Path | str, **options: Any) -> list[str]:
    """Command line of `prepare` with our tokenizer; options given as True are flags."""
    words = ["prepare", *map(str, sources), "--tokenizer", str(options.pop("tokenizer", TOKENIZER)), "--out", str(out)]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def prepare(*sources: Path | str, out: Path, **options: Any) -> premask.Prepared:
    assert run(call(*sources, out=out, quiet=True, **options)) == 0
    return premask.open(out)


def files_of(out: Path) -> dict[str, bytes]:
    """Every file of a dataset but run.json, which tells how it was made."""
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    del files["run.json"]
    return files


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partitions and shards so small that our samples give a dozen of each."""
    monkeypatch.setattr(MODULE, "PARTITION_BYTES", 2500)
    monkeypatch.setattr(MODULE, "SHARD_TOKENS", 600)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> premask.Prepared:
    return prepare(*SAMPLES, out=tmp_path_factory.mktemp("sample") / "out")


# --- what the plan is given -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"overflow": "split", "max_length": 60}, {"turns": "separate"}])
def test_every_example_has_the_hash_of_its_whole_conversation(tmp_path: Path, options: dict[str, Any]) -> None:
    """Also the pieces and turns of it: what is one row must not be parted between training and validation."""
    source = ROOT / "data/samples/support.messages.jsonl"
    parsed = [parse(line) for line in source.read_bytes().splitlines()]
    given = [convert("messages", row) if isinstance(row, dict) else row for row in parsed]
    for validation in (0.0, 0.2):
        recipe = premask.Recipe(sources=[str(source)], tokenizer=str(TOKENIZER), validation=validation, **options)
        premask.prepare(recipe, tmp_path / "out", fresh=True, keep_stage=True)
        (path,) = (tmp_path / "out").rglob("stage/*.arrow")
        stage = read_stage(path)
        assert len(stage) > len(set(stage.rows.tolist())), "no row has several examples"
        if not validation:
            with pytest.raises(KeyError):
                _ = stage.digests
            continue
        for row, digest in zip(stage.rows.tolist(), stage.digests, strict=True):
            assert isinstance(conversation := given[row], Conversation)
            assert digest.tobytes() == conversation.digest()


# --- equal bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_pieces")
def test_the_same_bytes_for_any_number_of_workers_in_any_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(*SAMPLES, out=tmp_path / "1", workers=1, max_length=256)
    expected = files_of(tmp_path / "1")
    assert sum(name.endswith(".arrow") for name in expected) > 5
    for workers in (2, 5):
        monkeypatch.chdir(tmp_path if workers == 2 else "/")
        prepare(*SAMPLES, out=tmp_path / str(workers), workers=workers, max_length=256)
        assert files_of(tmp_path / str(workers)) == expected
    monkeypatch.chdir(tmp_path)
    prepare(*SAMPLES, out=Path("here"), workers=1, max_length=256)
    assert files_of(tmp_path / "here") == expected


def test_the_size_of_partitions_changes_no_shard(
    tmp_path: Path, sample: premask.Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = files_of(sample.path)
    for size in (300, 10**6):
        monkeypatch.setattr(MODULE, "PARTITION_BYTES", size)
        out = tmp_path / str(size)
        prepare(*SAMPLES, out=out, workers=1)
        found = files_of(out)
        assert {name: found[name] for name in found if name not in ("manifest.json", "plan.arrow")} == {
            name: expected[name] for name in expected if name not in ("manifest.json", "plan.arrow")
        }


@pytest.mark.parametrize(("size", "times"), [(0, 1), (2**28, 1), (2**30, 2), (2**32, 4), (2**50, 4)])
def test_partitions_and_shards_grow_with_the_root_of_the_sources(size: int, times: int) -> None:
    assert MODULE.sizes_for(size) == {"partition_bytes": times * 2**23, "shard_tokens": times * 2**21}
    assert MODULE.sizes_for(size)["partition_bytes"] <= MODULE.sizes_for(size + 2**20)["partition_bytes"]


def test_datasets_of_grown_shards_are_whole(
    tmp_path: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for usual in (2**28, sum(path.stat().st_size for path in SAMPLES) // 9):
        monkeypatch.setattr(MODULE, "USUAL_BYTES", usual)
        made = prepare(*SAMPLES, out=tmp_path / "out", fresh=True, workers=2, max_length=256)
        counts.append(len(made.manifest["splits"]["train"]["shards"]))
        assert run(["verify", str(made.path)]) == 0
        damaged = sorted((made.path / "train").glob("*.arrow"))[-1]
        content = damaged.read_bytes()
        damaged.write_bytes(content[:-100])
        assert run(["repair", str(made.path)]) == 0
        assert damaged.read_bytes() == content
    assert made.manifest["sizes"]["partition_bytes"] == pytest.approx(3 * 2500, rel=0.001)
    assert made.manifest["sizes"]["shard_tokens"] == pytest.approx(3 * 600, rel=0.001)
    assert counts[1] < counts[0]


def test_a_finished_dataset_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    prepare(*SAMPLES, out=out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run(call(*SAMPLES, out=out)) == 0
    captured = capsys.readouterr()
    assert "is prepared already, from the same recipe and sources; nothing to do" in captured.err
    assert "source rows         74" in captured.out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert run(call(*SAMPLES, out=out, strict=True)) == 1


def test_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(call(*SAMPLES, out=tmp_path / "out")) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "premask: taking checksums 5 sources",
        "premask: cutting 1 source",
        "premask: masking 5 partitions",
        "premask: packing 72 examples",
        "premask: writing 1 shard",
    ]
    assert "source rows whose text spells control tokens, encoded as plain text: 3" in captured.out
    assert str(tmp_path / "out" / "rejected.jsonl") in captured.out
    assert run(call(*SAMPLES, out=tmp_path / "out", json=True)) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["kept"]) == (74, 72)
    assert summary["rejected"] == {"broken_json": 1, "wrong_type": 1}


# --- other readers --------------------------------------------------------------------------------------------------


def test_datasets_reads_the_same(sample: premask.Prepared) -> None:
    splits = datasets.load_from_disk(str(sample.path))
    assert list(splits) == ["train"]
    rows = splits["train"].with_format("numpy")
    assert len(rows) == len(sample["train"])
    for row, pack in zip(rows, sample["train"], strict=True):
        for name, column in row.items():
            assert np.array_equal(column, getattr(pack, name)), name
    assert datasets.load_from_disk(str(sample.path / "train")).features == splits["train"].features


def test_pyarrow_alone_reads_the_same(sample: premask.Prepared) -> None:
    paths = sorted((sample.path / "train").glob("*.arrow"))
    table = pa.concat_tables(pa.ipc.open_stream(pa.memory_map(str(path))).read_all() for path in paths)
    for row, pack in zip(table.to_pylist(), sample["train"], strict=True):
        assert all(values == getattr(pack, name).tolist() for name, values in row.items())
        assert row["position_ids"] == [place for length in row["seq_lengths"] for place in range(length)]
        assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))


def test_weights_have_a_column_only_where_one_is_needed(tmp_path: Path, sample: premask.Prepared) -> None:
    def weighted(weight: float) -> premask.Prepared:
        source = tmp_path / f"{weight}.jsonl"
        source.write_text(GOOD + GOOD.replace('"yo"', f'"yo yo", "weight": {weight}'))
        return prepare(source, out=tmp_path / f"out-{weight}")

    assert weighted(1)["train"][0].loss_weights is None
    pack = weighted(0.5)["train"][0]
    assert pack.loss_weights is not None
    assert set(pack.loss_weights[pack.labels != -100].tolist()) == {0.5, 1.0}
    assert set(pack.loss_weights[pack.labels == -100].tolist()) == {0.0}
    (tmp_path / "masked.jsonl").write_text(GOOD + GOOD.replace('"yo"', '"yo", "weight": 0'))
    masked = prepare(tmp_path / "masked.jsonl", out=tmp_path / "masked")
    assert masked["train"][0].loss_weights is None
    assert masked.manifest["rows"]["rejected"] == {"nothing_to_train": 1}
    assert sample["train"][0].loss_weights is not None


def test_limit_counts_rows_of_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "PARTITION_BYTES", 300)
    assert prepare(*SAMPLES, out=tmp_path / "out", limit=3).manifest["rows"]["in"] == 15


def test_limit_counts_the_rows_of_a_source_not_of_its_files(tmp_path: Path) -> None:
    assert prepare(SAMPLES[0].parent / "t*.jsonl", out=tmp_path / "out", limit=15).manifest["rows"]["in"] == 15


def test_strict_does_not_mind_what_the_recipe_leaves_out(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(GOOD + GOOD + GOOD.replace("yo", "да"))
    options = {"set": "duplicates=drop", "strict": True}
    assert run([*call(source, out=tmp_path / "out", **options), "--set", "filters.scripts={Latin: 0.6}"]) == 0
    rows = premask.open(tmp_path / "out").manifest["rows"]
    assert rows == {"in": 3, "kept": 1, "rejected": {"duplicate": 1, "filtered_script": 1}}
    details = [json.loads(line)["detail"] for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert details == [
        "duplicates=drop: expected a new conversation, found one that was there before",
        "filters: expected a share of Latin from 0.6 to 1, found 0.500",
    ]


# --- bad input ------------------------------------------------------------------------------------------------------

BAD_ROWS = {
    "invalid_utf8": b'{"messages": [{"role": "user", "content": "h\xff"}, {"role": "assistant", "content": "yo"}]}',
    "broken_json": b'{"messages": [{"role": "user"',
    "not_an_object": b"[1, 2]",
    "wrong_type": b'{"messages": [{"role": "user", "content": 7}, {"role": "assistant", "content": "yo"}]}',
    "empty_conversation": b'{"messages": []}',
    "no_assistant_turn": b'{"messages": [{"role": "user", "content": "hi"}]}',
    "unknown_role": b'{"messages": [{"role": "wizard", "content": "hi"}, {"role": "assistant", "content": "yo"}]}',
    "lone_surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "y"}]}',
    "unsupported_content": b'{"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}]},'
    b' {"role": "assistant", "content": "yo"}]}',
    "nothing_to_train": b'{"messages": [{"role": "user", "content": "hi"},'
    b' {"role": "assistant", "content": "yo", "weight": 0}]}',
}


def test_a_bad_row_costs_itself_alone(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    good = GOOD.encode()
    source.write_bytes(good + b"".join(row + b"\n" + good for row in BAD_ROWS.values()))
    prepared = prepare(source, out=tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_bytes().splitlines()]
    assert [(line["row"], line["reason"]) for line in lines] == [(1 + 2 * n, name) for n, name in enumerate(BAD_ROWS)]
    assert all(line["source"] == str(source) and line["detail"] for line in lines)
    kept = sorted(row for pack in prepared["train"] for row in pack.source_rows.tolist())
    assert kept == list(range(0, 2 * len(BAD_ROWS) + 1, 2))
    assert run(call(source, out=tmp_path / "strict", strict=True)) == 1
    with pytest.raises(DataError, match="run did not finish"):
        premask.open(tmp_path / "strict")


@pytest.fixture
def errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `prepare` on a file of the given content; exit code and error."""
    monkeypatch.chdir(tmp_path)

    def attempt(content: str | bytes, name: str = "a.jsonl", **options: Any) -> tuple[int, str]:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        code = run(call(name, out="out", **options))
        captured = capsys.readouterr()
        assert captured.out == ""
        return code, captured.err[captured.err.index("premask: error") :]

    return attempt


@pytest.mark.parametrize(
    ("content", "options", "code", "wording"),
    [
        ("", {}, 1, "a.jsonl: expected rows, found an empty file; drop it from the sources"),
        ("\n \n", {}, 1, "a.jsonl: expected rows, found an empty file"),
        ("once upon a time\n", {}, 1, "a.jsonl: expected rows that are JSON objects"),
        ('{"a": 1}\n', {}, 2, "a.jsonl: expected the columns of one of messages"),
        (GOOD.replace("{", '{"prompt": "a", "completion": "b", ', 1), {}, 2, "say which one with --format"),
        ("\ufeff".encode("utf-16") + b"{", {}, 2, "found UTF-16; convert it to UTF-8"),
        (
            '{"messages": []}\n',
            {},
            1,
            "no source row can be kept for training: 1 empty_conversation; out/rejected.jsonl names each",
        ),
        (
            GOOD,
            {"set": "train_on=none"},
            1,
            "no source row can be kept for training: 1 nothing_to_train; out/rejected.jsonl",
        ),
        (GOOD, {"max_length": 4}, 1, "no source row can be kept for training: 1 too_long; out/rejected.jsonl"),
        (GOOD + "{\n", {"strict": True}, 1, "--strict: expected no rejected row, found 1 broken_json; out/rejected"),
        (GOOD, {"tokenizer": "model"}, 2, "model: expected tokenizer.json, found only tokenizer.model. Save it once"),
        (GOOD, {"tokenizer": "tekken"}, 2, "tekken: expected tokenizer.json, found only tekken.json"),
        (GOOD, {"tokenizer": "none"}, 2, "--tokenizer none: no such folder"),
        (GOOD, {"template": "none"}, 2, "--template none: expected a file or one of alpaca, chatml"),
        (GOOD, {"set": "stop_tokens=[x]"}, 2, "stop_tokens: expected added tokens of"),
        (
            GOOD,
            {"set": "filters.expression=lenght > 1"},
            2,
            "filters.expression: expected a condition over length, super",
        ),
        (
            GOOD,
            {"set": "filters.scripts={Klingon: 1}"},
            2,
            "filters.scripts: expected a script of Unicode, such as Latin",
        ),
        (GOOD, {"set": "columns={mesages: x}"}, 2, "columns: expected messages, conversations,"),
        (GOOD, {"set": "columns={messages: x}"}, 2, "a.jsonl: expected the columns of one of messages"),
        (GOOD, {"set": "role_map={bot: asistant}"}, 2, "found 'asistant'; did you mean assistant?"),
        (GOOD, {"validation": 1}, 2, "validation (command line): expected less than 1, found 1.0"),
        (GOOD, {"set": "overflow=cut"}, 2, "overflow (--set): expected 'drop', 'split' or 'truncate', found 'cut'"),
        (GOOD, {"limit": 0}, 2, "the recipe is wrong: limit (command line): expected greater than or equal to 1"),
    ],
)
def test_errors(errors: Any, content: str | bytes, options: dict[str, Any], code: int, wording: str) -> None:
    for name in ("tokenizer.model", "tekken.json"):
        Path(name.split(".")[-1] if name.endswith("model") else "tekken").mkdir(exist_ok=True)
    Path("model/tokenizer.model").write_text("x")
    Path("tekken/tekken.json").write_text("{}")
    found, message = errors(content, **options)
    assert (found, wording in message) == (code, True), message
    assert not Path("out/manifest.json").exists()


def test_an_error_within_a_slice_names_its_place(errors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = importlib.import_module("premask.steps")

    def failing(*args: Any) -> Any:
        raise DataError("chat template: it takes too long")

    monkeypatch.setattr(steps, "fit", failing)
    code, message = errors("\n\n" + GOOD + GOOD)
    assert code == 1
    assert "a.jsonl: byte 2, or one of 2 rows from there on: chat template: it takes too long" in message


def test_missing_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(call("none.jsonl", out="out")) == 2
    assert (
        capsys.readouterr().err
        == "premask: error: none.jsonl: expected a file, found nothing by that name; check the path\n"
    )
    assert not Path("out").exists()


def test_a_message_of_50_mb_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * (50 * 2**20 // 45)
    source = tmp_path / "big.jsonl"
    with source.open("w") as file:
        for user, assistant in (("hi", "yo"), (text, "yo"), ("hi", text), ("hi", "yo")):
            messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
            file.write(json.dumps({"messages": messages}) + "\n")
    # A process between us: a child's peak counts that of whoever started it, and this one may be large.
    measure = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
    measure += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    command = [sys.executable, "-m", "premask", *call(source, out=tmp_path / "out", quiet=True)]
    done = subprocess.run([sys.executable, "-c", measure, *command], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 1.5 * 2**20  # KiB; encoding such a text takes twelve times as much
    assert premask.open(tmp_path / "out").manifest["rows"] == {"in": 4, "kept": 2, "rejected": {"too_long": 2}}


# --- the output folder ----------------------------------------------------------------------------------------------


def test_a_folder_that_holds_something_else(errors: Any, tmp_path: Path) -> None:
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("years of work")
    for fresh in ({}, {"fresh": True}):
        code, message = errors(GOOD, **fresh)
        assert code == 2
        assert "out: expected an empty folder or a dataset of ours, found thesis.tex; choose another --out" in message
    assert [path.name for path in Path("out").iterdir()] == ["thesis.tex"]
    shutil.rmtree("out")
    Path("out").write_text("a file")
    assert errors(GOOD)[0] == 2
    Path("out").unlink()
    Path("out").mkdir()
    Path("out/train").mkdir()  # a name that we use, but not ours
    assert "found train; choose another" in errors(GOOD)[1]


def test_a_file_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD)
    assert run(call(tmp_path / "a.jsonl", out=tmp_path / "a.jsonl" / "out")) == 2
    assert "expected a folder, found a file in its way; choose another --out" in capsys.readouterr().err


def test_another_recipe_needs_another_folder_or_fresh(errors: Any, tmp_path: Path) -> None:
    prepare_good = call("a.jsonl", out="out", quiet=True)
    Path("a.jsonl").write_text(GOOD)
    assert run(prepare_good) == 0
    before = files_of(Path("out"))
    code, message = errors(GOOD, max_length=64)
    assert code == 2
    assert "out: holds a dataset that was prepared differently: recipe.max_length was 4096, is 64." in message
    assert "Choose another --out, or replace it with --fresh" in message
    assert "sources.a.jsonl was" in errors(GOOD + GOOD)[1]
    assert files_of(Path("out")) == before
    assert run([*call("a.jsonl", out="out", quiet=True, max_length=64), "--fresh"]) == 0
    assert premask.open("out").manifest["recipe"]["max_length"] == 64


def test_a_finished_dataset_that_lost_a_shard_is_not_whole(errors: Any) -> None:
    Path("a.jsonl").write_text(GOOD)
    assert run(call("a.jsonl", out="out", quiet=True)) == 0
    before = files_of(Path("out"))
    (shard,) = Path("out/train").glob("*.arrow")
    shard.write_bytes(shard.read_bytes()[:-8])
    code, message = errors(GOOD)
    assert code == 1
    assert "the dataset is damaged" in message
    assert run(call("a.jsonl", out="out", quiet=True, fresh=True)) == 0
    assert files_of(Path("out")) == before


def test_a_usage_error_from_python(tmp_path: Path) -> None:
    recipe = premask.Recipe(sources=[str(SAMPLES[0])], tokenizer=str(TOKENIZER), template="none")
    with pytest.raises(UsageError, match="--template none"):
        premask.prepare(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- killed runs ----------------------------------------------------------------------------------------------------

DYING = """
import os, signal, sys
from pathlib import Path
import premask.prepare
from premask.cli import main

module = sys.modules["premask.prepare"]
module.PARTITION_BYTES, module.SHARD_TOKENS = 2500, 600
left, number = int(sys.argv.pop(1)), getattr(signal, sys.argv.pop(1))
replace = Path.replace

def dying(self, target):
    global left
    if left == 0:
        left -= 1
        os.kill(os.getpid(), number)
    left -= 1
    return replace(self, target)

Path.replace = dying
main()
"""
"""Gets a signal before it renames a file of number so-and-so into place."""


def interrupted(number: int, signal: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", DYING, str(number), signal, *words], stderr=subprocess.PIPE, text=True)


@pytest.fixture
def undisturbed(tmp_path: Path, small_pieces: None) -> Iterator[dict[str, bytes]]:
    prepare(*SAMPLES, out=tmp_path / "undisturbed", max_length=256)
    yield files_of(tmp_path / "undisturbed")


def assert_can_be_finished(out: Path, words: list[str], expected: dict[str, bytes]) -> None:
    """What a killed run left is nothing whole, and the same command makes it whole."""
    if not (out / "manifest.json").exists():
        with pytest.raises(DataError, match=r"expected a manifest, found none.*run `premask prepare` again"):
            premask.open(out)
    assert run(words) == 0
    assert files_of(out) == expected


@pytest.mark.parametrize("number", [0, 1, 7, 20, 30, 40])
def test_a_killed_run_is_finished_by_the_next(tmp_path: Path, number: int, undisturbed: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    words = call(*SAMPLES, out=out, quiet=True, max_length=256, workers=1)
    assert interrupted(number, "SIGKILL", words).returncode == -9
    assert_can_be_finished(out, words, undisturbed)


@pytest.mark.slow
def test_a_run_may_be_killed_anywhere(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    number, code = 0, -9
    while code == -9:
        out = tmp_path / str(number)
        words = call(*SAMPLES, out=out, quiet=True, max_length=256, workers=1)
        code = interrupted(number, "SIGKILL", words).returncode
        assert_can_be_finished(out, words, undisturbed)
        number += 1
    assert code == 0
    assert number > 40


@pytest.mark.slow
def test_fresh_may_be_killed_anywhere(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    for number in range(12):
        out = tmp_path / str(number)
        prepare(SAMPLES[0], out=out)
        words = call(*SAMPLES, out=out, quiet=True, max_length=256, workers=1)
        assert interrupted(number, "SIGKILL", [*words, "--fresh"]).returncode == -9
        if (out / "manifest.json").exists():  # nothing is removed yet
            assert run(words) == 2
            words.append("--fresh")
        assert_can_be_finished(out, words, undisturbed)


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_a_run_that_can_go_on(
    tmp_path: Path, workers: int, undisturbed: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = call(*SAMPLES, out=out, max_length=256, workers=workers)
    ended = interrupted(25 if workers == 1 else 10, "SIGINT", words)
    assert ended.returncode == 130
    assert ended.stderr.endswith("premask: error: interrupted; run the same command again to go on where it stopped\n")
    assert not list(out.rglob("*.partial"))
    assert_can_be_finished(out, words, undisturbed)
    assert "were done by an earlier run" in capsys.readouterr().err
