"""Checkpoints: a folder each, complete or not there at all, the oldest removed.

    checkpoints/step-00000120/
      adapter_model.safetensors, adapter_config.json    peft's own format
      training.pt                                       optimizer, learning rate, loss scale
      state.json                                        the step, the data's position and identity, the guards, ...

No generator's state is saved: every step seeds torch anew from the run's seed, its own number and the rank.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from premask.errors import DataError
from premask_trainer.model import Model

STATE, TRAINING, ADAPTER = "state.json", "training.pt", "adapter_model.safetensors"


def save_checkpoint(
    folder: Path, model: Model, training: Mapping[str, Any], state: Mapping[str, Any], keep: int
) -> Path:
    """Write the checkpoint of step `state["step"]` into `folder`, then remove all but the newest `keep`.

    `training` maps names to objects with a `state_dict`; `state` is JSON.
    """
    target = folder / f"step-{state['step']:08d}"
    with replace_folder(target) as partial:
        save_adapter(model, partial)
        torch.save({name: part.state_dict() for name, part in training.items()}, partial / TRAINING)
        (partial / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    for old in checkpoints(folder)[:-keep]:
        _remove(old)
    return target


def load_checkpoint(folder: Path, model: Model, training: Mapping[str, Any]) -> None:
    """Put the weights and the states of a checkpoint into `model` and the objects of `training`."""
    try:
        found: Any = set_peft_model_state_dict(model.peft, load_file(folder / ADAPTER))
        states = torch.load(folder / TRAINING, map_location=model.device, weights_only=True)
        if found.unexpected_keys:
            raise KeyError(found.unexpected_keys[0])
        for name, part in training.items():
            part.load_state_dict(states[name])
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise DataError(
            f"{folder}: expected a checkpoint of this model and config, found: {error}; go on with the options the run "
            "began with, or remove this folder to go on from an earlier one"
        ) from error


def read_state(folder: Path) -> dict[str, Any]:
    """The state.json of a checkpoint."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / STATE}: expected JSON, found: {error}; remove the folder") from error
    return state


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("step-*"))


def save_adapter(model: Model, folder: Path) -> None:
    """Write the adapter in peft's format."""
    model.peft.save_pretrained(str(folder), save_embedding_layers=False)


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `target` at the end, its files flushed; nothing where it fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process left there
    partial.mkdir()
    yield partial
    for file in (*partial.iterdir(), partial):
        _flush(file)
    if target.exists():
        _remove(target)
    partial.rename(target)
    _flush(target.parent)


def _remove(folder: Path) -> None:
    """Remove a folder; it is hidden first, so that nobody takes what is left of it for a checkpoint."""
    hidden = folder.parent / f".{folder.name}.removed"
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
