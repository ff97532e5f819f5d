"""Atomic files: whole or absent, hashed on the way, and a full disk is a MachineError."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from premask.errors import MachineError
from premask.store import atomic
from premask.store.atomic import atomic_write, remove_leftovers, write_json


def test_the_file_appears_whole_and_is_hashed(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_write(path) as file:
        file.write(b"one")
        file.write(np.arange(3, dtype=np.int32))
        assert file.tell() == 15
        assert not path.exists()
    content = b"one" + np.arange(3, dtype=np.int32).tobytes()
    written = file.written(path)
    assert path.read_bytes() == content
    assert (written.path, written.size, written.sha256) == (path, 15, hashlib.sha256(content).hexdigest())
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("durable", [True, False])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, durable):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="stop"), atomic_write(path, durable=durable) as file:
        file.write(b"new")
        raise ValueError("stop")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_get_the_usual_permissions(tmp_path):
    old = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(old)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("place", [(atomic, "_write_all"), (os, "fsync"), (Path, "replace"), (Path, "open")])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
def test_a_failing_disk_is_the_machines_fault(tmp_path, monkeypatch, code, place):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(*place, fail)
    batch = pa.record_batch({"a": pa.array([1], pa.int8())})
    with (
        pytest.raises(MachineError, match=r"shard: could not be written: .*; .*choose another --out"),
        atomic_write(tmp_path / "shard") as file,
        pa.ipc.new_stream(file, batch.schema) as writer,
    ):
        writer.write_batch(batch)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_of_whoever_makes_the_content_is_not_the_disks(tmp_path, code):
    with pytest.raises(OSError, match="source") as caught, atomic_write(tmp_path / "file") as file:
        file.write(b"half")
        raise OSError(code, os.strerror(code), "source.jsonl")
    assert caught.value.errno == code
    assert list(tmp_path.iterdir()) == []


def test_another_os_error_stays_what_it_is(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"), atomic_write(tmp_path / "file" / "below"):
        pass


def test_what_a_killed_writer_leaves_is_swept(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from premask.store.atomic import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "train" / "data.arrow"
    run = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert not path.exists()
    assert len(list(path.parent.iterdir())) == 1
    remove_leftovers(tmp_path)
    assert list(path.parent.iterdir()) == []


def test_json_is_deterministic(tmp_path):
    written = write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": {"ü": None}})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": {\n    "ü": null\n  },\n  "b": [\n    1,\n    2.5\n  ]\n}\n'
    assert write_json(tmp_path / "c.json", {"a": {"ü": None}, "b": [1, 2.5]}).sha256 == written.sha256
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", float("nan"))
