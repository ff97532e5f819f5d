"""The masked loss in plain torch: for CPUs, and the specification that the fused path is tested against.

With no options, and with everything in memory at once, it is

    F.cross_entropy(F.linear(hidden[rows], head_weight).float(), targets, reduction="none") @ weights / denominator

Here the rows are taken in chunks, so that the logits of one chunk exist at a time, and the gradient of the logits
takes their place: with p = softmax(z), the softmax of the final logits z, and l = logsumexp(z),

    loss     = l - (1 - eps) z[target] - eps mean(z) + zeta l^2
    dloss/dz = p (1 + 2 zeta l) - (1 - eps) onehot(target) - eps / V

Computed in float32 whatever the inputs (float64 for float64 inputs). Gradients in the forward pass are an idea of
https://github.com/mgmalek/efficient_cross_entropy.
"""

import torch
from torch import Tensor

from premask_kernels.objective import Forward, Objective, Wanted

CHUNK_BYTES = 256 << 20
"""Bytes of one chunk's logits unless a budget is given; about three such blocks exist at a time."""


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
    """Losses of the M rows `hidden[rows]` (`[N, D]`, `[M]`) and the gradients of their weighted sum.

    Raises ValueError for targets outside the vocabulary and for rows that are outside `hidden` or not ascending.
    """
    check_values(hidden, head_weight, targets, rows, weights)
    real = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    (vocabulary, width), count = head_weight.shape, len(targets)
    head = head_weight.to(real)
    token_loss, entropy = (hidden.new_zeros(count, dtype=real) for _ in range(2))
    correct = hidden.new_zeros(count, dtype=torch.bool)
    grad_rows = hidden.new_zeros((count, width) if wanted.hidden else (0,))
    grad_head = hidden.new_zeros((vocabulary, width) if wanted.head else (0,), dtype=real)
    grad_bias = hidden.new_zeros(vocabulary if wanted.bias else 0, dtype=real)
    size = max(1, (memory_budget or CHUNK_BYTES) // (vocabulary * real.itemsize))
    for start in range(0, count, size):
        part = slice(start, start + size)
        states = (hidden[part] if rows is None else hidden[rows[part]]).to(real)
        logits = torch.nn.functional.linear(states, head, None if bias is None else bias.to(real))
        weight = logits.new_ones(len(states)) if weights is None else weights[part].to(real)
        token_loss[part], correct[part], entropy[part] = softmax_gradient_(logits, targets[part], weight, objective)
        if wanted.hidden:
            grad_rows[part] = (logits @ head).to(hidden.dtype)
        if wanted.head:
            grad_head.addmm_(logits.T, states)
        if wanted.bias:
            grad_bias += logits.sum(0)
    total = token_loss.sum() if weights is None else token_loss @ weights.to(real)
    if not wanted.statistics:
        correct, entropy = correct[:0].clone(), entropy[:0].clone()
    return Forward(total, token_loss, correct, entropy, grad_rows, grad_head, grad_bias)


def softmax_gradient_(
    logits: Tensor, targets: Tensor, weights: Tensor, objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, hits and entropies `[m]` of raw `logits` `[m, V]`, which become the gradient of the weighted loss.

    A row of weight 0 gives zeros, whatever its logits.
    """
    live = weights != 0
    place = targets[:, None]
    logits.mul_(objective.logit_scale)
    slope = None
    if objective.softcap:
        squashed = logits.div_(objective.softcap).tanh_()
        slope = 1 - squashed.square()
        logits.mul_(objective.softcap)
    lse = logits.logsumexp(1)
    at_target = logits.gather(1, place)[:, 0]
    loss = lse - at_target
    if objective.label_smoothing:
        loss = loss + objective.label_smoothing * (at_target - logits.mean(1))
    if objective.z_loss:
        loss = loss + objective.z_loss * lse.square()
    correct = at_target >= logits.amax(1)
    surprise = lse[:, None] - logits
    probability = torch.exp(-surprise)
    entropy = torch.where(probability > 0, probability * surprise, 0).sum(1)
    torch.mul(probability, (1 + 2 * objective.z_loss * lse)[:, None], out=logits)
    logits.sub_(objective.label_smoothing / logits.shape[1])
    logits.scatter_add_(1, place, logits.new_full(place.shape, objective.label_smoothing - 1))
    if slope is not None:
        logits.mul_(slope)
    logits.mul_((weights * objective.logit_scale)[:, None])
    logits.masked_fill_(~live[:, None], 0)
    return loss.where(live, 0), correct & live, entropy.where(live, 0)


def backward(
    scale: Tensor,
    grad_rows: Tensor,
    grad_head: Tensor,
    grad_bias: Tensor,
    rows: Tensor | None,
    *,
    count: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients times `scale` `[]`, in `dtype`; those of the rows spread over `count` hidden states `[N, D]`."""
    scaled = (grad_rows.to(scale.dtype) * scale).to(grad_rows.dtype)
    if rows is not None and grad_rows.dim() == 2:
        scaled = scaled.new_zeros(count, scaled.shape[1]).index_add_(0, rows, scaled)
    return scaled, (grad_head * scale).to(dtype), (grad_bias * scale).to(dtype)


def check_values(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, rows: Tensor | None, weights: Tensor | None
) -> None:
    """Raise ValueError for indices that name nothing; reads values, which only a CPU gives without waiting."""
    if not len(targets) or targets.device.type != "cpu":
        return
    bad = (targets < 0) | (targets >= len(head_weight))
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"targets[{row}]: expected an id of 0 to {len(head_weight) - 1}, found {int(targets[row])}. "
            "Pass the targets of the supervised rows alone (`supervised_rows` makes them from labels)."
        )
    if weights is not None and not bool((weights >= 0).all()):
        row = int((~(weights >= 0)).nonzero()[0])
        raise ValueError(f"weights[{row}]: expected a number, at least 0, found {float(weights[row])}.")
    if rows is None:
        return
    if int(rows.min()) < 0 or int(rows.max()) >= len(hidden):
        raise ValueError(f"rows: expected 0 to {len(hidden) - 1}, found {int(rows.min())} to {int(rows.max())}.")
    falls = rows[1:] <= rows[:-1]
    if weights is not None:
        falls &= weights[1:] != 0
    if falls.any():
        row = int(falls.nonzero()[0]) + 1
        raise ValueError(
            f"rows[{row}]: expected ascending rows (padding of weight 0 at the end), found {int(rows[row])} after "
            f"{int(rows[row - 1])}. Sort rows, targets and weights together."
        )
