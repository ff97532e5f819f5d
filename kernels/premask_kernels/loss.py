"""The masked loss of a language model's head, as a training loop calls it."""

from typing import NamedTuple

import torch
from torch import Tensor

from premask_kernels.objective import Objective
from premask_kernels.operators import BACKENDS, masked_loss

TINY = torch.finfo(torch.float32).tiny


class MaskedLoss(NamedTuple):
    """The loss of M supervised rows; all but `loss` are detached."""

    loss: Tensor
    """`[]` float32, differentiable: sum of weight times `token_loss`, over the denominator."""

    token_loss: Tensor
    """`[M]` float32: loss of every row before its weight; 0 where the weight is 0."""

    correct: Tensor | None
    """`[M]` bool: no other token is more probable than the target; None unless `statistics`."""

    entropy: Tensor | None
    """`[M]` float32: entropy of the predicted distribution in nats; None unless `statistics`."""


def masked_linear_cross_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    rows: Tensor | None,
    *,
    weights: Tensor | None = None,
    denominator: Tensor | float | None = None,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    statistics: bool = False,
    memory_budget: int | None = None,
    backend: str = "auto",
) -> MaskedLoss:
    """Cross entropy of the supervised rows of `hidden` alone; all the logits never exist at once.

    For row i the final logits are `z = logit_scale * (head_weight @ hidden[rows[i]] + bias)`, bounded by
    `softcap * tanh(z / softcap)`, and its loss, with `l = logsumexp(z)`, is
    `l - (1 - label_smoothing) * z[targets[i]] - label_smoothing * mean(z) + z_loss * l ** 2`.

    Args:
        hidden: `[..., D]` last hidden states, after the final norm; the leading dimensions are flattened to N rows.
        head_weight: `[V, D]`, of the dtype of `hidden`. Where it needs no gradient, the loss costs 4 M D V FLOPs.
        targets: `[M]` int64, the token that row i must predict, in 0..V-1. Nothing is shifted here, and -100 has no
            meaning here: `supervised_rows` makes rows and targets from labels.
        rows: `[M]` int64, strictly ascending indices of rows of `hidden`; None where `hidden` has just the M rows.
        weights: `[M]` float32, at least 0. A row of weight 0 takes no part; at the end it may repeat (padding).
        denominator: what the weighted sum is divided by, above 0: a number or a tensor `[]`. Give the sum over the
            whole optimizer step (over the world size under DDP, which averages), and accumulation and data
            parallelism are exact. None: the sum of the weights of this call.
        bias: `[V]`, of the dtype of `head_weight`.
        logit_scale: factor of the logits (Cohere's `logit_scale`, 1 / Granite's `logits_scaling`).
        softcap: bound of the logits (Gemma's `final_logit_softcapping`).
        label_smoothing: share of the target's probability spread over the vocabulary.
        z_loss: factor of the squared logsumexp (https://arxiv.org/abs/2204.02311, section 5).
        statistics: fill `correct` and `entropy`.
        memory_budget: bytes for the logits (and gathered rows) of one chunk; None: 0.9 GB on a GPU, 256 MB elsewhere.
        backend: `auto` takes the Triton kernel for CUDA tensors where triton is installed, else plain torch;
            `triton` and `reference` insist.

    With M = 0 or no weight at all the loss is 0, with a graph and gradients of 0. Not differentiable by `weights` and
    `denominator`, nor twice. Nothing here makes the host wait for a GPU; hence bad values (a target outside the
    vocabulary, rows that do not ascend, a negative weight) make the loss NaN there, where a CPU raises ValueError.

    Raises:
        TypeError: a dtype that does not fit, or a DTensor.
        ValueError: a shape or an option that does not fit.
    """
    _check(hidden, head_weight, targets, rows, weights, bias, backend)
    objective = Objective(
        logit_scale=logit_scale, softcap=softcap or 0.0, label_smoothing=label_smoothing, z_loss=z_loss
    )
    learns = torch.is_grad_enabled()
    total, token_loss, correct, entropy, *_ = masked_loss(
        hidden.reshape(-1, hidden.shape[-1]),
        head_weight,
        targets,
        rows,
        weights,
        bias,
        objective.logit_scale,
        objective.softcap,
        objective.label_smoothing,
        objective.z_loss,
        learns and hidden.requires_grad,
        learns and head_weight.requires_grad,
        learns and bias is not None and bias.requires_grad,
        statistics,
        memory_budget or 0,
        backend,
    )
    loss = total / _denominator(denominator, weights, targets)
    return MaskedLoss(loss, token_loss, correct if statistics else None, entropy if statistics else None)


