"""Tiny random models of four architectures, and prepared datasets of real examples, made by premask itself."""

import json
import os
import shutil
import sys
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
)

import premask
from premask.recipe import Recipe

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "data/tokenizer"
SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
    "eos_token_id": 4090,
    "bos_token_id": None,
    "pad_token_id": 4091,
}
CONFIGS: dict[str, type[PretrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "gemma2": Gemma2Config,
}
EXTRA = {
    "mistral": {"sliding_window": 24},
    "gemma2": {"sliding_window": 24, "query_pre_attn_scalar": 16, "final_logit_softcapping": 5.0},
}


def save_model(kind: str, folder: Path, seed: int = 0) -> Path:
    """A random model of a kind with our tokenizer, in a folder as `from_pretrained` wants it."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](**{**SHAPE, **EXTRA.get(kind, {})}), dtype=torch.float32)
    model.save_pretrained(folder)
    for file in TOKENIZER.iterdir():
        shutil.copy(file, folder)
    return folder


def save_dataset(folder: Path, *, max_length: int = 256, **options: object) -> Path:
    """Our sample conversations, prepared."""
    sources = sorted(str(path) for path in (ROOT / "data/samples").iterdir())
    premask.prepare(Recipe(sources=sources, tokenizer=str(TOKENIZER), max_length=max_length, **options), folder)
    return folder


def metrics(out: Path) -> list[dict[str, object]]:
    """The records of a run."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def forked(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    """Run one command line in a forked process, with its output in a file; ends the process."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from premask.cli import run

    sys.exit(run(arguments))
