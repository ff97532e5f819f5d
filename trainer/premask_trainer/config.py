"""What the user wants of a training run: validated, with defaults, from YAML and the command line."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from premask.errors import UsageError
from premask.recipe.layers import layered
from premask.recipe.wording import explain

Count: TypeAlias = Annotated[int, Field(ge=1)]
Positive: TypeAlias = Annotated[float, Field(gt=0, strict=False)]  # YAML takes 1e-3 for a string
Fraction: TypeAlias = Annotated[float, Field(ge=0, lt=1, strict=False)]
Name: TypeAlias = Annotated[str, Field(min_length=1)]


class TrainConfig(BaseModel):
    """One training run. Lengths are counted in updates of the weights ("steps") unless a name says otherwise."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    data: Name
    """Folder of the prepared dataset."""
    model: Name
    """Folder of the base model, or its name on the Hub."""
    out: Name
    """Folder for checkpoints, metrics and the trained adapter."""
    tokenizer: str | None = None
    """Where the dataset's tokenizer is now, if it has moved."""

    quantize: Literal["nf4", "none"] = "nf4"
    """nf4: the frozen weights in 4 bits (bitsandbytes, doubly quantised); none: in full precision."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """In what the model computes; auto: bf16 on GPUs that have it, else fp16, and fp32 on CPUs."""
    attention: Name = "auto"
    """An attention of transformers; auto: FlashAttention or FlexAttention on GPUs, SDPA or eager on CPUs."""
    gradient_checkpointing: bool = True
    """Compute activations again in the backward pass instead of keeping them."""

    lora_r: Count = 16
    """Rank of the adapters."""
    lora_alpha: Positive = 32.0
    """Adapters are scaled by lora_alpha / lora_r (by its square root with rslora)."""
    lora_dropout: Fraction = 0.0
    """Dropout in front of the adapters."""
    rslora: bool = False
    """Rank-stabilised scaling."""
    dora: bool = False
    """Weight-decomposed adapters."""
    target_modules: Name | Annotated[list[Name], Field(min_length=1)] = "all-linear"
    """What gets adapters: all-linear, or names of modules."""

    batch_size: Count = 16
    """Packs per step, over all ranks."""
    micro_batch_size: Count = 1
    """Packs per forward pass."""
    epochs: Count = 1
    """Times through the dataset."""
    max_steps: Count | None = None
    """Stop after so many steps, whatever the epochs."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the order of the packs, the adapters' first weights and dropout."""

    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """adamw is torch's, fused; the others are those of bitsandbytes."""
    learning_rate: Positive = 2e-4
    """The highest learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: Fraction = 0.03
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""

    evaluate_every: Count | None = None
    """Evaluate on the validation split every so many steps; by default after every epoch."""
    early_stopping: Count | None = None
    """Stop after so many evaluations without a better loss, and give out the best adapter."""
    sample_every: Count | None = None
    """Let the model answer held-out prompts every so many steps."""
    sample_prompts: Count = 2
    """How many prompts."""
    sample_tokens: Count = 64
    """Tokens of an answer, at most."""
    save_every: Count | None = None
    """Save a checkpoint every so many steps; by default after every epoch."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints are kept."""
    divergence: Annotated[float, Field(gt=1)] | None = 2.0
    """Stop when the smoothed loss is so many times its lowest value; null: never."""
    tensorboard: bool = False
    """Write TensorBoard event files too."""
    merge: Literal["none", "16bit"] = "none"
    """16bit: also write the model with the adapter merged into its 16-bit weights."""

    @model_validator(mode="wrap")
    @classmethod
    def _name_every_problem(cls, data: Any, build: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        try:
            return build(data)
        except ValidationError as error:
            known = {"": list(cls.model_fields)}
            raise UsageError(
                explain(error, (info.context or {}).get("origins", {}), known, "the training config")
            ) from None


def config_from(options: Mapping[str, Any], file: Path | None = None, sets: Iterable[str] = ()) -> TrainConfig:
    """The config of one call of the command line: a YAML file < `--set key=value` < options. UsageError where wrong."""
    values, origins = layered(options, file, sets)
    return TrainConfig.model_validate(values, context={"origins": origins})
