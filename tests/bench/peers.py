"""The preparations of others that `end_to_end.py` runs, as their users call them, from a loaded dataset on.

None of them counts loading the JSON; all go by `datasets.map`, which writes its result to disk.
"""

import logging
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
AXOLOTL = ROOT / "build/axolotl"
"""Where `make bench-peers` puts Axolotl, without the packages for GPUs that it asks for and its masks do not need."""


def trl(data: Path, tokenizer: Path, template: str, processes: int, out: Path) -> dict[str, Any]:
    """TRL's SFTTrainer from a loaded dataset to packed ids and masks (loading the JSON is not counted)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    chat, rows = _loaded(data, tokenizer, template, out)
    chat.eos_token = chat.pad_token = "<|im_end|>"  # noqa: S105
    config = LlamaConfig(
        vocab_size=len(chat),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config)
    settings = SFTConfig(
        str(out / "trl"),
        assistant_only_loss=True,
        packing=True,
        max_length=4096,
        dataset_num_proc=processes if processes > 1 else None,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
    )
    began = time.perf_counter()
    trainer = SFTTrainer(model=model, args=settings, train_dataset=rows, processing_class=chat)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "packs": len(trainer.train_dataset)}


def masking_loop(data: Path, tokenizer: Path, template: str, processes: int, out: Path) -> dict[str, Any]:
    """Render, tokenize and mask as Unsloth's notebooks do: `apply_chat_template`, the tokenizer, a loop over tokens."""
    from search import unsloth_loop

    chat, rows = _loaded(data, tokenizer, template, out)
    response, instruction = (
        chat(text, add_special_tokens=False).input_ids for text in ("<|im_start|>assistant\n", "<|im_start|>user\n")
    )

    def render(batch: dict[str, Any]) -> dict[str, Any]:
        return {"text": [chat.apply_chat_template(m, tokenize=False) for m in batch["messages"]]}

    def tokenize(batch: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": chat(batch["text"], add_special_tokens=False).input_ids}

    def mask(batch: dict[str, Any]) -> dict[str, Any]:
        return {"labels": [unsloth_loop(ids, response, instruction) for ids in batch["input_ids"]]}

    began = time.perf_counter()
    for step in (render, tokenize, mask):
        rows = rows.map(step, batched=True, num_proc=processes if processes > 1 else None)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, **_counted(rows)}


def axolotl(data: Path, tokenizer: Path, template: str, processes: int, out: Path) -> dict[str, Any]:
    """Axolotl's `type: chat_template`, training the assistant's turns: rows to ids and labels, no more."""
    sys.path.append(str(AXOLOTL))
    from axolotl.datasets import wrap_dataset_for_tokenized_prompt
    from axolotl.prompt_strategies.chat_template import load
    from axolotl.utils.dict import DictDefault

    logging.disable(logging.WARNING)  # it warns of every row whose last turn is not trained
    chat, rows = _loaded(data, tokenizer, template, out)
    chat.eos_token = chat.pad_token = "<|im_end|>"  # noqa: S105
    config = {"sequence_len": 4096, "train_on_inputs": False, "chat_template": "tokenizer_default"}
    strategy = load(chat, DictDefault(config), {"roles_to_train": ["assistant"], "train_on_eos": "turn"})
    began = time.perf_counter()
    rows = wrap_dataset_for_tokenized_prompt(strategy, rows, process_count=processes if processes > 1 else None)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, **_counted(rows)}


def _loaded(data: Path, tokenizer: Path, template: str, out: Path) -> tuple[Any, Any]:
    """The tokenizer, with the template of that file, and the rows as a dataset."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    chat = AutoTokenizer.from_pretrained(tokenizer)
    chat.chat_template = Path(template).read_text()
    return chat, datasets.load_dataset("json", data_files=str(data), split="train", cache_dir=str(out / "cache"))


def _counted(rows: Any) -> dict[str, int]:
    """How many tokens there are, and how many of them are trained."""
    labels = [ids for row in rows["labels"] for ids in row]
    return {"tokens": len(labels), "supervised": sum(label != -100 for label in labels)}
