"""One run at a time in an output folder; a killed one leaves no lock behind."""

import os
import signal
import subprocess
import sys

import pytest

from premask.errors import UsageError
from premask.store.lock import LOCK, locked

HOLD = (
    "import sys, time; from pathlib import Path; from premask.store.lock import locked\n"
    "with locked(Path(sys.argv[1])):\n"
    "    print('held', flush=True); time.sleep(60)\n"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path, holder):
    refused = rf"another premask run \(process {holder.pid}\) .*choose another --out"
    with pytest.raises(UsageError, match=refused), locked(tmp_path):
        pass


def test_a_killed_run_holds_nothing(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text() == str(os.getpid())
    assert not (tmp_path / LOCK).exists()


def test_the_folder_is_made_and_left_clean(tmp_path):
    folder = tmp_path / "new" / "out"
    with locked(folder):
        assert (folder / LOCK).exists()
    assert not folder.exists(), "it was made for nothing"
    with locked(folder):
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]
    (folder / "kept").unlink()
    with locked(folder):
        pass
    assert list(folder.iterdir()) == [], "it was there before"


def test_an_error_frees_the_lock(tmp_path):
    with pytest.raises(ValueError, match="stop"), locked(tmp_path):
        raise ValueError("stop")
    with locked(tmp_path):
        pass


def test_within_one_process_too(tmp_path):
    with locked(tmp_path), pytest.raises(UsageError, match="another premask run"), locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