def _denominator(given: Tensor | float | None, weights: Tensor | None, targets: Tensor) -> Tensor | float:
    """What to divide by: never 0 unless a tensor says so."""
    if given is None:
        return max(targets.shape[0], 1) if weights is None else weights.sum().clamp_min(TINY)
    if isinstance(given, Tensor):
        if given.dim():
            raise ValueError(f"denominator: expected a number or a tensor [], found shape {list(given.shape)}.")
        return given
    if not 0 < given < float("inf"):
        raise ValueError(f"denominator: expected a finite number above 0, found {given}.")
    return given


def _check(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    rows: Tensor | None,
    weights: Tensor | None,
    bias: Tensor | None,
    backend: str,
) -> None:
    """Raise for shapes and dtypes that do not fit; nothing here looks at values."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, found {backend!r}.")
    for name, tensor in (("hidden", hidden), ("head_weight", head_weight), ("bias", bias)):
        if tensor is not None and hasattr(tensor, "full_tensor"):
            raise TypeError(
                f"{name} is a DTensor (FSDP2 or tensor parallel): expected a plain tensor, since a shard of the head "
                f"would silently give the loss of a part of the vocabulary. Pass `{name}.full_tensor()`."
            )
    if not head_weight.is_floating_point():
        raise TypeError(
            f"head_weight: expected a floating dtype, found {head_weight.dtype} (a quantized head?). "
            "Dequantize it, or leave the head out of the quantization."
        )
    if head_weight.dim() != 2 or hidden.dim() < 1 or hidden.shape[-1] != head_weight.shape[1]:
        raise ValueError(
            f"hidden and head_weight: expected [..., D] and [V, D], found {list(hidden.shape)} and "
            f"{list(head_weight.shape)}. (An empty head is a shard of ZeRO-3 or FSDP: gather it first.)"
        )
    if hidden.dtype != head_weight.dtype:
        raise TypeError(
            f"hidden and head_weight: expected one dtype, found {hidden.dtype} and {head_weight.dtype}. "
            "Cast one: `hidden.to(head_weight.dtype)`, or under autocast `head_weight.to(hidden.dtype)`."
        )
    if backend == "triton" and hidden.dtype == torch.float64:
        raise TypeError("hidden: expected 16-bit or float32 for the Triton backend, found torch.float64.")
    if bias is not None and (bias.shape != head_weight.shape[:1] or bias.dtype != head_weight.dtype):
        raise ValueError(
            f"bias: expected [{head_weight.shape[0]}] of {head_weight.dtype}, found {list(bias.shape)} of {bias.dtype}."
        )
    if targets.dim() != 1 or targets.dtype != torch.int64:
        raise ValueError(f"targets: expected [M] int64, found {list(targets.shape)} {targets.dtype}.")
    if rows is not None and (rows.shape != targets.shape or rows.dtype != torch.int64):
        raise ValueError(
            f"rows: expected {list(targets.shape)} int64 as targets, found {list(rows.shape)} {rows.dtype}."
        )
    if rows is None and hidden.numel() != targets.shape[0] * hidden.shape[-1]:
        raise ValueError(
            f"hidden: without rows, expected one row for each of the {targets.shape[0]} targets, found "
            f"{list(hidden.shape)}. Pass rows, or compacted hidden states."
        )
    if weights is not None and (weights.shape != targets.shape or weights.dtype != torch.float32):
        raise ValueError(
            f"weights: expected {list(targets.shape)} float32 as targets, found {list(weights.shape)} {weights.dtype}."
        )
