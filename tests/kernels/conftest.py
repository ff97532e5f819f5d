"""Problems for the masked loss, and their oracle: all logits at once in float64, gradients by autograd."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from premask_kernels import masked_linear_cross_entropy


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Inputs in float64 on the CPU; `options` are keyword arguments of the loss."""

    hidden: Tensor
    head: Tensor
    targets: Tensor
    rows: Tensor | None
    weights: Tensor | None = None
    bias: Tensor | None = None
    denominator: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "Problem":
        """The same with the floats rounded to `dtype`."""
        floats = {
            name: None if value is None else value.to(dtype).to(device)
            for name, value in (("hidden", self.hidden), ("head", self.head), ("bias", self.bias))
        }
        exact = {
            name: None if value is None else value.to(device)
            for name, value in (("targets", self.targets), ("rows", self.rows), ("weights", self.weights))
        }
        return Problem(**floats, **exact, denominator=self.denominator, options=self.options)


def problem(
    *,
    seed: int = 0,
    states: int = 12,
    supervised: int = 7,
    width: int = 8,
    vocabulary: int = 37,
    weighted: bool = True,
    biased: bool = False,
    padding: int = 0,
    compact: bool = False,
    denominator: float | None = None,
    size: float = 1.0,
    **options: Any,
) -> Problem:
    """A random problem; `padding` rows of weight 0 stand at the end, `size` is the deviation of the hidden states."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows = torch.randperm(max(states - 1, supervised), generator=generator)[:supervised].sort().values
    weights = torch.rand(supervised, generator=generator) * 2
    weights[::3] = 1
    weights[3::5] = 0
    if padding:
        rows = torch.cat([rows, rows.new_full((padding,), states - 1)])
        weights = torch.cat([weights, weights.new_zeros(padding)])
        weighted = True
    count = len(rows)
    return Problem(
        hidden=normal(count if compact else states, width) * size,
        head=normal(vocabulary, width),
        targets=torch.randint(vocabulary, (count,), generator=generator),
        rows=None if compact else rows,
        weights=weights if weighted else None,
        bias=normal(vocabulary) if biased else None,
        denominator=denominator,
        options=options,
    )


def dense(given: Problem, dtype: torch.dtype = torch.float64) -> SimpleNamespace:
    """Loss, statistics and gradients of `given`, everything in `dtype` (float64: the truth; else: eager torch)."""
    leaves = [
        None if x is None else x.detach().to(dtype).requires_grad_() for x in (given.hidden, given.head, given.bias)
    ]
    hidden, head, bias = leaves
    options = given.options
    z = torch.nn.functional.linear(hidden if given.rows is None else hidden[given.rows], head, bias)
    z = z.to(max(dtype, torch.float32, key=lambda kind: kind.itemsize))
    z = z * options.get("logit_scale", 1.0)
    if cap := options.get("softcap"):
        z = cap * torch.tanh(z / cap)
    z.retain_grad()
    eps = options.get("label_smoothing", 0.0)
    token = torch.nn.functional.cross_entropy(z, given.targets, reduction="none", label_smoothing=eps)
    token = token + options.get("z_loss", 0.0) * z.logsumexp(1) ** 2
    weights = token.new_ones(len(token)) if given.weights is None else given.weights.to(token)
    denominator = given.denominator or max(float(weights.sum()), 1e-300)
    loss = (weights * token).sum() / denominator
    loss.backward()
    live = weights != 0
    entropy = torch.distributions.Categorical(logits=z, validate_args=False).entropy()
    at_target = z.gather(1, given.targets[:, None])[:, 0]
    best = z.scatter(1, given.targets[:, None], -torch.inf).amax(1) if z.shape[1] > 1 else at_target
    return SimpleNamespace(
        loss=loss.detach(),
        token_loss=(token * live).detach(),
        correct=(at_target >= best) & live,
        entropy=(entropy * live).detach(),
        clear=(at_target - best).abs() > 1e-4,  # where rounding cannot decide who is the more probable
        gradients=[None if leaf is None else leaf.grad for leaf in leaves],
    )


def ours(given: Problem, **arguments: Any) -> SimpleNamespace:
    """The same by `masked_linear_cross_entropy`."""
    leaves = [
        None if x is None else x.detach().clone().requires_grad_() for x in (given.hidden, given.head, given.bias)
    ]
    hidden, head, bias = leaves
    assert hidden is not None and head is not None
    result = masked_linear_cross_entropy(
        hidden,
        head,
        given.targets,
        given.rows,
        weights=given.weights,
        bias=bias,
        denominator=given.denominator,
        statistics=True,
        **given.options,
        **arguments,
    )
    result.loss.backward()
    return SimpleNamespace(**result._asdict(), gradients=[None if leaf is None else leaf.grad for leaf in leaves])


def close(found: SimpleNamespace, truth: SimpleNamespace, tolerance: float, floor: float = 1e-2) -> None:
    """Loss, statistics and gradients agree: errors are relative to the largest element, or to `floor`."""
    pairs = [("loss", found.loss, truth.loss), ("token_loss", found.token_loss, truth.token_loss)]
    pairs.append(("entropy", found.entropy, truth.entropy))
    pairs += list(zip(("hidden", "head", "bias"), found.gradients, truth.gradients, strict=True))
    for name, ours_, theirs in pairs:
        assert (ours_ is None) == (theirs is None), name
        if ours_ is not None and theirs.numel():
            theirs = theirs.detach()
            scale = max(float(theirs.abs().max()), floor)
            error = float((ours_.detach().double().cpu() - theirs.double().cpu()).abs().max())
            assert error <= tolerance * scale, f"{name}: error {error:.3g} of {scale:.3g}"
    clear = getattr(truth, "clear", torch.ones_like(found.correct)).cpu()
    assert torch.equal(found.correct.cpu() & clear, truth.correct.cpu() & clear)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Matrices are tiny here, and the interpreter works in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def kit() -> SimpleNamespace:
    """The functions above."""
    return SimpleNamespace(problem=problem, dense=dense, ours=ours, close=close, Problem=Problem)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 64 float32 logits, so that a small vocabulary needs several, and a cut one."""
    from premask_kernels import launch

    monkeypatch.setattr(launch, "MAX_THREADS", 8)
