"""Whole runs, as people start them: killed, ended, resumed, on two ranks, stopped early, merged, loaded again."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny import forked, metrics, save_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import premask
from premask.cli import run
from premask_trainer.config import TrainConfig
from premask_trainer.train import train

TIMES = {"seconds", "wait", "tokens_per_second", "trained_per_second", "memory"}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["premask_trainer.train"])


def options(data, model, out, **more):
    """A short run in full precision, as options of the command line."""
    sets = {"quantize": "none", "save_every": 3, "keep_checkpoints": 2, "warmup": 0.1, **more}
    given = ["--data", str(data), "--model", str(model), "--out", str(out), "--learning-rate", "1e-2"]
    return given + [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]


class Command:
    """`premask ...` in a process of its own, as a shell starts it; under torchrun with several ranks."""

    def __init__(self, arguments, log, ranks=1):
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        command = [sys.executable, *several, "-m", "premask", *arguments]
        with log.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=ENVIRONMENT)

    def send(self, number):
        self.process.send_signal(number)

    def wait(self):
        return self.process.wait()

    def running(self):
        return self.process.poll() is None


class Forked:
    """The same, from a server that has imported everything already: no need to wait for torch each time."""

    def __init__(self, arguments, log, ranks=1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = []
        for rank in range(ranks):
            names = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": ranks,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            environment = {name: str(value) for name, value in names.items()} if ranks > 1 else {}
            process = FORKS.Process(target=forked, args=(arguments, str(log), {**ENVIRONMENT, **environment}))
            process.start()
            self.processes.append(process)

    def send(self, number):
        for process in self.processes:
            os.kill(process.pid, number)

    def wait(self):
        for process in self.processes:
            process.join()
        return max((process.exitcode for process in self.processes), key=abs)

    def running(self):
        return any(process.is_alive() for process in self.processes)


@pytest.fixture(params=[Forked, pytest.param(Command, marks=pytest.mark.slow)])
def start(request, tmp_path):
    """Starts `premask` with arguments; its output goes to `log` beside the test's files."""
    return lambda arguments, ranks=1: request.param(arguments, tmp_path / "log", ranks)


def finished(start, arguments, tmp_path, ranks=1):
    """What a command prints; it must end well."""
    code = start(arguments, ranks).wait()
    said = (tmp_path / "log").read_text()
    assert code == 0, said
    return said


def interrupted(start, arguments, out, number, steps):
    """Send a signal to a run once it has trained so many steps; its exit code."""
    process = start(arguments)
    while process.running() and not ((out / "metrics.jsonl").exists() and len(metrics(out)) >= steps):
        time.sleep(0.01)
    process.send(number)
    return process.wait()


def untimed(out):
    """The records of a run without what differs from run to run, and how many bytes the adapter has of which value."""
    return [{name: value for name, value in record.items() if name not in TIMES} for record in metrics(out)]


def test_killed_and_resumed_is_bitwise_the_same_run_and_its_merged_model_loads(data, llama, tmp_path, start):
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    more = {"batch_size": 3, "epochs": 3, "lora_dropout": 0.1, "sample_every": 7, "sample_tokens": 4}
    finished(start, ["train", *options(data, llama, calm, merge="16bit", **more)], tmp_path)
    steps = [record for record in metrics(calm) if "loss" in record]
    assert len(steps) >= 15 and steps[-1]["loss"] < steps[0]["loss"]

    command = ["train", *options(data, llama, stormy, **more), "--resume"]
    assert interrupted(start, command, stormy, signal.SIGKILL, random.randint(1, 8)) == -signal.SIGKILL
    assert interrupted(start, command, stormy, signal.SIGTERM, 10) == 0
    assert not (stormy / "adapter").exists()
    finished(start, command, tmp_path)
    assert untimed(stormy) == untimed(calm)
    for name in ("adapter/adapter_model.safetensors", "samples.jsonl", "best/adapter_model.safetensors"):
        assert (stormy / name).read_bytes() == (calm / name).read_bytes()
    assert len(list((calm / "checkpoints").iterdir())) == 2  # no leftovers, and the older ones are gone

    assert_is_the_trained_model(calm, llama)


def assert_is_the_trained_model(out, base):
    """The merged folder loads by itself and says what base and adapter say, in 16 bits."""
    merged = AutoModelForCausalLM.from_pretrained(out / "merged")
    assert merged.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(out / "merged")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(base).chat_template
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], return_tensors="pt", return_dict=False)
    plain = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        before = plain(ids).logits
        wanted = PeftModel.from_pretrained(plain, str(out / "adapter"))(ids).logits
        found = merged.float()(ids).logits
    assert (found - wanted).norm() < 0.02 * wanted.norm() < 0.3 * (before - wanted).norm()


