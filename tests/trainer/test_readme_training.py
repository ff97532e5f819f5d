"""The README's section on training is true: its commands run, its loop trains."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import ROOT, metrics

from premask_trainer.config import TrainConfig

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README[README.index("## Training with premask") :].split("\n## ")[0]


def test_the_loop_trains(data, llama, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(llama)
    shutil.copytree(data, "prepared")
    losses = []
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: losses.append(loss.item()) or backward(loss))
    names = {}
    exec(compile(code, "README", "exec"), names)  # noqa: S102
    assert len(losses) > 3 and names["loader"].position == len(names["loader"])
    first, last = (sum(losses[part]) for part in (slice(0, 4), slice(-4, None)))  # a step is up to four packs
    assert last < first


def test_the_options_have_these_defaults():
    defaults = {name: field.default for name, field in TrainConfig.model_fields.items()}
    for names, values in re.findall(r"^\| (`[a-z_`, ]+`) \| (.*?) \|", SECTION, re.MULTILINE):
        for name, value in zip(re.findall(r"`(\w+)`", names), values.split(", "), strict=True):
            default = defaults[name]
            expected = {None: ("none", "each epoch")}.get(default, (f"`{default}`",))
            written = value.replace("2e-4", "0.0002").replace("`32`", "`32.0`")
            assert written in expected, name
    for mentioned in re.findall(r"also (`.*?`) \|", SECTION):
        assert set(re.findall(r"`(\w+)`", mentioned)) <= defaults.keys()


@pytest.mark.slow
def test_the_commands_train_a_model(tmp_path):
    (commands,) = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
    (tmp_path / "data").symlink_to(ROOT / "data")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "build/train-run"
    steps = [record for record in metrics(out) if "loss" in record]
    assert steps[-1]["loss"] < steps[0]["loss"] - 2
    assert "█" in done.stdout and "adapter: build/train-run/adapter" in done.stdout
    assert sum(step["wait"] for step in steps[1:]) < 0.01 * sum(step["seconds"] for step in steps[1:])
    for name in re.findall(
        r"`([\w.]+)/?`", "\n".join(re.findall(r"^\| (`.*?) \|", SECTION.split("Any option")[0], re.MULTILINE))
    ):
        assert (out / name).exists(), name
