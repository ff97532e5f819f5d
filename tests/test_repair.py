"""`premask repair`: every file of a dataset made again to the byte, and what it refuses to do."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from premask.cli import run
from premask.errors import DataError, MachineError, UsageError
from premask.repair import repair
from premask.store.lock import locked
from premask.store.manifest import read_manifest
from premask.store.sealed import write_sealed
from premask.verify import verify

sys.path.insert(0, str(Path(__file__).parent / "torture"))

import forge
import small

module = importlib.import_module("premask.repair")
prepare = importlib.import_module("premask.prepare")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return small.write_sources(tmp_path_factory.mktemp("sources"), rows=40)


@pytest.fixture(scope="module")
def whole(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(prepare, "PARTITION_BYTES", 3000)
        monkeypatch.setattr(prepare, "SHARD_TOKENS", 1500)
        assert run(small.arguments(inputs, out, "--workers", "1")) == 0
    return out


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A dataset that a test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def is_whole(out: Path, whole: Path) -> bool:
    """Whether every file but run.json is as it was, and nothing else is there."""
    return small.differences(small.digests(whole), small.digests(out)) == [] and verify(out, workers=1).ok


def shards(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("data-*.arrow"))


NAMES = (
    "manifest.json",
    "plan.arrow",
    "rejected.jsonl",
    "dataset_dict.json",
    "train/state.json",
    "train/dataset_info.json",
)


@pytest.mark.parametrize("how", ["lost", "spoilt", "emptied"])
@pytest.mark.parametrize("name", [*NAMES, "run.json"])
def test_every_file_is_made_again(
    name: str, how: str, out: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    {"lost": Path.unlink, "spoilt": spoil, "emptied": lambda path: path.write_bytes(b"")}[how](out / name)
    assert run(["repair", str(out), "--workers", "1"]) == 0
    assert capsys.readouterr().out == f"rebuilt: {name}\n"
    assert is_whole(out, whole)
    if name == "run.json":
        assert json.loads((out / name).read_bytes())["repaired"].startswith("the first record was damaged")
    else:
        assert (out / "run.json").read_bytes() == (whole / "run.json").read_bytes()


def test_just_the_partitions_of_a_shard_run_again(out: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask_partitions, ran = prepare.mask_partitions, []

    def noting(run: Any, slices: Any) -> Any:
        ran.extend(slices)
        return mask_partitions(run, slices)

    monkeypatch.setattr(module, "mask_partitions", noting)
    names = shards(out)
    before = {name: (out / name).stat().st_ino for name in names}
    spoil(out / names[1])
    assert repair(out, workers=1).rebuilt == [names[1]]
    assert is_whole(out, whole)
    assert {name for name in names if (out / name).stat().st_ino != before[name]} == {names[1]}
    plan = importlib.import_module("premask.store.plan_file").read_plan(out / "plan.arrow")
    assert ran == sorted(set(plan.shard("train", 1).partition.tolist()))
    assert len(ran) < len(read_manifest(out)["partitions"])


def test_everything_but_one_record_is_lost(out: Path, whole: Path) -> None:
    for path in [path for path in out.rglob("*") if path.is_file() and path.name != "run.json"]:
        path.unlink()
    done = repair(out, workers=1)
    assert set(done.rebuilt) == {*NAMES, *shards(whole)}
    assert is_whole(out, whole)


def test_the_manifest_and_shards(out: Path, whole: Path) -> None:
    spoil(out / "manifest.json")
    (out / shards(out)[0]).unlink()
    spoil(out / shards(out)[-1])
    repair(out, workers=1)
    assert is_whole(out, whole)


def test_manifest_and_record_have_changed_places(out: Path, whole: Path) -> None:
    manifest = (out / "manifest.json").read_bytes()
    (out / "run.json").replace(out / "manifest.json")
    (out / "run.json").write_bytes(manifest)
    repair(out, workers=1)
    assert is_whole(out, whole)


def test_things_in_the_way(out: Path, whole: Path, tmp_path: Path) -> None:
    """Folders, pipes and links where files should be; what links lead to is left alone."""
    first, second, *_ = shards(out)
    (tmp_path / "elsewhere").write_bytes(b"mine")
    for name in (first, second, "plan.arrow", "rejected.jsonl"):
        (out / name).unlink()
    (out / first / "below").mkdir(parents=True)
    (out / second).symlink_to(tmp_path / "elsewhere")
    os.mkfifo(out / "plan.arrow")
    (out / "rejected.jsonl").symlink_to("nowhere")
    repair(out, workers=1)
    assert is_whole(out, whole)
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"


def test_nothing_to_do(out: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_ino for path in out.rglob("*")}
    assert run(["repair", str(out), "--workers", "1"]) == 0
    assert capsys.readouterr().out == f"{out}: nothing is damaged\n"
    assert {path: path.stat().st_ino for path in out.rglob("*")} == before


def test_strays(out: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shards of no dataset and half-written files go; what may be somebody's own stays."""
    ours = ("train/.data-00000-of-00001.arrow.0123456789ab.partial", "train/data-00099-of-00100.arrow")
    for name in (*ours, "notes.txt"):
        (out / name).touch()
    assert run(["repair", str(out), "--workers", "1"]) == 1
    printed = capsys.readouterr()
    left = "left as it is: stray: notes.txt: expected no such file in a dataset; the manifest does not name it"
    assert printed.out.splitlines() == [*(f"removed: {name}" for name in ours), left]
    assert "what is left cannot be repaired: remove it yourself, or prepare the dataset again" in printed.err
    (out / "notes.txt").unlink()
    assert is_whole(out, whole)


