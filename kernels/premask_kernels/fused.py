"""The masked loss at the speed of its matrix products: cuBLAS around the Triton kernel, in one pass over the rows.

For every chunk of rows: gather, logits (GEMM) into one buffer, losses and gradient in place of the logits (kernel),
gradient of the rows (GEMM), gradient of the head where it is trained (GEMM, accumulated in float32). With a frozen
head that is 4 M D V FLOPs for M rows, and the backward pass is one multiplication. Everything the host needs is known
to it from shapes, so it never waits for the device, and a CUDA graph can capture it.
"""

from functools import cache

import torch
from torch import Tensor

from premask_kernels import launch, plan
from premask_kernels.objective import Forward, Objective, Wanted
from premask_kernels.reference import check_values


def forward(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    rows: Tensor | None,
    weights: Tensor | None,
    bias: Tensor | None,
    *,
    objective: Objective,
    wanted: Wanted,
    memory_budget: int = 0,
) -> Forward:
    """As `reference.forward`; the logits are rounded to the dtype of the inputs, which is not float64."""
    check_values(hidden, head_weight, targets, rows, weights)
    (vocabulary, width), count = head_weight.shape, len(targets)
    processors, device = gpu(hidden.device)
    cuts = plan.chunks(
        count,
        width,
        vocabulary,
        itemsize=hidden.dtype.itemsize,
        processors=processors,
        budget=memory_budget or plan.DEFAULT_BUDGET,
        trained=wanted.head,
        device=device,
    )
    largest = cuts[0][1] if cuts else 0
    logits = hidden.new_empty(largest, plan.padded(vocabulary))[:, :vocabulary]
    gathered = hidden.new_empty(0 if rows is None else largest, width)
    token_loss, entropy = (hidden.new_empty(count, dtype=torch.float32) for _ in range(2))
    correct = hidden.new_empty(count, dtype=torch.bool)
    grad_rows = hidden.new_empty((count, width) if wanted.hidden else (0,))
    grad_head = hidden.new_empty((vocabulary, width) if wanted.head else (0,), dtype=torch.float32)
    grad_bias = hidden.new_zeros(vocabulary if wanted.bias else 0, dtype=torch.float32)
    if not cuts:
        grad_head.zero_()
    for start, stop in cuts:
        size = stop - start
        z = logits[:size]
        if rows is None:
            states = hidden[start:stop]
        else:
            states = torch.index_select(hidden, 0, rows[start:stop], out=gathered[:size])
        torch.mm(states, head_weight.T, out=z)
        launch.softmax_gradient_(
            z,
            targets,
            rows,
            weights,
            bias,
            (token_loss, correct, entropy),
            first=start,
            programs=processors,
            objective=objective,
            statistics=wanted.statistics,
            gradient=wanted.gradient,
        )
        if wanted.hidden:
            torch.mm(z, head_weight, out=grad_rows[start:stop])
        if wanted.head:
            accumulate(grad_head, z.T, states, first=start == 0)
        if wanted.bias:
            grad_bias += z.sum(0, dtype=torch.float32)
    total = (token_loss if weights is None else token_loss * weights).sum()
    if not wanted.statistics:
        correct, entropy = correct.new_empty(0), entropy.new_empty(0)
    return Forward(total, token_loss, correct, entropy, grad_rows, grad_head, grad_bias)


def accumulate(sums: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """`sums` (float32) += `left @ right`, which are not rounded in between; `first` overwrites what `sums` held."""
    if left.dtype == sums.dtype or not left.is_cuda:
        left, right = left.to(sums.dtype), right.to(sums.dtype)
        torch.addmm(sums, left, right, beta=0 if first else 1, out=sums)
    elif first:
        torch.mm(left, right, out_dtype=sums.dtype, out=sums)
    else:
        torch.addmm(sums, left, right, out_dtype=sums.dtype, out=sums)


def backward(
    scale: Tensor,
    grad_rows: Tensor,
    grad_head: Tensor,
    grad_bias: Tensor,
    rows: Tensor | None,
    weights: Tensor | None,
    *,
    count: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients times `scale` `[]`, in `dtype`; those of the rows spread over `count` hidden states `[N, D]`."""
    spread = launch.scatter(grad_rows, rows, weights, scale, count) if grad_rows.dim() == 2 else grad_rows.clone()
    head, bias = (torch.mul(g, scale, out=g.new_empty(g.shape, dtype=dtype)) for g in (grad_head, grad_bias))
    return spread, head, bias


@cache
def gpu(device: torch.device) -> tuple[int, str]:
    """Multiprocessors and name of a device; the interpreter of the tests plays a GPU of three multiprocessors."""
    if device.type != "cuda":
        return 3, "interpreter"
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.name
