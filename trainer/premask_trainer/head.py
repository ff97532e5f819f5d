"""The loss of a model: hidden states of the decoder, its own head, and what the architecture does to its logits.

The model's `forward` is never called for training: it would compute the logits of every token. What it does after the
head is read from its config here, and held against its own logits at start-up (selftest.py), so that an architecture
with a rule that is not known here stops the run instead of training on another loss.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from premask.errors import UsageError
from premask.feed.batch import Batch
from premask_kernels import MaskedLoss, masked_linear_cross_entropy


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The output embeddings, and the rule that turns their products into logits."""

    weight: Tensor
    """`[V, D]`"""

    bias: Tensor | None
    logit_scale: float
    softcap: float | None

    def loss(self, hidden: Tensor, batch: Batch, denominator: float) -> MaskedLoss:
        """The loss of a batch's trained tokens, summed and divided; `hidden` `[1, T, D]`."""
        return masked_linear_cross_entropy(
            hidden.to(self.weight.dtype),
            self.weight,
            batch.targets,
            batch.rows,
            weights=batch.weights,
            denominator=denominator,
            bias=self.bias,
            logit_scale=self.logit_scale,
            softcap=self.softcap,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """`[..., V]` float32."""
        logits = nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias).float() * self.logit_scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def head_of(model: Any) -> Head:
    """The head of a Hugging Face causal language model. UsageError where it is none that the fused loss can take."""
    layer = model.get_output_embeddings()
    if type(layer) is not nn.Linear:
        raise UsageError(
            f"target_modules: expected adapters on other modules than the output layer, found {type(layer).__name__} "
            "there; leave it out (all-linear does)"
        )
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(weight=layer.weight, bias=layer.bias, logit_scale=float(scale), softcap=softcap)
