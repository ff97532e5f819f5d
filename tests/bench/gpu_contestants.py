"""The losses that the GPU benchmark compares, each as its users call it, and the bare matrix products below them all.

A contestant takes a `Batch` and returns the loss; what is not installed is left out, with the reason.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from premask_kernels import masked_linear_cross_entropy, plan
from premask_kernels.fused import gpu


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's input to the loss."""

    hidden: Tensor
    """`[N, D]` (masked: all rows; compacted: the supervised ones), a leaf that needs a gradient."""

    head: Tensor
    """`[V, D]`, which needs a gradient where the head is trained."""

    labels: Tensor
    """`[N]` int64, shifted; -100 where not supervised."""

    rows: Tensor | None
    """`[M]` int64 supervised rows, or None where `hidden` is compacted."""

    targets: Tensor
    """`[M]` int64."""


Loss = Callable[[Batch], Tensor]


def dense(batch: Batch) -> Tensor:
    """All logits in the dtype of the model, cross entropy in float32: what transformers does."""
    return F.cross_entropy(F.linear(batch.hidden, batch.head).float(), batch.labels)


def premask(batch: Batch, backend: str = "auto") -> Tensor:
    """Ours."""
    return masked_linear_cross_entropy(batch.hidden, batch.head, batch.targets, batch.rows, backend=backend).loss


def compiled() -> Loss:
    """`dense` under torch.compile."""
    torch._dynamo.config.cache_size_limit = 256
    fast = torch.compile(lambda hidden, head, labels: F.cross_entropy(F.linear(hidden, head).float(), labels))
    return lambda batch: fast(batch.hidden, batch.head, batch.labels)


def torch_chunked() -> Loss:
    """`torch.nn.functional.linear_cross_entropy` with its chunked path (torch 2.13 and newer)."""
    from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

    options = LinearCrossEntropyOptions()
    return lambda batch: F.linear_cross_entropy(batch.hidden, batch.head, batch.labels, options=options)


def liger() -> Loss:
    """Liger's fused linear cross entropy; before 0.8.3 its chunks were 16 times smaller, and no baseline."""
    if tuple(int(part) for part in version("liger-kernel").split(".")[:3]) < (0, 8, 3):
        raise ImportError(f"liger-kernel {version('liger-kernel')} is older than 0.8.3")
    loss = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
    return lambda batch: loss(batch.head, batch.hidden, batch.labels)


def cut_cross_entropy() -> Loss:
    """Apple's Cut Cross Entropy, as its README recommends it for fine-tuning."""
    function = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return lambda batch: function(batch.hidden, batch.head, batch.labels)


def quack() -> Loss:
    """Quack's chunked linear cross entropy."""
    function = importlib.import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy
    return lambda batch: function(batch.hidden, batch.head, batch.labels)


def trl() -> Loss:
    """TRL's fused head, as `SFTTrainer` has it: the supervised rows by a boolean mask, then chunks."""
    kernels, utils = importlib.import_module("trl.kernels"), importlib.import_module("trl.trainer.utils")

    def loss(batch: Batch) -> Tensor:
        mask = batch.labels != -100
        log_probs, *_ = kernels.ChunkedLogProbFunction.apply(
            batch.hidden[mask],
            batch.head,
            None,
            batch.labels[mask],
            1.0,
            utils._CHUNKED_LOGPROB_CHUNK_SIZE,
            None,
            1.0,
            ("log_probs",),
        )
        return -log_probs.sum() / mask.sum().clamp(min=1)

    return loss


def torchtune() -> Loss:
    """torchtune's chunked loss, which compacts the rows."""
    loss = importlib.import_module("torchtune.modules.loss").LinearCrossEntropyLoss()

    def call(batch: Batch) -> Tensor:
        loss.linear_projection = lambda hidden: F.linear(hidden, batch.head)
        return loss(batch.hidden[None], batch.labels[None])

    return call


PEERS: dict[str, tuple[str, Callable[[], Loss]]] = {
    "dense": ("torch", lambda: dense),
    "torch.compile": ("torch", compiled),
    "torch linear_cross_entropy": ("torch", torch_chunked),
    "Liger": ("liger-kernel", liger),
    "Cut Cross Entropy": ("cut-cross-entropy", cut_cross_entropy),
    "quack": ("quack-kernels", quack),
    "TRL": ("trl", trl),
    "torchtune": ("torchtune", torchtune),
}
"""Name -> (distribution, how to make the contestant)."""


def contestants(backend: str) -> tuple[dict[str, Loss], dict[str, str], dict[str, str]]:
    """Ours and every peer that is installed; their versions; and why the others are absent."""
    found: dict[str, Loss] = {"premask": lambda batch: premask(batch, backend)}
    versions, absent = {}, {}
    for name, (distribution, make) in PEERS.items():
        try:
            versions[name] = version(distribution)
            found[name] = make()
        except (ImportError, AttributeError, PackageNotFoundError) as reason:
            versions.pop(name, None)
            absent[name] = f"{type(reason).__name__}: {reason}"
    return found, versions, absent


def matrix_products(batch: Batch, *, whole: bool) -> Callable[[], Any]:
    """The two (frozen head) or three GEMMs alone, into buffers made beforehand: the limit.

    With all rows at once (`whole`), or in the chunks that ours takes; the limit is the faster of the two.
    """
    hidden, head = batch.hidden.detach(), batch.head.detach()
    hidden = hidden if batch.rows is None else hidden[batch.rows]
    trained, (vocabulary, width) = batch.head.requires_grad, head.shape
    processors, device = gpu(hidden.device)
    cuts: tuple[tuple[int, int], ...] = ((0, len(hidden)),)
    if not whole:
        cuts = plan.chunks(
            len(hidden),
            width,
            vocabulary,
            itemsize=hidden.dtype.itemsize,
            processors=processors,
            trained=trained,
            device=device,
        )
    logits = hidden.new_empty(cuts[0][1], plan.padded(vocabulary))[:, :vocabulary]
    logits.normal_(std=1e-3)
    grad_rows = torch.empty_like(hidden)
    grad_head = torch.empty_like(head) if trained else None

    def run() -> None:
        for start, stop in cuts:
            z, states = logits[: stop - start], hidden[start:stop]
            torch.mm(states, head.T, out=z)
            torch.mm(z, head, out=grad_rows[start:stop])
            if grad_head is not None:
                torch.addmm(grad_head, z.T, states, beta=1 if start else 0, out=grad_head)

    return run
