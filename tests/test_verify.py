"""`premask verify`: what it finds, how it says so, with which exit code; and what only the sources can show."""

import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from premask.cli import run
from premask.errors import DataError, UsageError
from premask.store.manifest import read_manifest
from premask.verify import verify

sys.path.insert(0, str(Path(__file__).parent / "torture"))

import forge
import small

Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return small.write_sources(tmp_path_factory.mktemp("sources"), rows=40)


@pytest.fixture(scope="module")
def whole(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of several shards, with weights and rejected rows."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(importlib.import_module("premask.prepare"), "PARTITION_BYTES", 3000)
        monkeypatch.setattr(importlib.import_module("premask.prepare"), "SHARD_TOKENS", 1500)
        assert run(small.arguments(inputs, out, "--workers", "1")) == 0
    return out


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A dataset that a test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


def lines(out: Path, capsys: pytest.CaptureFixture[str], *more: str, code: int = 1) -> list[str]:
    """What `premask verify` prints, exit code checked, the last line being its error."""
    capsys.readouterr()
    assert run(["verify", str(out), "--workers", "1", *more]) == code
    printed = capsys.readouterr()
    errors = printed.err[printed.err.find("premask: error: ") :] if "premask: error: " in printed.err else ""
    return [*printed.out.splitlines(), *errors.splitlines()]  # without the progress


def flip(path: Path, place: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def first_shard(out: Path) -> Path:
    return sorted((out / "train").glob("data-*"))[0]


# --- a whole dataset -------------------------------------------------------------------------------------------------


def test_a_whole_dataset(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(whole)
    train = manifest["splits"]["train"]
    files = [path for path in whole.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    assert len(train["shards"]) > 4
    assert {"loss_weights"} < set(manifest["columns"])
    assert lines(whole, capsys, code=0) == [
        f"{whole}: {len(files)} files, {size:,} bytes checked",
        f"train: {train['packs']:,} packs, {train['examples']:,} examples, {train['tokens']:,} tokens, "
        f"{train['supervised_tokens']:,} supervised tokens",
        "whole",
    ]
    assert run(["verify", str(whole), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_workers_find_the_same(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("premask.verify"), "WORTH_WORKERS", 0)
    flip(first_shard(out))
    report = verify(out, workers=2)
    assert [damage.file for damage in report.damages] == [f"train/{first_shard(out).name}"]
    assert report == verify(out, workers=1)


def test_no_dataset(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(tmp_path / "none", capsys, code=2) == [
        f"premask: error: {tmp_path}/none: expected the folder of a prepared dataset, found none; check the path"
    ]
    assert "expected a manifest, found none: not a prepared dataset, or its run did not finish" in str(
        lines(tmp_path, capsys)
    )
    with pytest.raises(UsageError):
        verify(tmp_path / "none")
    with pytest.raises(DataError):
        verify(tmp_path)


def test_a_dataset_of_another_version(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sealed = importlib.import_module("premask.store.sealed")
    sealed.write_sealed(out / "manifest.json", {**read_manifest(out), "format_version": 99})
    (line,) = lines(out, capsys)
    assert "expected format version 1, found 99; use the premask that wrote it" in line


# --- files that are damaged ------------------------------------------------------------------------------------------


def lose(name: str) -> Change:
    return lambda out: (out / name).unlink()


def spoil(name: str) -> Change:
    return lambda out: flip(out / name, (out / name).stat().st_size // 2)


def put_a_folder(out: Path) -> None:
    (out / "plan.arrow").unlink()
    (out / "plan.arrow").mkdir()


def put_a_pipe(out: Path) -> None:
    (out / "rejected.jsonl").unlink()
    os.mkfifo(out / "rejected.jsonl")


def put_a_broken_link(out: Path) -> None:
    (out / "rejected.jsonl").unlink()
    (out / "rejected.jsonl").symlink_to("nowhere")


def lengthen(out: Path) -> None:
    first_shard(out).write_bytes(first_shard(out).read_bytes() + b"x")


def use_anothers_record(out: Path) -> None:
    record = json.loads((out / "run.json").read_bytes())
    del record["checksum"]
    record["description"]["recipe"]["seed"] += 1
    importlib.import_module("premask.store.sealed").write_sealed(out / "run.json", record)


SHARD = r"train/data-00000-of-\d{5}.arrow"
NOTHING_ELSE = "; nothing else can be checked without it"
FOUND = [
    (lose("manifest.json"), f"missing: manifest.json: expected a manifest beside run.json, found none{NOTHING_ELSE}"),
    (
        spoil("manifest.json"),
        rf"changed: manifest.json: .*manifest.json: expected .*; rebuild it with `premask repair`{NOTHING_ELSE}",
    ),
    (lose("run.json"), "missing: run.json: expected a file, found none"),
    (spoil("run.json"), "changed: run.json: expected the file as it was written, found another"),
    (use_anothers_record, "changed: run.json: expected the file as it was written, found another"),
    (lose("plan.arrow"), "missing: plan.arrow: expected a file, found none"),
    (spoil("plan.arrow"), "changed: plan.arrow: expected SHA-256 [0-9a-f]{64}, found another"),
    (put_a_folder, "missing: plan.arrow: expected a file, found none"),
    (put_a_pipe, "missing: rejected.jsonl: expected a file, found none"),
    (put_a_broken_link, "missing: rejected.jsonl: expected a file, found none"),
    (spoil("rejected.jsonl"), "changed: rejected.jsonl: expected SHA-256 [0-9a-f]{64}, found another"),
    (spoil("dataset_dict.json"), "changed: dataset_dict.json: expected SHA-256 [0-9a-f]{64}, found another"),
    (spoil("train/state.json"), "changed: train/state.json: expected SHA-256 [0-9a-f]{64}, found another"),
    (lambda out: first_shard(out).unlink(), f"missing: {SHARD}: expected a file, found none"),
    (lambda out: flip(first_shard(out), 999), f"changed: {SHARD}: expected SHA-256 [0-9a-f]{{64}}, found another"),
    (lengthen, rf"changed: {SHARD}: expected [\d,]+ bytes, found [\d,]+"),
]


@pytest.mark.parametrize(("damage", "line"), FOUND)
def test_damage_is_found(damage: Change, line: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(out)
    found, *_, verdict, error = lines(out, capsys)
    assert re.fullmatch(line, found)
    assert verdict == "1 thing is wrong"
    assert error == f"premask: error: {out}: the dataset is damaged; `premask repair {out}` rebuilds its files"


def test_strays(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("notes.txt", "train/data-00099-of-00100.arrow", "report.html", ".premask/old"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).touch()
    *found, _, _, verdict, error = lines(out, capsys)
    assert found == [
        f"stray: {name}: expected no such file in a dataset; the manifest does not name it"
        for name in ("notes.txt", "train/data-00099-of-00100.arrow")
    ]
    assert verdict == "2 things are wrong"
    assert error == f"premask: error: {out}: holds files that are no part of the dataset; remove them"


def test_everything_at_once_as_json(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first_shard(out).unlink()
    (out / "notes.txt").touch()
    flip(out / "rejected.jsonl")
    assert run(["verify", str(out), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["folder"], report["ok"], report["compared"]) == (str(out), False, None)
    assert {(damage["kind"], damage["file"]) for damage in report["damages"]} == {
        ("missing", f"train/{first_shard(out).name[:5]}00000{first_shard(out).name[10:]}"),
        ("stray", "notes.txt"),
        ("changed", "rejected.jsonl"),
    }
    assert report["splits"]["train"]["packs"] == read_manifest(out)["splits"]["train"]["packs"]


def test_a_disk_that_fails_under_a_file(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("premask.verify")
    digest_file = module.digest_file

    def failing(path: Path) -> str:
        if path.name in ("rejected.jsonl", first_shard(out).name):
            raise OSError(5, "Input/output error")
        return str(digest_file(path))

    monkeypatch.setattr(module, "digest_file", failing)
    damages = verify(out, workers=1).damages
    assert {damage.file for damage in damages} == {"rejected.jsonl", f"train/{first_shard(out).name}"}
    assert {damage.detail for damage in damages} == {"expected a file that can be read, found that the disk fails"}
    assert {damage.kind for damage in damages} == {"changed"}


# --- shards that were written wrong ----------------------------------------------------------------------------------


def trained(arrays: forge.Arrays, nth: int = 3) -> int:
    return int(np.flatnonzero(arrays["labels"] != -100)[nth])


def untrained(arrays: forge.Arrays) -> int:
    """A masked token that is not the first of its example."""
    return int(np.flatnonzero((arrays["labels"] == -100) & (arrays["position_ids"] > 0))[5])


def another_label(arrays: forge.Arrays) -> None:
    arrays["labels"][trained(arrays)] += 1


def a_header_trained(arrays: forge.Arrays) -> None:
    place = untrained(arrays)
    arrays["labels"][place], arrays["loss_weights"][place] = arrays["input_ids"][place], 1


def a_first_token_trained(arrays: forge.Arrays) -> None:
    arrays["labels"][0], arrays["loss_weights"][0] = arrays["input_ids"][0], 1


def nothing_trained(arrays: forge.Arrays) -> None:
    end = arrays["seq_lengths"][0]
    arrays["labels"][:end], arrays["loss_weights"][:end] = -100, 0


def positions_that_go_on(arrays: forge.Arrays) -> None:
    second = arrays["seq_lengths"][0]
    arrays["position_ids"][second : second + arrays["seq_lengths"][1]] += second


def a_negative_id(arrays: forge.Arrays) -> None:
    arrays["input_ids"][untrained(arrays)] = -1


def a_weight_without_a_label(arrays: forge.Arrays) -> None:
    arrays["loss_weights"][untrained(arrays)] = 0.5


def no_weight(arrays: forge.Arrays) -> None:
    arrays["loss_weights"][trained(arrays)] = 0


def a_weight_that_is_no_number(arrays: forge.Arrays) -> None:
    arrays["loss_weights"][trained(arrays)] = np.nan


def a_longer_example(arrays: forge.Arrays) -> None:
    arrays["seq_lengths"][0] += 1


def an_empty_example(arrays: forge.Arrays) -> None:
    arrays["seq_lengths"][1] += arrays["seq_lengths"][0]
    arrays["seq_lengths"][0] = 0


def one_pack_less(arrays: forge.Arrays) -> None:
    for bounds in ("tokens", "examples"):
        arrays[bounds] = np.delete(arrays[bounds], 1)


def other_rows(arrays: forge.Arrays) -> None:
    arrays["source_rows"][:2] = arrays["source_rows"][1::-1].copy()


def another_token_masked(arrays: forge.Arrays) -> None:
    """Supervised counts of the shard stay; those of two examples do not."""
    ends = np.cumsum(arrays["seq_lengths"])
    on = trained(arrays)
    off = next(n for n in range(ends[0], len(arrays["labels"])) if arrays["labels"][n] == -100 and n not in ends)
    arrays["labels"][on], arrays["loss_weights"][on] = -100, 0
    arrays["labels"][off], arrays["loss_weights"][off] = arrays["input_ids"][off], 1


PLACE = r"pack \d+, token \d+ \(source row \d+\): "
WRONG = [
    (another_label, PLACE + r"expected the label \d+ or -100, found \d+"),
    (a_header_trained, r"expected \d+ supervised tokens, as the manifest says, found \d+"),
    (a_first_token_trained, "example 0: expected its first token masked, found it trained"),
    (nothing_trained, "example 0: expected a token to train, found none"),
    (positions_that_go_on, PLACE + "expected positions that restart at 0 with every example, found others"),
    (a_negative_id, PLACE + "expected a token id, found -1"),
    (a_weight_without_a_label, PLACE + r"expected a weight above 0 where a token is trained, found 0\.5"),
    (no_weight, PLACE + r"expected a weight above 0 where a token is trained, found 0\.0"),
    (a_weight_that_is_no_number, PLACE + "expected a weight above 0 where a token is trained, found nan"),
    (a_longer_example, "pack 0: expected seq_lengths that add up to its tokens, found others"),
    (an_empty_example, "example 0: expected at least one token, found a length of 0"),
    (one_pack_less, r"pack 0: expected at most 300 tokens, found more"),
    (other_rows, "expected source_rows as planned, found others"),
    (another_token_masked, r"source row \d+: expected \d+ trained tokens, found another number"),
]


@pytest.mark.parametrize(("change", "detail"), WRONG)
def test_a_shard_that_was_written_wrong(
    change: Callable[[forge.Arrays], None], detail: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = forge.shard(out, change)
    found = lines(out, capsys)
    assert re.fullmatch(f"wrong: train/{path.name}: {detail}", found[0])
    assert found[-1] == (
        f"premask: error: {out}: the dataset is not what its sources give, which no repair mends; "
        "prepare it again with --fresh"
    )


def rewritten(out: Path, change: Callable[[pa.RecordBatch], list[pa.RecordBatch]]) -> None:
    """The first shard with other record batches, in the stream that their schema gives."""
    path = first_shard(out)
    with pa.OSFile(str(path)) as file:
        (batch,) = pa.ipc.open_stream(file)
    batches = change(batch)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, batches[0].schema) as writer:
        for one in batches:
            writer.write_batch(one)
    forge.seal(out)


def with_null(batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    lists = batch.column("source_rows").to_pylist()
    lists[0] = None
    return [batch.set_column(4, batch.schema.field(4), pa.array(lists, batch.schema.field(4).type))]


def shorter_labels(batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    lists = batch.column("labels").to_pylist()
    lists[0] = lists[0][:-1]
    return [batch.set_column(1, batch.schema.field(1), pa.array(lists, batch.schema.field(1).type))]


SCHEMAS = [
    (lambda b: [b.slice(0, 1), b.slice(1)], "expected an Arrow stream of one record batch, found .*"),
    (
        lambda b: [b.drop_columns(["position_ids"])],
        "expected the columns input_ids, labels, position_ids, .*, found .*",
    ),
    (lambda b: [b.replace_schema_metadata(None)], "expected the columns .* with their features, found .*"),
    (with_null, "expected no null in source_rows, found one"),
    (shorter_labels, "expected lists in labels as long as their neighbours, found others"),
]


@pytest.mark.parametrize(("change", "detail"), SCHEMAS)
def test_a_shard_of_another_shape(
    change: Callable[[pa.RecordBatch], list[pa.RecordBatch]], detail: str, out: Path
) -> None:
    rewritten(out, change)
    (damage,) = verify(out, workers=1).damages
    assert (damage.kind, damage.file) == ("wrong", f"train/{first_shard(out).name}")
    assert re.fullmatch(detail, damage.detail)


def test_a_shard_that_is_no_arrow_file(out: Path) -> None:
    first_shard(out).write_bytes(b"no arrow at all")
    forge.seal(out)
    (damage,) = verify(out, workers=1).damages
    assert damage.detail.startswith("expected an Arrow stream of one record batch, found ")


# --- manifest and plan that contradict -------------------------------------------------------------------------------


REASONS = "expected the rejected rows by reason, as rejected.jsonl has them, found other numbers"


def test_totals_that_do_not_add_up(out: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["splits"]["train"]["tokens"] += 1
        content["rows"]["kept"] += 1

    forge.manifest(out, change)
    assert [(d.kind, d.file, d.detail) for d in verify(out, workers=1).damages][:2] == [
        ("wrong", "manifest.json", "train: expected the totals of its shards, found others"),
        ("wrong", "manifest.json", "expected rows in = kept + rejected, found other numbers"),
    ]


def test_a_row_that_is_neither_kept_nor_rejected(out: Path) -> None:
    rejected = (out / "rejected.jsonl").read_bytes().splitlines(keepends=True)
    (out / "rejected.jsonl").write_bytes(b"".join(rejected[1:]))
    forge.seal(out)
    count = read_manifest(out)["rows"]["in"]
    assert [(d.kind, d.file, d.detail) for d in verify(out, workers=1).damages] == [
        ("wrong", "plan.arrow", f"expected each of {count} source rows kept or rejected once, found otherwise"),
        ("wrong", "manifest.json", REASONS),
    ]


def test_a_row_that_is_kept_and_rejected(out: Path) -> None:
    path = out / "rejected.jsonl"
    row = json.loads(path.read_bytes().splitlines()[0])
    with path.open("ab") as file:
        file.write(json.dumps({**row, "row": row["row"] + 1}).encode() + b"\n")
    forge.seal(out)
    assert [damage.detail for damage in verify(out, workers=1).damages] == [
        f"expected each of {read_manifest(out)['rows']['in']} source rows kept or rejected once, found otherwise",
        REASONS,
    ]


def test_a_row_that_is_rejected_twice(out: Path) -> None:
    path = out / "rejected.jsonl"
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0])
    forge.seal(out)
    assert [damage.detail for damage in verify(out, workers=1).damages] == [
        f"expected each of {read_manifest(out)['rows']['in']} source rows kept or rejected once, found otherwise",
        REASONS,
    ]


# --- against the sources ---------------------------------------------------------------------------------------------


def against(inputs: list[str]) -> list[str]:
    return [option for path in inputs for option in ("--against", path)]


def test_all_rows_again(whole: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(whole)
    *_, compared, verdict = lines(whole, capsys, *against(inputs), "--all", code=0)
    examples = manifest["splits"]["train"]["examples"]
    assert compared == f"{manifest['rows']['in']:,} source rows masked again: {examples:,} examples compared"
    assert verdict == "whole"


def test_a_sample(whole: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for sample in (1, 7, 40):
        *_, compared, verdict = lines(whole, capsys, *against(inputs), "--sample", str(sample), code=0)
        assert re.fullmatch(rf"{sample} source rows masked again: \d+ examples compared", compared)
        assert verdict == "whole"


def test_workers_compare_the_same(whole: Path, inputs: list[str]) -> None:
    assert verify(whole, against=inputs, workers=2) == verify(whole, against=inputs, workers=1)


def test_sources_under_other_names_in_another_order(whole: Path, inputs: list[str], tmp_path: Path) -> None:
    moved = [shutil.copy(path, tmp_path / f"{n}{Path(path).suffix}") for n, path in enumerate(inputs)]
    report = verify(whole, against=[str(path) for path in reversed(moved)], sample=20, workers=1)
    assert report.ok
    assert report.compared
    assert report.compared["rows"] == 20


def test_two_sources_of_the_same_bytes(inputs: list[str], tmp_path: Path) -> None:
    twin = shutil.copy(inputs[0], tmp_path / f"twin{Path(inputs[0]).suffix}")
    sources = [inputs[0], str(twin)]
    assert run(small.arguments(sources, tmp_path / "out", "--workers", "1")) == 0
    assert verify(tmp_path / "out", against=sources, workers=1).ok


def another_id(arrays: forge.Arrays) -> None:
    arrays["input_ids"][untrained(arrays)] += 1


def a_shifted_span(arrays: forge.Arrays) -> None:
    """One token trained that should not be, and one not that should: every count stays."""
    on = arrays["labels"] != -100
    first = int(np.flatnonzero(on)[0])
    last = int(first + np.argmin(on[first:]) - 1)
    for name, off in (("labels", -100), ("loss_weights", 0)):
        arrays[name][first - 1] = arrays["input_ids"][first - 1] if name == "labels" else 1
        arrays[name][last] = off


def another_weight(arrays: forge.Arrays) -> None:
    arrays["loss_weights"][trained(arrays)] = 0.25


@pytest.mark.parametrize(
    ("change", "columns"),
    [(another_id, ["input_ids"]), (a_shifted_span, ["labels", "loss_weights"]), (another_weight, ["loss_weights"])],
)
def test_what_only_the_sources_show(
    change: Callable[[forge.Arrays], None],
    columns: list[str],
    out: Path,
    inputs: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = forge.shard(out, change)
    assert verify(out, workers=1).ok
    found = lines(out, capsys, *against(inputs), "--all")
    for name, line in zip(columns, found, strict=False):
        said = rf"source row \d+: expected the {name} that its source gives, found others"
        assert re.fullmatch(f"wrong: train/{path.name}: {said}", line)
    assert found[-2] == ("1 thing is wrong" if len(columns) == 1 else "2 things are wrong")


def test_a_row_rejected_for_another_reason(out: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = out / "rejected.jsonl"
    path.write_text(path.read_text().replace("broken_json", "too_long", 1))
    forge.seal(out)

    def change(content: dict[str, Any]) -> None:
        rejected = content["rows"]["rejected"]
        rejected.update(broken_json=rejected["broken_json"] - 1, too_long=rejected.get("too_long", 0) + 1)

    forge.manifest(out, change)
    found = lines(out, capsys, *against(inputs), "--all")
    assert re.fullmatch(
        r"wrong: rejected.jsonl: source row \d+: expected it rejected as broken_json \(.*\), "
        r"found it rejected as too_long \(.*\)",
        found[0],
    )


def test_a_source_that_has_changed(out: Path, inputs: list[str], tmp_path: Path, capsys: Any) -> None:
    changed = Path(shutil.copy(inputs[-1], tmp_path))
    changed.write_text(changed.read_text().replace("river", "rival", 1))
    missing, *errors = lines(out, capsys, *against([*inputs[:-1], str(changed)]), code=2)
    assert missing.endswith("the dataset cannot be made again from what is here:")
    # The recorded place still has the right bytes, so only the one that was named is at fault.
    assert errors == [f"  {changed}: none of the dataset's sources, or one that has changed"]


def test_nothing_is_left_behind(whole: Path, inputs: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = small.digests(whole)
    assert verify(whole, against=inputs, sample=5, workers=1).ok
    assert list(tmp_path.iterdir()) == []
    assert small.digests(whole) == before


@pytest.mark.parametrize(
    ("options", "wording"),
    [
        (["--sample", "3"], "--sample and --all count the rows of --against SOURCE: name the sources"),
        (["--all"], "--sample and --all count the rows of --against SOURCE: name the sources"),
        (["--against", "x", "--all", "--sample", "3"], "--sample and --all exclude each other: give one of them"),
    ],
)
def test_calls_that_are_wrong(options: list[str], wording: str, whole: Path, capsys: Any) -> None:
    assert wording in str(lines(whole, capsys, *options, code=2))
