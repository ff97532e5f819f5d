"""The README is true: its commands print what it says, its code runs, its picture is the one that is drawn."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, LlamaModel

import premask
from premask.recipe import Recipe
from premask.render.named import TEMPLATE_NAMES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def block(word: str) -> str:
    (found,) = [code for code in CODE if word in code]
    return str(found)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> premask.Prepared:
    """A working directory with the folders that the code names: `model`, the tiny one, and `prepared`."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(ROOT / "data/tiny-llama")
    AutoModelForCausalLM.from_config(config).save_pretrained("model")
    for file in (ROOT / "data/tokenizer").iterdir():
        shutil.copy(file, "model")
    source = str(ROOT / "data/samples/support.messages.jsonl")
    premask.prepare(Recipe(sources=[source], tokenizer="model", max_length=256, limit=8), "prepared")
    return premask.open("prepared")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """What the forward passes of the model are given, and what its inner model is given."""
    batches: list[dict[str, torch.Tensor]] = []

    def watch(kind: type[torch.nn.Module], note: Any) -> None:
        call = kind.__call__

        def watched(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            assert not args and kwargs.get("attention_mask") is None
            note(kwargs)
            return call(self, *args, **kwargs)

        monkeypatch.setattr(kind, "__call__", watched)  # TRL brings a `forward` of its own

    def outside(kwargs: dict[str, Any]) -> None:
        batches.append({name: kwargs[name].clone() for name in ("input_ids", "labels", "position_ids")})

    def inside(kwargs: dict[str, Any]) -> None:
        assert torch.equal(kwargs["position_ids"], batches[-1]["position_ids"])
        assert not kwargs.get("use_cache")

    watch(LlamaForCausalLM, outside)
    watch(LlamaModel, inside)
    return batches


def assert_saw_every_pack(batches: list[dict[str, torch.Tensor]], prepared: premask.Prepared, epochs: int = 3) -> None:
    """Every batch is one row of two whole packs or one; every pack came once an epoch."""
    packs = {pack.input_ids.tobytes(): pack for pack in prepared["train"]}
    assert len(packs) == len(prepared["train"]) > 2
    times = dict.fromkeys(packs, 0)
    for batch in batches:
        assert all(tensor.shape[0] == 1 and tensor.dtype == torch.int64 for tensor in batch.values())
        ids, labels, positions = (batch[name][0].numpy() for name in ("input_ids", "labels", "position_ids"))
        start = 0
        while start < len(ids):
            key = next(
                k for k, pack in packs.items() if ids[start : start + len(pack.input_ids)].astype("i4").tobytes() == k
            )
            end = start + len(packs[key].input_ids)
            assert labels[start:end].tolist() == packs[key].labels.tolist()
            assert positions[start:end].tolist() == packs[key].position_ids.tolist()
            times[key], start = times[key] + 1, end
    assert set(times.values()) == {epochs}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")  # TRL 1.16's own default
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
@pytest.mark.parametrize("trainer", ["PackCollator", "SFTTrainer"])
def test_the_code_for_trainers(
    trainer: str, workplace: premask.Prepared, seen: list[dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    names: dict[str, Any] = {}
    exec(compile(block(trainer), f"README: {trainer}", "exec"), names)  # noqa: S102
    assert_saw_every_pack(seen, workplace)
    assert names["trainer"].state.log_history[-1]["train_loss"] > 0


def test_the_code_for_packs(workplace: premask.Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block("packs[0]"), "README", "exec"), {})  # noqa: S102
    pack = workplace["train"][0]
    assert capsys.readouterr().out == f"{pack.input_ids.shape} {(pack.labels != -100).sum()}\n"


def test_the_example(tmp_path: Path) -> None:
    (session,) = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    (tmp_path / "data").symlink_to(ROOT / "data")
    printed = []
    for command in re.findall(r"^\$ premask (.*)$", session, re.MULTILINE):
        words = f'"{sys.executable}" -m premask {command}'
        done = subprocess.run(words, shell=True, cwd=tmp_path, check=True, capture_output=True, text=True)  # noqa: S602
        printed += [f"$ premask {command}", *map(str.rstrip, done.stdout.splitlines())]
    assert without_seconds(printed) == without_seconds(session.splitlines())


def test_the_recipe(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"```yaml\n# recipe.yaml\n(.*?)```", README, re.DOTALL)
    (commands,) = [code for code in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "resolved.yaml" in code]
    (tmp_path / "data").symlink_to(ROOT / "data")
    (tmp_path / "recipe.yaml").write_text(recipe)
    words = commands.replace("premask ", f'"{sys.executable}" -m premask ')
    subprocess.run(words, shell=True, cwd=tmp_path, check=True, capture_output=True)  # noqa: S602
    prepared = premask.open(tmp_path / "build/mixed")
    assert list(prepared) == ["train", "validation"]
    rows = prepared.manifest["rows"]
    assert rows["in"] == rows["kept"] + sum(rows["rejected"].values())
    assert {"not_drawn", "filtered_script", "filtered_expression"} <= set(rows["rejected"])
    assert len(prepared.manifest["packing"]["train"]["stages"]) == 3
    assert prepared.manifest["recipe"] == yaml.safe_load((tmp_path / "resolved.yaml").read_text()) | {
        "sources": prepared.manifest["recipe"]["sources"]  # sorted by their content
    }


def without_seconds(lines: list[str]) -> list[str]:
    return [line.split()[0] if line.startswith("seconds") else line for line in lines]


def test_the_picture() -> None:
    spec = importlib.util.spec_from_file_location("make_picture", ROOT / "data/make_picture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.draw() == (ROOT / "data/mask.svg").read_text(encoding="utf-8"), "run `make picture`"


def test_the_options() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.*?) \|", README[README.index("## Options") : README.index("## Training")], re.MULTILINE
    )
    defaults = Recipe(sources=["s"], tokenizer="t").resolved()
    for name, values in rows:
        words = re.findall(r"`([^`]+)`", values)
        default = defaults[name]
        assert words[:1] == ([str(default).lower()] if default or default == 0 else []), name
        choices = [c for c in getattr(Recipe.model_fields[name].annotation, "__args__", ()) if isinstance(c, str)]
        assert not choices or words == choices, name


def test_what_it_names() -> None:
    templates = re.findall(
        r"`(?:--template )?([\w-]+)`", README[README.index("For tokenizers that bring") :].split("(no")[0]
    )
    assert sorted(templates) == sorted(TEMPLATE_NAMES)
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert "://" in link or (ROOT / link).exists()
