"""The optimizer and the learning rate; torch, bitsandbytes and transformers have them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from premask.errors import UsageError
from premask_trainer.config import TrainConfig

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def make_optimizer(config: TrainConfig, parameters: Iterable[nn.Parameter], device: torch.device) -> Any:
    """AdamW over the trained parameters. UsageError where bitsandbytes is asked for and missing."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=True)
    try:
        from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit
    except ImportError:
        raise UsageError(
            f"optimizer={config.optimizer}: needs bitsandbytes; `pip install bitsandbytes`, or take adamw"
        ) from None
    if config.optimizer == "paged_adamw_8bit":
        if device.type == "cpu":
            raise UsageError(
                "optimizer=paged_adamw_8bit: pages between a GPU and the host, found a CPU; take adamw_8bit"
            )
        return PagedAdamW8bit(parameters, rate, weight_decay=decay)  # type: ignore[no-untyped-call]
    return AdamW8bit(parameters, rate, weight_decay=decay)  # type: ignore[no-untyped-call]


def make_schedule(config: TrainConfig, optimizer: Any, steps: int) -> Any:
    """The learning rate over all `steps`: `warmup` of them rising, then as `schedule` says."""
    return get_scheduler(
        SCHEDULES[config.schedule],
        optimizer,
        num_warmup_steps=round(config.warmup * steps),
        num_training_steps=steps,
    )
