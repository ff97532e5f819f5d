"""What only a GPU can show, `make test-gpu`. Most of it runs without one too, smaller and in Triton's interpreter, so
that the tests themselves are tested.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from premask_kernels import masked_linear_cross_entropy

pytest.importorskip("triton", reason="the kernel needs triton: pip install triton")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
everywhere = pytest.mark.parametrize("device", DEVICES)
ALL = {"biased": True, "softcap": 20.0, "logit_scale": 0.7, "label_smoothing": 0.1, "z_loss": 1e-4, "padding": 3}


def sized(device: str, **options: Any) -> dict[str, Any]:
    """A problem that is large enough for a GPU to show its rounding and races, or small."""
    if device == "cuda":
        return {"states": 1500, "supervised": 999, "width": 512, "vocabulary": 50257, "size": 0.3, **options}
    return {"states": 12, "supervised": 8, "width": 16, "vocabulary": 333, "size": 0.3, **options}


@everywhere
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"compact": True}, {"weighted": False}, ALL], ids=lambda o: "-".join(o)[:20])
def test_no_worse_than_eager(kit: SimpleNamespace, device: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Against float64: no further off than torch in the same dtype, plus half a unit (two where 16 bits truncate)."""
    problem = kit.problem(**sized(device, **options)).to(dtype, device)
    exact, eager = kit.dense(problem), kit.dense(problem, dtype)
    found = kit.ours(problem, backend="triton")
    spare = torch.finfo(dtype).eps * (0.5 if device == "cuda" or dtype == torch.float16 else 2)
    pairs = [(found.loss, eager.loss, exact.loss), *zip(found.gradients, eager.gradients, exact.gradients, strict=True)]
    for mine, theirs, truth in pairs:
        if truth is not None:
            allowed = (theirs.double() - truth).norm() + spare * truth.norm()
            assert (mine.double() - truth).norm() <= allowed


@everywhere
@pytest.mark.parametrize("vocabulary", [1, 127, 8193, 16384, 50257])
def test_float32_at_odd_vocabularies(kit: SimpleNamespace, device: str, vocabulary: int) -> None:
    problem = kit.problem(states=5, supervised=3, vocabulary=vocabulary, **ALL).to(torch.float32, device)
    kit.close(kit.ours(problem, backend="triton"), kit.dense(problem), 2e-5)


@everywhere
def test_the_same_bits_every_time(kit: SimpleNamespace, device: str) -> None:
    problem = kit.problem(**sized(device, **ALL)).to(torch.bfloat16, device)
    first, *others = [kit.ours(problem, backend="triton", memory_budget=20_000_000) for _ in range(3)]
    for other in others:
        assert torch.equal(first.loss, other.loss)
        assert all(torch.equal(a, b) for a, b in zip(first.gradients, other.gradients, strict=True))


@everywhere
def test_the_size_of_a_chunk_does_not_matter(kit: SimpleNamespace, device: str) -> None:
    problem = kit.problem(**sized(device)).to(torch.float32, device)
    whole = kit.ours(problem, backend="triton")
    for budget in (4_000, 60_000_000):
        kit.close(kit.ours(problem, backend="triton", memory_budget=budget), whole, 1e-5)


@everywhere
def test_nothing_waits_for_the_device(kit: SimpleNamespace, device: str) -> None:
    """torch raises at every synchronisation; also with rows, weights and a denominator on the host."""
    problem = kit.problem(**sized(device, **ALL), denominator=7.0).to(torch.bfloat16, device)
    kit.ours(problem, backend="triton")  # compiles the kernel, which may wait
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        kit.ours(problem, backend="triton")
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_cuda_graph_replays_with_other_data(kit: SimpleNamespace) -> None:
    """Captured for one bucketed number of rows, replayed for batches with fewer."""
    problems = [
        kit.problem(**sized("cuda", supervised=n, padding=1024 - n), seed=n).to(torch.bfloat16, "cuda")
        for n in (900, 1000, 700)
    ]
    static = problems[0]
    hidden = static.hidden.clone().requires_grad_()

    def step() -> torch.Tensor:
        loss = masked_linear_cross_entropy(
            hidden, static.head, static.targets, static.rows, weights=static.weights, denominator=100.0
        ).loss
        (hidden.grad,) = torch.autograd.grad(loss, hidden)
        return loss.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    gradient = hidden.grad
    for problem in problems:
        with torch.no_grad():
            hidden.copy_(problem.hidden)
            for name in ("head", "targets", "rows", "weights"):
                getattr(static, name).copy_(getattr(problem, name))
        graph.replay()
        truth = kit.ours(kit.Problem(**{**vars(problem), "denominator": 100.0}))
        assert torch.equal(captured, truth.loss.detach())
        assert torch.equal(gradient, truth.gradients[0])


@pytest.mark.gpu
@pytest.mark.parametrize(("width", "vocabulary"), [(4096, 128256), (3584, 152064), (3584, 256000)])
@pytest.mark.parametrize("trained", [False, True])
def test_memory_stays_under_the_bar(width: int, vocabulary: int, trained: bool) -> None:
    """1.2 GB beyond the inputs and the gradients, plus one float32 gradient of a trained head; 16384 rows."""
    hidden = torch.randn(16384, width, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    head = torch.randn(vocabulary, width, dtype=torch.bfloat16, device="cuda").requires_grad_(trained)
    rows = torch.arange(16384, device="cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    masked_linear_cross_entropy(hidden, head, rows, rows).loss.backward()
    left = sum(x.grad.nbytes for x in (hidden, head) if x.grad is not None)
    extra = torch.cuda.max_memory_allocated() - before - left
    assert extra < 1.2e9 + (4 * head.numel() if trained else 0)


@pytest.mark.gpu
def test_compiles_with_inductor(kit: SimpleNamespace) -> None:
    problem = kit.problem(**sized("cuda", **ALL)).to(torch.bfloat16, "cuda")

    def loss(hidden: torch.Tensor) -> torch.Tensor:
        return masked_linear_cross_entropy(
            hidden * 2, problem.head, problem.targets, problem.rows, weights=problem.weights
        ).loss

    one, other = (problem.hidden.clone().requires_grad_() for _ in range(2))
    torch.compile(loss, fullgraph=True)(one).backward()
    loss(other).backward()
    assert torch.equal(one.grad, other.grad)
