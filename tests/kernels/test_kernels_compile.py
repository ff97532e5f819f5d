"""The kernels compile for sm_80, sm_90 and sm_100 with no GPU at hand: no float64, hardly a spill."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="the kernels are compiled by triton: pip install triton")

STACK = 512
"""Bytes a thread may spill where the vocabulary is off the grid of 16, so that its last tile is cut within a vector;
elsewhere none."""

SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes of shared memory that one program can have."""


def compile_kernels(*words: str) -> list[dict[str, Any]]:
    """The lines of `compile_kernels.py`."""
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    run = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def check(found: list[dict[str, Any]], architecture: int) -> None:
    assert found
    for one in found:
        assert not one["double"], one
        assert one["stack"] <= STACK, one
        assert one["shared"] <= SHARED[architecture], one
        if one["kernel"] == "rows":
            assert one["asynchronous"], one
            assert one["tanh"] == (one["softcap"] and one["dtype"] == "bf16"), one
            if not one["vocabulary"] % 16:
                assert one["stack"] == 0, one


def test_for_an_h200() -> None:
    check(compile_kernels("90"), 90)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_every_variant(architecture: int) -> None:
    check(compile_kernels(str(architecture), "--all"), architecture)
