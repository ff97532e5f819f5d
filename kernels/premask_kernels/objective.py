"""What is minimised: the options of the loss, and what a forward pass hands on."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Options of the loss of one row; `masked_linear_cross_entropy` says what each one means."""

    logit_scale: float = 1.0
    """Factor of the logits, > 0."""

    softcap: float = 0.0
    """Bound of the logits, `softcap * tanh(logits / softcap)`; 0 for none."""

    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over the vocabulary, in [0, 1)."""

    z_loss: float = 0.0
    """Factor of the squared log-sum-exp."""

    def __post_init__(self) -> None:
        if not 0 < self.logit_scale < float("inf"):
            raise ValueError(f"logit_scale: expected a finite number above 0, found {self.logit_scale}.")
        if not 0 <= self.softcap < float("inf"):
            raise ValueError(f"softcap: expected a finite number above 0, or None, found {self.softcap}.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: expected at least 0 and less than 1, found {self.label_smoothing}.")
        if not 0 <= self.z_loss < float("inf"):
            raise ValueError(f"z_loss: expected a finite number, at least 0, found {self.z_loss}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a forward pass has to compute beside the loss; what is not wanted comes back empty."""

    hidden: bool = False
    """Gradient of the hidden states."""

    head: bool = False
    """Gradient of the head."""

    bias: bool = False
    """Gradient of the bias."""

    statistics: bool = False
    """`correct` and `entropy`."""

    @property
    def gradient(self) -> bool:
        """Whether the gradient of the logits is needed at all."""
        return self.hidden or self.head or self.bias


class Forward(NamedTuple):
    """M rows' losses and the gradients of `total`; an empty tensor stands for what was not wanted."""

    total: Tensor
    """`[]` sum of weight times loss: float64 for float64 inputs, else float32, as all the rest but `grad_rows`."""

    token_loss: Tensor
    """`[M]` loss of every row before its weight; 0 where the weight is 0."""

    correct: Tensor
    """`[M]` bool: no other token is more probable than the target."""

    entropy: Tensor
    """`[M]` entropy of the predicted distribution, in nats."""

    grad_rows: Tensor
    """`[M, D]` gradient of the supervised rows, in the dtype of the hidden states."""

    grad_head: Tensor
    """`[V, D]`."""

    grad_bias: Tensor
    """`[V]`."""
