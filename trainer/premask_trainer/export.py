"""What a run gives out: the adapter in peft's format, and the plain model with the adapter merged in."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from premask_trainer.checkpoint import replace_folder


def merge_adapter(model: str, adapter: Path, out: Path, tokenizer: Any) -> None:
    """Write the base model in 16 bits with `adapter` merged into it, and the tokenizer, to `out`.

    The weights are loaded again, not quantised, on the CPU: merging into 4 bits would round the adapter away. They stay
    fp16 where the model's own are, and are bf16 otherwise.
    """
    own = getattr(AutoConfig.from_pretrained(model), "dtype", None)
    dtype = torch.float16 if own == torch.float16 else torch.bfloat16
    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, device_map={"": "cpu"})
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload(safe_merge=True)
    with replace_folder(out) as partial:
        merged.save_pretrained(str(partial))
        tokenizer.save_pretrained(str(partial))
