"""The oldest `datasets` that pyproject.toml claims reads what we write, in an environment of its own."""

import json
import re
import subprocess
import tomllib
import venv
from pathlib import Path

import pytest

import premask
from premask.cli import run

ROOT = Path(__file__).parents[2]
COMPANIONS = ["pyarrow==16.0.0", "numpy<2", "pandas<3"]
"""The oldest pyarrow that premask takes; numpy 2 and pandas 3 came after that `datasets`."""

READER = """
import json, sys, datasets
split = datasets.load_from_disk(sys.argv[1])["train"]
arrays = split.with_format("numpy")[0]
assert {name: values.tolist() for name, values in arrays.items()} == split[0]
print(json.dumps({"version": datasets.__version__, "rows": list(split)}))
"""


@pytest.mark.slow
def test_the_oldest_datasets_reads_a_prepared_folder(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (oldest,) = [
        found.group(1)
        for requirement in project["optional-dependencies"]["train"]
        if (found := re.fullmatch(r"datasets>=([\d.]+)", requirement))
    ]
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv/bin/python")
    install = [python, "-m", "pip", "install", "--quiet", f"datasets=={oldest}", *COMPANIONS]
    if subprocess.run(install, stderr=subprocess.DEVNULL).returncode:
        pytest.skip(f"datasets {oldest} cannot be installed here")
    out = tmp_path / "out"
    samples = map(str, sorted((ROOT / "data/samples").iterdir()))
    assert run(["prepare", *samples, "--tokenizer", str(ROOT / "data/tokenizer"), "--out", str(out), "--quiet"]) == 0
    found = subprocess.run([python, "-W", "ignore", "-c", READER, str(out)], check=True, capture_output=True, text=True)
    read = json.loads(found.stdout)
    assert read["version"] == oldest
    for row, pack in zip(read["rows"], premask.open(out)["train"], strict=True):
        assert "loss_weights" in row
        assert all(values == getattr(pack, name).tolist() for name, values in row.items())
