"""Whatever the machine does while a run goes on: a clear error, a run that can be finished, never a wrong dataset."""

import contextlib
import errno
import gc
import importlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from premask.cli import run
from premask.errors import MachineError, UsageError
from premask.run import local, processes
from premask.run.items import WorkItem
from premask.store import atomic
from premask.store.lock import locked

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS / "torture"))

import damage  # noqa: E402
import kills  # noqa: E402
import small  # noqa: E402

prepare = importlib.import_module("premask.prepare")
steps = importlib.import_module("premask.steps")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return small.write_sources(tmp_path_factory.mktemp("sources"), rows=40)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "PARTITION_BYTES", 3000)
    monkeypatch.setattr(prepare, "SHARD_TOKENS", 1500)


@pytest.fixture(scope="module")
def expected(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of an undisturbed run."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(prepare, "PARTITION_BYTES", 3000)
        monkeypatch.setattr(prepare, "SHARD_TOKENS", 1500)
        assert run(small.arguments(inputs, out, "--workers", "1")) == 0
    return small.digests(out)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def finish(inputs: list[str], out: Path, expected: dict[str, str]) -> None:
    """The run goes on where it stopped, and ends as if nothing had happened."""
    assert run(small.arguments(inputs, out, "--workers", "1")) == 0
    assert small.differences(expected, small.digests(out)) == []


# --- kills and damage, in short (`make torture` is the long version) -------------------------------------------------


def test_killed_runs_are_finished_with_the_same_bytes(tmp_path: Path) -> None:
    tally = kills.run(tmp_path, kills=3, seed=1, rows=6)
    assert tally.failures == []
    assert tally.kills.total() >= 3
    assert tally.finished >= 1


def test_damage_is_found_and_mended(tmp_path: Path) -> None:
    tally = damage.run(tmp_path, damages=30, seed=3, rows=6)
    assert tally.failures == []
    assert tally.damages.total() >= 30


# --- the disk --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tiny_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of so many bytes; skips where one cannot be mounted."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        gc.collect()  # the frames of an error, and files they map, go when cycles are looked for
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("size", "workers"), [("16k", "1"), ("80k", "1"), ("160k", "1"), ("280k", "1"), ("400k", "1"), ("280k", "2")]
)
def test_a_full_disk(
    size: str,
    workers: str,
    tmp_path: Path,
    inputs: list[str],
    expected: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = tmp_path / "disk"
    with tiny_disk(disk, size):
        out = disk / "out"
        assert run(small.arguments(inputs, out, "--workers", workers)) == 3
        message = capsys.readouterr().err
        assert "No space left on device" in message
        assert "free some space" in message
        assert not (out / "manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        finish(inputs, out, expected)


@pytest.mark.parametrize("limit", [0, 500, 8_000, 20_000])
def test_a_limit_on_file_sizes(
    limit: int, inputs: list[str], out: Path, expected: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What `ulimit -f` sets, and what a file system with a largest file does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        code = run(small.arguments(inputs, out, "--workers", "1"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 3
    assert "File too large" in capsys.readouterr().err
    finish(inputs, out, expected)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_that_fails_at_any_point(
    code: int, inputs: list[str], out: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = atomic._write_all
    calls, fatal = 0, 0

    def failing(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fatal:
            raise OSError(code, os.strerror(code))
        write(*args)

    monkeypatch.setattr(atomic, "_write_all", failing)
    finish(inputs, out.with_name("counted"), expected)
    total = calls
    for fatal in [1, *range(total // 4, total, total // 4), total]:  # noqa: B007 - `failing` reads it
        shutil.rmtree(out, ignore_errors=True)
        calls = 0
        assert run(small.arguments(inputs, out, "--workers", "1")) == 3
        assert not list(out.rglob("*.partial"))
        assert not (out / "manifest.json").exists()
    finish(inputs, out, expected)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [2**28, 2**29])
def test_workers_without_memory(
    limit: int, inputs: list[str], out: Path, expected: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Some get a MemoryError, some abort, some cannot even start: the run says so."""
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        bound = lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # noqa: E731
        return popen(command, preexec_fn=bound, **options)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(processes.subprocess, "Popen", start)
        code = run(small.arguments(inputs, out, "--workers", "2"))
    message = capfd.readouterr().err
    assert code == 3 or (code == 0 and limit > 2**28), message
    assert code == 0 or "memory" in message
    finish(inputs, out, expected)


@pytest.mark.parametrize("place", ["mask", "render"])
def test_no_memory_is_no_fault_of_a_row(
    place: str, inputs: list[str], out: Path, expected: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    from premask.mask.masker import Masker
    from premask.render.program import Program

    with pytest.MonkeyPatch.context() as monkeypatch:
        owner, name = {"mask": (Masker, "mask"), "render": (Program, "render")}[place]
        monkeypatch.setattr(owner, name, no_memory)
        assert run(small.arguments(inputs, out, "--workers", "1")) == 3
    assert "out of memory" in capfd.readouterr().err
    finish(inputs, out, expected)


# --- sources and tokenizers that fail or change ----------------------------------------------------------------------


def masking(before_batch: Callable[[int], None]) -> Callable[..., Any]:
    """`_masked`, with something that happens before every batch."""
    original, count = steps._Masking.examples, 0

    def masked(*args: Any) -> Any:
        nonlocal count
        count += 1
        before_batch(count)
        return original(*args)

    return masked


@pytest.fixture
def own(inputs: list[str], tmp_path: Path) -> list[str]:
    """Sources that a test may change."""
    return [shutil.copy(path, tmp_path) for path in inputs]


def test_an_error_while_a_partition_is_masked(
    inputs: list[str], out: Path, expected: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(number: int) -> None:
        if number == 5:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(steps._Masking, "examples", masking(fail))
        assert run(small.arguments(inputs, out, "--workers", "1")) == 3
    assert "partition" in (message := capsys.readouterr().err)
    assert "the machine failed" in message
    finish(inputs, out, expected)


class FailingDisk(io.FileIO):
    """A file that cannot be read beyond its middle."""

    def readinto(self, buffer: Any) -> int | None:
        if self.tell() + len(memoryview(buffer).cast("B")) > os.fstat(self.fileno()).st_size // 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().readinto(buffer)


def test_a_disk_that_fails_in_the_middle_of_a_source(
    inputs: list[str], out: Path, expected: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Once it is known by its checksum; whoever reads a part of it fails, and no row is lost for it."""
    open_path = Path.open

    def failing(self: Path, mode: str = "r", buffering: int = -1, **more: Any) -> Any:
        if self.name == "generated.jsonl" and buffering == 0:
            return FailingDisk(self)
        return open_path(self, mode, buffering, **more)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("premask.read.lines.BUFFER", 512)
        monkeypatch.setattr("premask.read.places.BUFFER", 512)

        def slice_sources(*args: Any) -> Any:
            monkeypatch.setattr(Path, "open", failing)
            return original(*args)

        original = prepare.slice_sources
        monkeypatch.setattr(prepare, "slice_sources", slice_sources)
        assert run(small.arguments(inputs, out, "--workers", "1")) == 3
    assert re.search(r"partition \d+.*: the machine failed: .*Input/output error", capsys.readouterr().err)
    assert list((out / ".premask/stage").iterdir())
    finish(inputs, out, expected)


def grow(path: Path) -> None:
    with path.open("a") as file:
        file.write("{}\n")


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change_in_place(path: Path) -> None:
    """The same size and the same time of change: only the kernel's own stamp tells."""
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"river", b"rival"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path: Path) -> None:
    path.with_name("new").write_bytes(path.read_bytes())
    path.with_name("new").replace(path)


@pytest.mark.parametrize("change", [grow, shrink, change_in_place, replace, Path.unlink])
@pytest.mark.parametrize("at", [1, 9])
def test_a_source_that_changes_while_it_is_read(
    change: Callable[[Path], None],
    at: int,
    own: list[str],
    out: Path,
    expected: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And is put back afterwards: nothing that was made of what it held in between may be used."""
    generated = Path(own[-1])
    before = generated.read_bytes()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            steps._Masking, "examples", masking(lambda number: change(generated) if number == at else None)
        )
        assert run(small.arguments(own, out, "--workers", "1")) == 1
    message = capsys.readouterr().err
    assert "found that it changed; run again" in message or "a file went away" in message
    assert not (out / "manifest.json").exists()
    generated.write_bytes(before)
    assert run(small.arguments(own, out, "--workers", "1")) == 0
    shards = [name for name in expected if name.startswith("train/")]
    assert shards
    assert {name: small.digests(out).get(name) for name in shards} == {name: expected[name] for name in shards}


@pytest.mark.parametrize("change", [grow, shrink, change_in_place])
def test_a_source_that_changes_before_it_is_read(change: Callable[[Path], None], own: list[str], out: Path) -> None:
    """Between the first look at it and its checksum."""
    load = prepare.load_tokenizer_files

    def slow(name: str) -> Any:
        change(Path(own[-1]))
        return load(name)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(prepare, "load_tokenizer_files", slow)
        assert run(small.arguments(own, out, "--workers", "1")) == 1
    assert not (out / "manifest.json").exists()


@pytest.fixture
def own_tokenizer(tmp_path: Path) -> Path:
    return Path(shutil.copytree(small.TOKENIZER, tmp_path / "tokenizer"))


def with_tokenizer(inputs: list[str], out: Path, tokenizer: Path, *more: str) -> list[str]:
    return [*small.arguments(inputs, out, "--workers", "1"), "--tokenizer", str(tokenizer), *more]


def change_template(tokenizer: Path) -> None:
    path = tokenizer / "tokenizer_config.json"
    config = json.loads(path.read_bytes())
    config["chat_template"] = config["chat_template"] + "{# changed #}\n"
    path.write_text(json.dumps(config))


def test_a_tokenizer_that_changes_before_workers_load_it(
    inputs: list[str], out: Path, own_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slice_sources = prepare.slice_sources

    def changing(*args: Any) -> Any:
        change_template(own_tokenizer)
        return slice_sources(*args)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(prepare, "slice_sources", changing)
        monkeypatch.setattr(local.Crew, "start", lambda *_: None)  # workers load for themselves, and later
        assert run(with_tokenizer(inputs, out, own_tokenizer, "--workers", "2")) == 1  # the driver has it in memory
    assert "a tokenizer and a chat template that stay as they are" in capsys.readouterr().err


def test_a_process_forgets_a_tokenizer_that_has_changed(inputs: list[str], out: Path, own_tokenizer: Path) -> None:
    assert run(with_tokenizer(inputs, out, own_tokenizer, "--limit", "3")) == 0
    before = json.loads((out / "manifest.json").read_bytes())
    path = own_tokenizer / "tokenizer_config.json"
    config = json.loads(path.read_bytes())
    path.write_text(json.dumps({**config, "chat_template": "{{ 'Hello!' }}" + config["chat_template"]}))
    assert run(with_tokenizer(inputs, out, own_tokenizer, "--limit", "3", "--fresh")) == 0
    after = json.loads((out / "manifest.json").read_bytes())
    assert after["splits"]["train"]["tokens"] > before["splits"]["train"]["tokens"]


# --- the clock -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-(10**8), 10**8])
def test_the_clock_jumps(
    seconds: int, inputs: list[str], out: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, calls = time.time(), 0

    def jumping() -> float:
        nonlocal calls
        calls += 1
        return now + calls * seconds

    monkeypatch.setattr(time, "time", jumping)
    finish(inputs, out, expected)
    assert 0 <= json.loads((out / "run.json").read_bytes())["seconds"] < 1000


# --- what an earlier run left ----------------------------------------------------------------------------------------


def stop_before(phase: str, inputs: list[str], out: Path) -> None:
    """A run that ends, as if killed, when `phase` begins."""

    def stop(*_: Any, **__: Any) -> None:
        raise MachineError("stopped")

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(prepare, phase, stop)
        assert run(small.arguments(inputs, out, "--workers", "1")) == 3


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("phase", ["plan_packs", "write_sealed"])
def test_nothing_is_trusted_because_it_is_there(
    phase: str, seed: int, inputs: list[str], out: Path, expected: dict[str, str]
) -> None:
    """Receipts, stage files, rejects, pieces and shards of an unfinished run, damaged at random."""
    rng = np.random.default_rng(seed)
    stop_before(phase, inputs, out)
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name not in ("description.json", "clearing"))
    for path in rng.choice(np.array(files), 25, replace=False):
        content = bytearray(path.read_bytes())
        match rng.integers(4):
            case 0:
                path.unlink()
            case 1:
                path.write_bytes(content[: len(content) // 2])
            case _ if content:
                content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
                path.write_bytes(content)
    finish(inputs, out, expected)


def another_seed(inputs: list[str]) -> list[str]:
    return ["--set", "seed=3"]


def another_length(inputs: list[str]) -> list[str]:
    return ["--max-length", "299"]


def another_source(inputs: list[str]) -> list[str]:
    return [small.arguments(inputs, Path())[1]]


def another_row(inputs: list[str]) -> list[str]:
    path = Path(inputs[-1])
    path.write_text(path.read_text().replace("river", "rival", 1))
    return []


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "wording"),
    [
        (another_seed, r"recipe\.seed was 0, is 3"),
        (another_length, r"recipe\.max_length was 300, is 299"),
        (another_source, r"recipe\.sources was .*, is "),
        (another_row, r'sources\..*/generated\.jsonl was "[0-9a-f]{56}\.\.\., is "[0-9a-f]{56}\.\.\.'),
    ],
)
def test_another_run_is_refused_and_says_what_changed(
    change: Callable[[list[str]], list[str]],
    wording: str,
    finished: bool,
    own: list[str],
    out: Path,
    expected: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if finished:
        assert run(small.arguments(own, out, "--workers", "1")) == 0
    else:
        stop_before("plan_packs", own, out)
    before = small.digests(out)
    assert run(small.arguments(own, out, *change(own), "--workers", "1")) == 2
    message = capsys.readouterr().err
    what = "holds a dataset that was prepared differently" if finished else "holds an unfinished run that differs"
    assert re.search(rf"{what}: .*{wording}", message)
    assert "Choose another --out, or replace it with --fresh" in message
    assert small.digests(out) == before


@pytest.mark.parametrize(
    ("key", "value", "wording"),
    [
        ("mask_rules", 99, r"mask_rules was \d+, is 99"),
        ("libraries", {"jinja2": "99.0"}, r'libraries\.jinja2 was "[0-9.]+", is "99\.0"'),
    ],
)
def test_other_code_is_refused(
    key: str, value: Any, wording: str, inputs: list[str], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = importlib.import_module("premask.record")
    stop_before("plan_packs", inputs, out)
    shaping = record.shaping
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(record, "shaping", lambda: {**shaping(), key: value})
        assert run(small.arguments(inputs, out, "--workers", "1")) == 2
    assert re.search(f"holds an unfinished run that differs: .*{wording}", capsys.readouterr().err)


def test_edited_code_is_refused(inputs: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A version number does not change with every edit; a finished dataset does not ask who made it."""
    stop_before("plan_packs", inputs, out)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(prepare, "code_digest", lambda: "another")
        assert run(small.arguments(inputs, out, "--workers", "1")) == 2
        assert re.search(
            r'unfinished run that differs: code was "[0-9a-f]+\.\.\., is "another"', capsys.readouterr().err
        )
    assert run(small.arguments(inputs, out, "--workers", "1")) == 0
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(prepare, "code_digest", lambda: "another")
        assert run(small.arguments(inputs, out, "--workers", "1")) == 0


def test_another_template_or_tokenizer_is_refused(
    inputs: list[str], out: Path, own_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(prepare, "write_shards", lambda *_: (_ for _ in ()).throw(MachineError("stopped")))
        assert run(with_tokenizer(inputs, out, own_tokenizer)) == 3
    change_template(own_tokenizer)
    assert run(with_tokenizer(inputs, out, own_tokenizer)) == 2
    message = capsys.readouterr().err
    assert re.search(r'template was "[0-9a-f]{56}\.\.\., is "[0-9a-f]{56}\.\.\.', message)
    assert re.search(r'tokenizer\.tokenizer_config\.json was "[0-9a-f]{56}\.\.\., is "[0-9a-f]{56}\.\.\.', message)


def test_two_runs_on_one_folder(inputs: list[str], out: Path, expected: dict[str, str]) -> None:
    """The second is refused while the first goes on, and disturbs nothing."""
    second: list[subprocess.CompletedProcess[str]] = []
    call = [sys.executable, "-m", "premask", *small.arguments(inputs, out, "--workers", "1")]

    def begin(number: int) -> None:
        if number == 3:
            more: list[list[str]] = [[], ["--fresh"]]
            second.extend(subprocess.run([*call, *words], capture_output=True, text=True) for words in more)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(steps._Masking, "examples", masking(begin))
        finish(inputs, out, expected)
    assert [done.returncode for done in second] == [2, 2]
    assert all(f"another premask run (process {os.getpid()}) is writing here" in done.stderr for done in second)


def test_a_damaged_description_is_refused(
    inputs: list[str], out: Path, expected: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    stop_before("plan_packs", inputs, out)
    path = out / ".premask/description.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert run(small.arguments(inputs, out)) == 2
    assert "is damaged" in (message := capsys.readouterr().err)
    assert "--fresh" in message
    assert run(small.arguments(inputs, out, "--workers", "1", "--fresh")) == 0
    assert small.differences(expected, small.digests(out)) == []


def test_half_written_files_are_nobodys(inputs: list[str], out: Path, expected: dict[str, str]) -> None:
    """Where a killed writer has left them: in the folder itself, beside the shards, in the work folder."""
    stop_before("write_sealed", inputs, out)
    for place in (out, out / "train", out / ".premask", out / ".premask/stage"):
        (place / ".data-00000-of-00001.arrow.0123456789ab.partial").write_bytes(b"half")
    finish(inputs, out, expected)


def test_a_worker_that_died_leaves_nothing_in_the_dataset(
    inputs: list[str], out: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards = prepare.write_shards

    def leaving(*args: Any) -> Any:
        result = write_shards(*args)
        (out / "train/.data-00000-of-00001.arrow.0123456789ab.partial").write_bytes(b"half")
        return result

    monkeypatch.setattr(prepare, "write_shards", leaving)
    finish(inputs, out, expected)


def test_fresh_goes_on_clearing(inputs: list[str], out: Path, expected: dict[str, str]) -> None:
    """A run with --fresh that was killed while it removed another dataset leaves no shard of that behind."""
    assert run(small.arguments(inputs, out, "--workers", "1", "--set", "seed=5", "--max-length", "200")) == 0

    def killed(*_: Any, **__: Any) -> None:
        raise MachineError("killed")

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(shutil, "rmtree", killed)
        assert run(small.arguments(inputs, out, "--workers", "1", "--fresh")) == 3
    assert not (out / "manifest.json").exists()
    assert list((out / "train").iterdir())
    finish(inputs, out, expected)


# --- workers ---------------------------------------------------------------------------------------------------------

ORPHAN = """
import subprocess, sys, time
from pathlib import Path
from premask.store.lock import locked
with locked(Path(sys.argv[1])) as lock:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1.5)"], pass_fds=[lock])
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_next_run_waits_for_the_workers_of_a_killed_one(tmp_path: Path) -> None:
    """A worker that outlives its driver could still rename an old file over a new one."""
    holder = subprocess.Popen([sys.executable, "-c", ORPHAN, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another premask run"), locked(tmp_path):
            pass
        holder.kill()
        holder.wait()
        began = time.monotonic()
        with locked(tmp_path):
            assert 0.5 < time.monotonic() - began < 9


def test_an_item_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(TESTS / "run")
    monkeypatch.setattr(local, "ITEM_SECONDS", 2.0)
    items = [
        WorkItem(name="quick", function="item_functions:square", arguments={"number": 2}),
        WorkItem(name="endless", function="item_functions:stubborn", arguments={"folder": str(tmp_path), "name": "x"}),
    ]
    with pytest.raises(MachineError, match=r"^endless: expected it to take seconds, found it unfinished after 2"):
        local.run_items(items, workers=2)


def test_an_item_that_reads_a_whole_source_may_take_as_long_as_it_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(TESTS / "run")
    monkeypatch.setattr(local, "ITEM_SECONDS", 0.2)
    items = [
        WorkItem(
            name=name,
            function="item_functions:slow",
            arguments={"folder": str(tmp_path), "name": name, "seconds": 0.6},
            bounded=False,
        )
        for name in ("one", "two")
    ]
    assert local.run_items(items, workers=2) == {"one": "one", "two": "two"}


# --- hostile templates and tokenizers --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_endless_template_ends_the_run(
    workers: str, inputs: list[str], out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "endless.jinja"
    loops = "{% for i in range(100000) %}{{ 'x' * 1000000 }}{% endfor %}"
    template.write_text("{% if messages|length != 2 or messages[0].content|length > 9 %}" + loops + "{% endif %}")
    began = time.monotonic()
    code = run(small.arguments(inputs[-1:], out, "--workers", workers, "--template", str(template)))
    assert code in (1, 2)
    assert time.monotonic() - began < 60
    assert "template" in capfd.readouterr().err


def test_a_template_cannot_read_files_or_run_code(inputs: list[str], out: Path, tmp_path: Path) -> None:
    template, trace = tmp_path / "curious.jinja", tmp_path / "trace"
    template.write_text(
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{% include '/etc/passwd' %}"
        "{{ namespace.__init__.__globals__.__builtins__.open('" + str(trace) + "', 'w') }}"
    )
    assert run(small.arguments(inputs[-1:], out, "--workers", "1", "--template", str(template))) in (1, 2)
    assert not trace.exists()


def test_code_in_a_tokenizer_folder_is_never_run(inputs: list[str], out: Path, own_tokenizer: Path) -> None:
    trace = own_tokenizer / "trace"
    code = f"open({str(trace)!r}, 'w').write('run')\nraise SystemExit('run')\n"
    for name in ("tokenization_evil.py", "__init__.py", "sitecustomize.py", "conftest.py", "tokenizer.py"):
        (own_tokenizer / name).write_text(code)
    for name in ("tokenizer.pkl", "pytorch_model.bin", "added_tokens.bin"):
        (own_tokenizer / name).write_bytes(b"cbuiltins\nexec\n(S'" + code.replace("\n", "\\n").encode() + b"'\ntR.")
    path = own_tokenizer / "tokenizer_config.json"
    config = json.loads(path.read_bytes())
    hostile = {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}, "tokenizer_class": "Evil"}
    path.write_text(json.dumps({**config, **hostile, "trust_remote_code": True}))
    assert run(with_tokenizer(inputs, out, own_tokenizer, "--limit", "5", "--workers", "2")) == 0
    assert not trace.exists()


def test_nothing_is_unpickled_nor_trusted() -> None:
    """Pickles go between our own processes alone (through `multiprocessing`'s connections); no code is fetched."""
    root = Path(prepare.__file__).parent
    sources = {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*.py")}
    unpickling = re.compile(r"\bpickle\.loads?\b|Unpickler|allow_pickle|marshal|shelve|joblib|torch\.load|\.recv\(")
    found = {name for name, text in sources.items() if unpickling.search(text)}
    assert found == {"run/processes.py", "run/server.py", "run/worker.py"}
    trusting = {line.strip() for text in sources.values() for line in text.splitlines() if "trust_remote_code" in line}
    assert all("trust_remote_code=False" in line for line in trusting), trusting


def a_pipe(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


def a_device(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").symlink_to("/dev/zero")


def a_template_without_end(folder: Path) -> None:
    (folder / "chat_template.jinja").symlink_to("/dev/zero")


def a_huge_file(folder: Path) -> None:
    with (folder / "generation_config.json").open("wb") as file:
        file.truncate(2**40)


def a_huge_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("x" * 2**21)


def many_templates(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    for number in range(3):
        with (folder / f"additional_chat_templates/{number}.jinja").open("wb") as file:
            file.truncate(300 * 2**20)


def a_loop_of_links(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").symlink_to("tokenizer_config.json")


def a_huge_id(folder: Path) -> None:
    spec = json.loads((folder / "tokenizer.json").read_bytes())
    spec["model"]["vocab"]["zzz"] = 2**32 - 1
    (folder / "tokenizer.json").write_text(json.dumps(spec))


def deep_json(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("[" * 10**6)


def no_model(folder: Path) -> None:
    spec = json.loads((folder / "tokenizer.json").read_bytes())
    (folder / "tokenizer.json").write_text(json.dumps({**spec, "model": {"type": "BPE", "vocab": 3}}))


TRICKS = [
    a_pipe,
    a_device,
    a_template_without_end,
    a_huge_file,
    a_huge_template,
    many_templates,
    a_loop_of_links,
    a_huge_id,
    deep_json,
    no_model,
]


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_of_a_tokenizer_folder(
    trick: Callable[[Path], None],
    inputs: list[str],
    out: Path,
    own_tokenizer: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    trick(own_tokenizer)
    began = time.monotonic()
    assert run(with_tokenizer(inputs, out, own_tokenizer)) == 2
    assert time.monotonic() - began < 30
    assert "bug" not in capfd.readouterr().err


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_tokenizer_whose_pattern_explodes_does_not_hang(
    workers: str, out: Path, own_tokenizer: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The regular expressions of `tokenizers` give up by themselves; in Rust that is a panic."""
    spec = json.loads((own_tokenizer / "tokenizer.json").read_bytes())
    split = {"type": "Split", "pattern": {"Regex": "(?:a+)+b"}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, bytes_]}
    (own_tokenizer / "tokenizer.json").write_text(json.dumps(spec))
    source = tmp_path / "a.jsonl"
    row = {"messages": [{"role": "user", "content": "a" * 40 + "c"}, {"role": "assistant", "content": "x"}]}
    source.write_text((json.dumps(row) + "\n") * 30)
    call = [sys.executable, "-m", "premask", *with_tokenizer([str(source)], out, own_tokenizer, "--workers", workers)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1, 2, 3, 70), done.stderr
    assert "Traceback" not in done.stderr


def test_a_hostile_template_in_a_thread(inputs: list[str], out: Path, tmp_path: Path) -> None:
    """Premask may be called off the main thread, where no signal can interrupt."""
    template = tmp_path / "endless.jinja"
    template.write_text("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}")
    codes: list[int] = []
    call = small.arguments(inputs[-1:], out, "--workers", "1", "--template", str(template))
    thread = threading.Thread(target=lambda: codes.append(run(call)))
    thread.start()
    thread.join(120)
    assert codes
    assert codes[0] in (1, 2)


def test_the_same_for_a_killed_driver(inputs: list[str], out: Path, expected: dict[str, str]) -> None:
    """SIGKILL right after the start, again and again, by the clock alone."""
    command = [sys.executable, str(TESTS / "torture/mortal.py")]
    spec = out.with_name("spec")
    spec.mkdir()
    (spec / "count").write_text("0")
    (spec / "spec.json").write_text(json.dumps({"events": {}}))
    for delay in (0.2, 0.6, 1.0):
        call = [*command, str(spec / "spec.json"), "driver", *small.arguments(inputs, out, "--workers", "2")]
        process = subprocess.Popen(call, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(inputs, out, expected)
