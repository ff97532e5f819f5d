"""The GPU benchmark, run whole at tiny shapes on the CPU: every installed contestant computes the same loss."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the benchmark runs our kernel in Triton's interpreter here: pip install triton")

SCRIPT = Path(__file__).with_name("gpu.py")


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )


def test_dry_run(tmp_path: Path) -> None:
    done = run("--dry-run", "--sweep", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu-dry-run.json").read_text())
    losses: dict[bool, list[float]] = {False: [], True: []}
    for row in result["rows"]:
        assert row["ms"] > 0, row  # none failed
        if row["who"] != "matrix products":
            losses[row["trained"]].append(row["loss"])
    contestants = {row["who"] for row in result["rows"]}
    assert {"premask", "dense", "TRL", "torch linear_cross_entropy", "matrix products"} <= contestants
    assert {"Liger", "Cut Cross Entropy", "quack", "torchtune"} <= set(result["absent"]) | contestants
    assert not set(result["absent"]) & contestants
    for values in losses.values():
        assert max(values) - min(values) < 1e-4
    assert set(result["chunks"]["tiny"]) == {"8", "16"}
    assert '("interpreter", 16, 300): ' in done.stdout  # as an entry of plan.MEASURED
    table = (tmp_path / "gpu-dry-run.md").read_text()
    assert all(f"| {name} |" in table for name in ("premask", "dense", "TRL"))
    assert all(f"- absent: {name}" in table for name in result["absent"])
    assert "times the matrix products, bar 1.1" in table
    assert "<svg" in (tmp_path / "gpu-dry-run.svg").read_text()


def test_without_a_gpu_nothing_is_written(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stdout.startswith("No GPU here: nothing is measured and nothing is written.")
    assert not list(tmp_path.iterdir())
