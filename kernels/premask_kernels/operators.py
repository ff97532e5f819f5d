"""The loss as torch operators, so that torch.compile, checkpointing and DDP see one node with known shapes.

`premask::masked_loss` computes the weighted sum of the losses and, in the same pass, the gradients that are wanted;
`premask::masked_loss_backward` multiplies them by what the rest of the graph hands back. Both are opaque to
torch.compile (no graph break). A second derivative is refused: the backward operator has no formula of its own.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from premask_kernels import reference
from premask_kernels.objective import Forward, Objective, Wanted

BACKENDS = ("auto", "triton", "reference")


def fused_is_meant(backend: str, tensor: Tensor) -> bool:
    """Whether the Triton path serves this call; `auto` takes it on CUDA wherever triton is installed."""
    if backend != "auto":
        return backend == "triton"
    return tensor.is_cuda and tensor.dtype != torch.float64 and importlib.util.find_spec("triton") is not None


@torch.library.custom_op("premask::masked_loss", mutates_args=())
def masked_loss(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    rows: Tensor | None,
    weights: Tensor | None,
    bias: Tensor | None,
    logit_scale: float,
    softcap: float,
    label_smoothing: float,
    z_loss: float,
    wants_hidden: bool,
    wants_head: bool,
    wants_bias: bool,
    statistics: bool,
    memory_budget: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`Forward` for `hidden` `[N, D]`, by the backend that the call or its device asks for."""
    objective = Objective(logit_scale=logit_scale, softcap=softcap, label_smoothing=label_smoothing, z_loss=z_loss)
    wanted = Wanted(hidden=wants_hidden, head=wants_head, bias=wants_bias, statistics=statistics)
    forward = reference.forward
    if fused_is_meant(backend, hidden):
        from premask_kernels import fused

        forward = fused.forward
    return forward(
        hidden,
        head_weight,
        targets,
        rows,
        weights,
        bias,
        objective=objective,
        wanted=wanted,
        memory_budget=memory_budget,
    )


@masked_loss.register_fake
def _(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    rows: Tensor | None,
    weights: Tensor | None,
    bias: Tensor | None,
    logit_scale: float,
    softcap: float,
    label_smoothing: float,
    z_loss: float,
    wants_hidden: bool,
    wants_head: bool,
    wants_bias: bool,
    statistics: bool,
    memory_budget: int,
    backend: str,
) -> Forward:
    (vocabulary, width), count = head_weight.shape, targets.shape[0]
    real = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    return Forward(
        hidden.new_empty((), dtype=real),
        hidden.new_empty(count, dtype=real),
        hidden.new_empty(count if statistics else 0, dtype=torch.bool),
        hidden.new_empty(count if statistics else 0, dtype=real),
        hidden.new_empty((count, width) if wants_hidden else (0,)),
        hidden.new_empty((vocabulary, width) if wants_head else (0,), dtype=real),
        hidden.new_empty(vocabulary if wants_bias else 0, dtype=real),
    )


@torch.library.custom_op("premask::masked_loss_backward", mutates_args=())
def masked_loss_backward(
    scale: Tensor,
    grad_rows: Tensor,
    grad_head: Tensor,
    grad_bias: Tensor,
    rows: Tensor | None,
    weights: Tensor | None,
    count: int,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `hidden` `[N, D]`, `head_weight` `[V, D]` and `bias` `[V]`; empty ones stay empty."""
    if fused_is_meant(backend, scale):
        from premask_kernels import fused

        return fused.backward(scale, grad_rows, grad_head, grad_bias, rows, weights, count=count, dtype=dtype)
    return reference.backward(scale, grad_rows, grad_head, grad_bias, rows, count=count, dtype=dtype)


@masked_loss_backward.register_fake
def _(
    scale: Tensor,
    grad_rows: Tensor,
    grad_head: Tensor,
    grad_bias: Tensor,
    rows: Tensor | None,
    weights: Tensor | None,
    count: int,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (count, grad_rows.shape[1]) if grad_rows.dim() == 2 else (0,)
    return (
        grad_rows.new_empty(shape),
        torch.empty_like(grad_head, dtype=dtype),
        torch.empty_like(grad_bias, dtype=dtype),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Forward) -> None:
    hidden, head_weight, _, rows, weights, *_, backend = inputs
    _, token_loss, correct, entropy, grad_rows, grad_head, grad_bias = output
    ctx.mark_non_differentiable(token_loss, correct, entropy, grad_rows, grad_head, grad_bias)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad_rows, grad_head, grad_bias, rows, weights)
    ctx.count, ctx.dtype, ctx.backend = len(hidden), head_weight.dtype, backend


def _gradients(ctx: Any, scale: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    absent: tuple[None, ...] = (None,) * 16
    if scale is None:
        return absent
    wants_hidden, wants_head, _, _, _, wants_bias, *_ = ctx.needs_input_grad
    hidden, head, bias = masked_loss_backward(scale, *ctx.saved_tensors, ctx.count, ctx.dtype, ctx.backend)
    gradients: list[Tensor | None] = list(absent)
    gradients[0] = hidden if wants_hidden else None
    gradients[1] = head if wants_head else None
    gradients[5] = bias if wants_bias else None
    return tuple(gradients)


masked_loss.register_autograd(_gradients, setup_context=_save)