def test_as_json(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / shards(out)[0]).unlink()
    (out / "notes.txt").touch()
    assert run(["repair", str(out), "--workers", "1", "--json"]) == 1
    done = json.loads(capsys.readouterr().out)
    assert (done["rebuilt"], done["removed"]) == (["train/" + sorted((out / "train").glob("data-*"))[0].name], [])
    assert [(damage["kind"], damage["file"]) for damage in done["left"]] == [("stray", "notes.txt")]


def test_what_was_written_wrong_is_no_damage(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(arrays: forge.Arrays) -> None:
        arrays["input_ids"][0] = -7

    path = forge.shard(out, change)
    before = small.digests(out)
    assert run(["repair", str(out), "--workers", "1"]) == 1
    assert f"left as it is: wrong: train/{path.name}: pack 0, token 0" in capsys.readouterr().out
    assert small.digests(out) == before


def test_a_manifest_of_another_dataset(out: Path, whole: Path) -> None:
    """Its checksums are not those of what is made again: nothing is touched."""

    def change(content: dict[str, Any]) -> None:
        content["splits"]["train"]["shards"][0]["sha256"] = "0" * 64

    forge.manifest(out, change)
    before = small.digests(out)
    with pytest.raises(DataError, match=r"made again, it has another SHA-256 than the manifest names; nothing was cha"):
        repair(out, workers=1)
    assert {n: d for n, d in small.digests(out).items() if not n.startswith(".premask")} == before


# --- what it is made from --------------------------------------------------------------------------------------------


@pytest.fixture
def moving(inputs: list[str], tmp_path: Path) -> tuple[list[str], Path]:
    """Sources and a dataset made from them, with a shard that is lost."""
    own = [shutil.copy(path, tmp_path) for path in inputs]
    out = tmp_path / "moving"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(prepare, "PARTITION_BYTES", 3000)
        monkeypatch.setattr(prepare, "SHARD_TOKENS", 1500)
        assert run(small.arguments(own, out, "--workers", "1")) == 0
    return own, out


def moved(sources: Sequence[str], folder: Path) -> list[str]:
    folder.mkdir()
    return [str(Path(path).rename(folder / f"{n}-{Path(path).name}")) for n, path in enumerate(sources)]


def test_sources_that_have_moved(
    moving: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources, out = moving
    expected = small.digests(out)
    (out / shards(out)[0]).unlink()
    damaged = small.digests(out)
    places = moved(sources, tmp_path / "there")
    assert run(["repair", str(out), "--workers", "1"]) == 2
    errors = capsys.readouterr().err
    for path in sources:
        assert f"source {path}: expected the file with SHA-256 " in errors
    assert "say where it is now" in errors
    assert small.digests(out) == damaged
    named = [option for path in reversed(places) for option in ("--source", path)]
    assert run(["repair", str(out), "--workers", "1", *named]) == 0
    assert small.digests(out) == expected


def test_a_source_that_has_changed(moving: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    sources, out = moving
    (out / shards(out)[0]).unlink()
    damaged = small.digests(out)
    path = Path(sources[-1])
    path.write_text(path.read_text().replace("river", "rival", 1))
    assert run(["repair", str(out), "--workers", "1"]) == 2
    assert f"source {path}: expected the file with SHA-256 " in capsys.readouterr().err
    assert small.digests(out) == damaged


def test_a_source_that_changes_meanwhile(moving: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sources, out = moving
    (out / shards(out)[0]).unlink()
    slice_sources = prepare.slice_sources

    def changing(*args: Any) -> Any:
        with Path(sources[-1]).open("a") as file:
            file.write("{}\n")
        return slice_sources(*args)

    monkeypatch.setattr(module, "slice_sources", changing)
    with pytest.raises(DataError, match="found that it changed; run again when nothing writes to it"):
        repair(out, workers=1)
    assert not (out / "train/data-00000-of-00001.arrow").exists()


def test_another_version_of_a_library(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other bytes would come out; verification may still compare."""
    origin = importlib.import_module("premask.origin")
    shaping = origin.shaping

    def newer() -> dict[str, Any]:
        now = shaping()
        return {**now, "libraries": {**now["libraries"], "tokenizers": "99.0"}, "mask_rules": 99}

    monkeypatch.setattr(origin, "shaping", newer)
    (out / shards(out)[0]).unlink()
    with pytest.raises(UsageError) as caught:
        repair(out, workers=1)
    version = read_manifest(out)["libraries"]["tokenizers"]
    assert f"tokenizers: the dataset was made with version {version}, found 99.0; install {version}" in str(
        caught.value
    )
    assert "mask rules: the dataset was made with version " in str(caught.value)


def test_nothing_to_go_by(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(out / "manifest.json")
    spoil(out / "run.json")
    assert run(["repair", str(out), "--workers", "1"]) == 1
    assert "expected manifest.json or run.json as it was written, found both damaged" in capsys.readouterr().err
    (out / "manifest.json").unlink()
    (out / "run.json").unlink()
    assert run(["repair", str(out), "--workers", "1"]) == 1
    assert run(["repair", str(out / "none")]) == 2


# --- interruption ----------------------------------------------------------------------------------------------------


def test_a_killed_repair_goes_on(out: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done is not done again, and nothing is moved into place before it is known to be right."""
    spoil(out / "manifest.json")
    first = shards(out)[0]
    (out / first).unlink()
    damaged = small.digests(out)

    def killed(*_: Any, **__: Any) -> None:
        raise MachineError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_manifest", killed)
        with pytest.raises(MachineError, match="killed"):
            repair(out, workers=1)
    assert {n: d for n, d in small.digests(out).items() if not n.startswith(".premask")} == damaged
    masked = []
    perform = importlib.import_module("premask.run.items").WorkItem.perform
    monkeypatch.setattr("premask.run.items.WorkItem.perform", lambda item: masked.append(item.name) or perform(item))
    repair(out, workers=1)
    assert is_whole(out, whole)
    assert [name for name in masked if name.startswith(("partition", "shard"))] == []


def test_a_repair_of_a_locked_folder_is_refused(out: Path) -> None:
    code = "import sys; from premask.cli import run; sys.exit(run(['repair', sys.argv[1]]))"
    with locked(out):
        done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "another premask run" in done.stderr


def test_prepare_refuses_a_damaged_dataset_and_repair_mends_it(
    inputs: list[str], out: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "PARTITION_BYTES", 3000)
    monkeypatch.setattr(prepare, "SHARD_TOKENS", 1500)
    (out / shards(out)[0]).unlink()
    assert run(small.arguments(inputs, out, "--workers", "1")) == 1
    assert "the dataset is damaged; rebuild the shard with `premask repair`" in capsys.readouterr().err
    assert run(["repair", str(out), "--workers", "1"]) == 0
    assert run(small.arguments(inputs, out, "--workers", "1")) == 0
    assert is_whole(out, whole)


def test_a_record_that_is_sealed_but_strange(out: Path) -> None:
    write_sealed(out / "run.json", {"something": "else"})
    (damage,) = verify(out, workers=1).damages
    assert (damage.kind, damage.file) == ("changed", "run.json")
    assert repair(out, workers=1).rebuilt == ["run.json"]
