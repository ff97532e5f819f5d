"""The model: transformers loads it, bitsandbytes quantises it, peft puts adapters on it; here they are put together."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from premask.errors import UsageError
from premask.feed.batch import Batch
from premask_trainer.config import TrainConfig
from premask_trainer.head import Head, head_of

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Model:
    """A causal language model with adapters, of which only these are trained."""

    peft: Any
    """peft's model around the one of transformers."""

    head: Head
    dtype: torch.dtype
    """In what it computes."""

    varlen: bool
    """Whether its attention takes cumulative lengths, and needs no mask."""

    @property
    def causal(self) -> Any:
        """The model of transformers, whose layers hold the adapters."""
        return self.peft.get_base_model()

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.head.weight.device

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters by name, in a fixed order."""
        return ((name, tensor) for name, tensor in self.peft.named_parameters() if tensor.requires_grad)

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states `[1, T, D]` of a batch, whose examples do not see each other.

        Never an attention mask and never a cache: with either one, SDPA and eager attention ignore the positions.
        """
        known: dict[str, Any] = {}
        if self.varlen:
            known = {"cu_seq_lens_q": batch.cu_seqlens, "cu_seq_lens_k": batch.cu_seqlens}
            known |= {"max_length_q": batch.max_seqlen, "max_length_k": batch.max_seqlen}
        with self.autocast():
            decoder = self.causal.base_model
            output = decoder(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **known)
        hidden: Tensor = output.last_hidden_state
        return hidden

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The context of evaluation: no dropout, no gradients."""
        self.peft.eval()
        try:
            with torch.no_grad(), self.autocast():
                yield
        finally:
            self.peft.train()

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the model computes: adapters are float32, the rest is `dtype`."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)


def load_model(config: TrainConfig, device: torch.device) -> Model:
    """Load, quantise, freeze, add adapters. UsageError where this machine or this model cannot do what is asked for."""
    dtype = _dtype(config, device)
    attention = _attention(config, device)
    torch.manual_seed(config.seed)
    try:
        base = AutoModelForCausalLM.from_pretrained(
            config.model,
            dtype=dtype,
            device_map={"": device},
            attn_implementation=attention,
            quantization_config=_quantization(config, dtype),
        )
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"model {config.model}: cannot be loaded: {error}") from error
    base.requires_grad_(False)
    base.config.use_cache = False
    modules: Iterable[Any] = base.modules()
    for module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Otherwise bitsandbytes repacks them at the first evaluation, with coarser scales, for good.
            module.support_avx512bf16_for_cpu = False
    try:
        peft = get_peft_model(base, _adapters(config))
    except ValueError as error:
        raise UsageError(f"target_modules: {error}") from error
    if config.gradient_checkpointing:
        # The first name is that of transformers 5.2x and later, where the second one is deprecated.
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    varlen = "flash" in base.config._attn_implementation
    return Model(peft, head_of(peft.get_base_model()), dtype, varlen)


def _adapters(config: TrainConfig) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # peft only divides it
        lora_dropout=config.lora_dropout,
        use_rslora=config.rslora,
        use_dora=config.dora,
        target_modules=config.target_modules,
    )


def _dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    if config.precision != "auto":
        if config.precision == "fp16" and device.type == "cpu":
            raise UsageError("precision: expected bf16 or fp32 on a CPU, found fp16; leave it out")
        return DTYPES[config.precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _quantization(config: TrainConfig, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if config.quantize == "none":
        return None
    if find_spec("bitsandbytes") is None:
        raise UsageError("quantize=nf4: needs bitsandbytes; `pip install bitsandbytes`, or --set quantize=none")
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _attention(config: TrainConfig, device: torch.device) -> str | None:
    """What transformers is asked for; None is its own choice, SDPA where a model has it and eager elsewhere."""
    if config.attention != "auto":
        return config.attention
    if device.type != "cuda":
        return None
    if find_spec("flash_attn") is not None:
        return "flash_attention_2"
    kind = AutoModelForCausalLM._model_mapping[type(AutoConfig.from_pretrained(config.model))]
    return "flex_attention" if getattr(kind, "_supports_flex_attn", False) else None
