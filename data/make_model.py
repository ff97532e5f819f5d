"""Write a tiny model with random weights and our tokenizer, from data/tiny-llama: python data/make_model.py FOLDER."""

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

DATA = Path(__file__).parent


def make(folder: Path) -> None:
    """Save the model and the tokenizer in `folder`, as `from_pretrained` wants them."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(DATA / "tiny-llama"))
    model.save_pretrained(folder)
    for file in (DATA / "tokenizer").iterdir():
        shutil.copy(file, folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
