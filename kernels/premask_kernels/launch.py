"""Starting the Triton kernels: which of their variants, with how many threads, for which tensors."""

import torch
import triton
from torch import Tensor

from premask_kernels import softmax
from premask_kernels.objective import Objective

VECTOR_BYTES = 16
"""What a thread reads at once."""

VECTORS = 2
"""How many such vectors of a tile a thread owns: two halve the cost of running the loop."""

MAX_THREADS = 1024
"""Threads of a program: a whole SM's worth, so that no more rows are in flight than there are SMs."""

STAGES = 4
"""Depth of the pipeline of a pass: while one tile of 32 KB is worked on, two are on the way (cp.async). That is more
than the about 26 KB that an SM must have requested to draw its share of 4.3 TB/s at a latency of 800 ns. With a bias,
whose tiles need room too, it is one less: an A100 has 163 KB of shared memory."""


def interpreted() -> bool:
    """Whether the kernels of this module run in Triton's interpreter, on CPU tensors."""
    return not isinstance(softmax.rows_kernel, triton.JITFunction)


def constants(
    dtype: torch.dtype,
    vocabulary: int,
    *,
    weights: bool,
    rows: bool,
    bias: bool,
    objective: Objective,
    statistics: bool,
    gradient: bool,
) -> dict[str, bool | int]:
    """The compile-time arguments of `rows_kernel`."""
    vector = VECTOR_BYTES // dtype.itemsize
    threads = min(MAX_THREADS, max(32, triton.next_power_of_2(triton.cdiv(vocabulary, VECTORS * vector))))
    return {
        "HAS_WEIGHTS": weights,
        "HAS_ROWS": rows,
        "HAS_BIAS": bias,
        "HAS_SOFTCAP": objective.softcap > 0,
        "HAS_SMOOTHING": objective.label_smoothing > 0,
        "STATISTICS": statistics,
        "GRADIENT": gradient,
        "APPROXIMATE": dtype == torch.bfloat16 and not interpreted(),
        "VECTORS": VECTORS,
        "THREADS": threads,
        "VECTOR": vector,
        "STAGES": STAGES - bias,
    }


def softmax_gradient_(
    logits: Tensor,
    targets: Tensor,
    rows: Tensor | None,
    weights: Tensor | None,
    bias: Tensor | None,
    outputs: tuple[Tensor, Tensor, Tensor],
    *,
    first: int,
    programs: int,
    objective: Objective,
    statistics: bool,
    gradient: bool,
) -> None:
    """Write the losses of rows `first` to `first + m` to `outputs`, and (`gradient`) their gradient over `logits`.

    `logits` `[m, V]` are raw products, float32 or 16-bit, their rows at any distance. `targets`, `rows`, `weights`
    `[M]` and the outputs (`token_loss` float32, `correct` bool, `entropy` float32) are those of the whole batch.
    """
    token_loss, correct, entropy = outputs
    fixed = constants(
        logits.dtype, logits.shape[1], weights=weights is not None, rows=rows is not None, bias=bias is not None,
        objective=objective, statistics=statistics, gradient=gradient,
    )  # fmt: skip
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        softmax.rows_kernel[(min(programs, len(logits)),)](
            logits, logits.stride(0), targets, weights, rows, bias, token_loss, correct.view(torch.int8), entropy,
            first, len(logits), logits.shape[1],
            objective.logit_scale, objective.softcap, objective.label_smoothing, objective.z_loss,
            **fixed, num_warps=fixed["THREADS"] // 32, enable_fp_fusion=True,
        )  # fmt: skip


def scatter(gradient: Tensor, rows: Tensor | None, weights: Tensor | None, scale: Tensor, count: int) -> Tensor:
    """`[count, D]`: `gradient` `[M, D]` times `scale` `[]` at `rows` `[M]` (None: where it is), else 0.

    The product is formed in float32: torch would round the scale to the gradient's dtype first.
    """
    width = gradient.shape[1]
    out = gradient.new_empty(count, width) if rows is None and weights is None else gradient.new_zeros(count, width)
    if not len(gradient):
        return out
    with torch.cuda.device_of(gradient):  # type: ignore[no-untyped-call]
        softmax.scatter_kernel[(len(gradient),)](
            gradient, rows, weights, scale, out, width,
            HAS_ROWS=rows is not None, HAS_WEIGHTS=weights is not None,
            BLOCK=min(2048, triton.next_power_of_2(width)), num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return out