def test_two_ranks_are_one_process(data, llama, tmp_path, start):
    more = {"batch_size": 3, "max_steps": 5, "evaluate_every": 5}
    finished(start, ["train", *options(data, llama, tmp_path / "two", **more)], tmp_path, ranks=2)
    config = TrainConfig(
        data=str(data),
        model=str(llama),
        out=str(tmp_path / "one"),
        learning_rate=1e-2,
        **{"quantize": "none", "save_every": 3, "warmup": 0.1, **more},
    )
    train(config, quiet=True)
    one, two = untimed(tmp_path / "one"), untimed(tmp_path / "two")
    assert len(one) == len(two) == 6  # five steps, one evaluation
    for alone, shared in zip(one[:5], two[:5], strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
        assert (shared["tokens"], shared["trained"]) == (alone["tokens"], alone["trained"])
    assert two[5]["validation"]["loss"] == pytest.approx(one[5]["validation"]["loss"], rel=1e-4)
    assert sorted(path.name for path in (tmp_path / "two/checkpoints").iterdir()) == ["step-00000003", "step-00000005"]


def test_a_run_that_gets_worse_stops_early_with_the_best_adapter(data, llama, tmp_path, start):
    out = tmp_path / "out"
    more = {"evaluate_every": 1, "early_stopping": 2, "epochs": 9, "divergence": "null", "schedule": "constant"}
    options_ = [*options(data, llama, out, **more, warmup=0.0, batch_size=4), "--learning-rate", "0.2"]
    said = finished(start, ["train", *options_], tmp_path)
    losses = [record["validation"]["loss"] for record in metrics(out) if "validation" in record]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 40  # two worse ones, and no more
    assert f"stopped after step {len(losses)}: 2 evaluations without a better loss" in said
    assert (out / "adapter/adapter_model.safetensors").read_bytes() == (
        out / "best/adapter_model.safetensors"
    ).read_bytes()


def test_what_belongs_to_another_run_is_refused(data, llama, tmp_path, capsys):
    out = tmp_path / "out"
    call = ["train", *options(data, llama, out, batch_size=8, max_steps=1), "--quiet"]
    assert run(call) == 0
    assert run(call) == 2
    assert "found checkpoints of an earlier run, the last step-00000001; go on from there with --resume" in " ".join(
        capsys.readouterr().err.split()
    )
    other = save_dataset(tmp_path / "other", validation=0.2, template="llama-3", limit=20)
    changed = ["train", *options(other, llama, out, batch_size=8, max_steps=2), "--resume", "--quiet"]
    assert run(changed) == 2
    assert "(other: recipe, template, train split, validation split)" in capsys.readouterr().err
    assert run([*changed, "--other-data"]) == 0
    assert [record["step"] for record in metrics(out) if "loss" in record] == [1, 2]
    assert run([*changed, "--other-data", "--set", "lora_r=4"]) == 1
    assert "expected a checkpoint of this model and config" in capsys.readouterr().err


def test_what_is_missing_is_said_before_the_model_is_loaded(data, llama, tmp_path, capsys):
    unheld = save_dataset(tmp_path / "unheld", limit=5)
    assert run(["train", *options(unheld, llama, tmp_path / "out", early_stopping=1)]) == 2
    assert "early_stopping: needs a validation split" in capsys.readouterr().err
    assert run(["train", *options(tmp_path, llama, tmp_path / "out")]) == 1
    assert "expected a manifest, found none" in capsys.readouterr().err
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    assert run(["train", *options(moved, llama, tmp_path / "out", tokenizer=llama, max_steps=1), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 1


def test_without_its_packages_the_command_says_what_to_install():
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from premask.cli import run\n"
        "sys.exit(run(['train', '--data', 'd', '--model', 'm', '--out', 'o']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2 and "`pip install premask[train]` installs them" in done.stderr


def test_a_checkpoint_is_whole_or_not_there(data, llama, tmp_path, monkeypatch):
    from premask_trainer import checkpoint

    out = tmp_path / "out"
    config = TrainConfig(data=str(data), model=str(llama), out=str(out), quantize="none", save_every=1, max_steps=2)
    saved = []

    def full(*args, **kwargs):
        saved.append(1)
        if len(saved) == 2:
            raise OSError("No space left on device")
        return original(*args, **kwargs)

    original = checkpoint.torch.save
    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train(config, quiet=True)
    assert [path.name for path in checkpoint.checkpoints(out / "checkpoints")] == ["step-00000001"]
    assert train(config, resume=True, quiet=True)["steps"] == 2
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
    assert premask.open(data)["train"]  # the dataset is only read


def test_opening_the_command_line_does_not_import_the_trainer():
    code = "import sys, premask.cli; print('premask_trainer' in sys.modules, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"
    assert Path(sys.modules["premask_trainer.train"].__file__).parent.name == "premask_trainer"
