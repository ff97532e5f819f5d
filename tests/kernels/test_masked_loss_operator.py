"""The loss as a torch operator: torch.compile without a graph break, checkpointing, DDP; and what it refuses."""

import socket
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from premask_kernels import masked_linear_cross_entropy
from premask_kernels.operators import masked_loss, masked_loss_backward

BACKENDS = ["reference", "triton"]


def inputs(rows: int = 5) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden": torch.randn(2, 6, 8, generator=generator),
        "head_weight": torch.randn(20, 8, generator=generator),
        "targets": torch.randint(20, (rows,), generator=generator),
        "rows": torch.arange(rows) * 2,
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("given_", ["everything", "nothing"])
def test_opcheck(backend: str, given_: str) -> None:
    """torch's own checks: schema, aliasing, fake against real, autograd registration, AOT with dynamic shapes."""
    values = inputs()
    everything = given_ == "everything"
    hidden = values["hidden"].flatten(0, 1)[None if everything else slice(5)].reshape(-1, 8).requires_grad_(everything)
    head, bias = values["head_weight"].requires_grad_(everything), torch.randn(20, requires_grad=everything)
    rows, weights = values["rows"], torch.ones(5)
    arguments = (hidden, head, values["targets"], *((rows, weights, bias) if everything else (None, None, None)))
    flags = (1.0, 0.0, 0.0, 0.0, True, everything, everything, everything, 0, backend)
    torch.library.opcheck(masked_loss, (*arguments, *flags))
    grads = (torch.randn(5, 8), torch.randn(20, 8), torch.randn(20))
    optional = (rows, weights, 12) if everything else (None, None, 5)
    torch.library.opcheck(masked_loss_backward, (torch.tensor(2.0), *grads, *optional, torch.float32, backend))


class Model(nn.Module):
    """Anything with a head."""

    def __init__(self, frozen: bool, backend: str = "auto") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20)
        self.head.requires_grad_(not frozen)
        self.backend = backend

    def forward(
        self, x: Tensor, targets: Tensor, rows: Tensor, denominator: Tensor | float | None = None
    ) -> tuple[Tensor, Tensor | None]:
        result = masked_linear_cross_entropy(
            self.body(x).tanh(),
            self.head.weight,
            targets,
            rows,
            bias=self.head.bias,
            denominator=denominator,
            softcap=5.0,
            statistics=True,
            backend=self.backend,
        )
        return result.loss, result.entropy


def step(model: nn.Module, call: Any, values: dict[str, Any], denominator: Any = None) -> list[Tensor]:
    """The loss, the entropies, and the gradients of what is trained."""
    model.zero_grad()
    loss, entropy = call(values["hidden"], values["targets"], values["rows"], denominator)
    loss.backward()
    return [loss.detach(), entropy, *[p.grad for p in model.parameters() if p.grad is not None]]


@pytest.mark.parametrize(("backend", "frozen"), [("reference", True), ("triton", False)])
def test_compiles_without_a_graph_break(backend: str, frozen: bool) -> None:
    """`fullgraph` raises at a break; the number of rows changes, and a changed one compiles no third time."""
    torch._dynamo.reset()
    graphs: list[Any] = []

    def count(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example)

    model = Model(frozen, backend)
    fast = torch.compile(model, backend=count, fullgraph=True)
    for rows in (5, 3, 4):
        values = inputs(rows)
        for denominator in (None, torch.tensor(3.0)):
            for one, other in zip(
                step(model, fast, values, denominator), step(model, model, values, denominator), strict=True
            ):
                assert torch.allclose(one, other, atol=1e-6)
    assert len(graphs) <= 4  # with and without a denominator, each with fixed, then with dynamic rows


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_with_inductor() -> None:
    torch._dynamo.reset()
    model = Model(frozen=False)
    fast = torch.compile(model, fullgraph=True)
    for one, other in zip(step(model, fast, inputs()), step(model, model, inputs()), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("frozen", [True, False])
def test_under_checkpointing(backend: str, reentrant: bool, frozen: bool) -> None:
    model = Model(frozen, backend)
    values = inputs()

    def call(hidden: Tensor, *rest: Any) -> Any:
        return checkpoint(model, hidden.detach().requires_grad_(), *rest, use_reentrant=reentrant)

    for one, other in zip(step(model, call, values), step(model, model, values), strict=True):
        assert torch.equal(one, other)


def rank(index: int, world: int, port: int, frozen: bool, results: Any) -> None:
    """One process of data parallel training, with its share of the rows and the denominator of all of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=index, world_size=world)
    model = nn.parallel.DistributedDataParallel(Model(frozen))
    values = inputs()
    mine = slice(0, 4) if index == 0 else slice(4, 5)  # uneven on purpose
    share = {**values, "targets": values["targets"][mine], "rows": values["rows"][mine]}
    found = step(model, model, share, 5 / world)
    results[index] = [x.numpy() for x in (found[0], *found[2:])]
    dist.destroy_process_group()


@pytest.mark.parametrize("frozen", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_are_as_one(frozen: bool) -> None:
    """DDP averages gradients, hence the global denominator over the world size makes uneven ranks exact."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(rank, (2, port, frozen, results), nprocs=2)
        (loss_0, *grads_0), (loss_1, *grads_1) = results[0], results[1]
    model = Model(frozen)
    loss, _, *truth = step(model, model, inputs())
    assert abs((loss_0 + loss_1) / 2 - loss.item()) < 1e-6
    for one, other, whole in zip(grads_0, grads_1, truth, strict=True):
        assert (one == other).all()
        assert torch.allclose(torch.from_numpy(one), whole, atol=1e-6)


def test_a_second_derivative_is_refused() -> None:
    values = inputs()
    hidden = values["hidden"].requires_grad_()
    loss = masked_linear_cross_entropy(**values).loss
    (first,) = torch.autograd.grad(loss * loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match=r"premask\.masked_loss_backward\.default but no autograd formula"):
        first.sum().backward()


def test_without_gradients_nothing_is_kept() -> None:
    values = inputs()
    values["hidden"].requires_grad_()
    with torch.no_grad():
        loss = masked_linear_cross_entropy(**values).loss
    assert not loss.requires_grad


def test_statistics_only_where_asked_for() -> None:
    result = masked_linear_cross_entropy(**inputs())
    assert result.correct is None and result.entropy is None
    assert result.token_loss.shape == (5,)


class Sharded(nn.Parameter):
    """What the loss knows a DTensor by."""

    def full_tensor(self) -> Tensor:
        return self.data


def test_a_dtensor_is_refused() -> None:
    from torch.distributed.tensor import DTensor

    assert hasattr(DTensor, "full_tensor")
    values = inputs()
    with pytest.raises(TypeError, match=r"head_weight is a DTensor .*Pass `head_weight.full_tensor\(\)`"):
        masked_linear_cross_entropy(**{**values, "head_weight": Sharded(values["head_weight"])})


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"head_weight": torch.zeros(20, 8, dtype=torch.bfloat16)}, TypeError, "expected one dtype, found torch.float32"),
    ({"head_weight": torch.zeros(20, 8, dtype=torch.uint8)}, TypeError, "found torch.uint8 .a quantized head"),
    ({"head_weight": torch.zeros(0)}, ValueError, r"found \[2, 6, 8\] and \[0\]. \(An empty head is a shard"),
    ({"targets": torch.tensor([1, 2, 3, -100, 4])}, ValueError, r"targets\[3\]: expected an id of 0 to 19, found -100"),
    ({"targets": torch.tensor([1, 2, 3, 20, 4])}, ValueError, r"targets\[3\]: expected an id of 0 to 19, found 20"),
    ({"targets": torch.zeros(5)}, ValueError, r"targets: expected \[M\] int64, found \[5\] torch.float32"),
    ({"targets": torch.zeros(2, 6, dtype=torch.int64)}, ValueError, r"targets: expected \[M\] int64, found \[2, 6\]"),
    ({"rows": torch.tensor([0, 2, 2, 3, 4])}, ValueError, r"rows\[2\]: expected ascending rows .*, found 2 after 2"),
    ({"rows": torch.tensor([0, 2, 3, 4, 12])}, ValueError, "rows: expected 0 to 11, found 0 to 12"),
    ({"rows": torch.tensor([0, 2])}, ValueError, r"rows: expected \[5\] int64 as targets, found \[2\]"),
    ({"rows": None}, ValueError, "without rows, expected one row for each of the 5 targets"),
    ({"weights": torch.tensor([1.0, 1, -1, 1, 1])}, ValueError, r"weights\[2\]: expected a number, at least 0"),
    ({"weights": torch.ones(4)}, ValueError, r"weights: expected \[5\] float32 as targets, found \[4\]"),
    ({"bias": torch.ones(4)}, ValueError, r"bias: expected \[20\] of torch.float32, found \[4\]"),
    ({"denominator": 0.0}, ValueError, "denominator: expected a finite number above 0, found 0.0"),
    ({"denominator": torch.ones(1)}, ValueError, r"denominator: expected a number or a tensor \[\], found shape \[1\]"),
    ({"softcap": -1.0}, ValueError, "softcap: expected a finite number above 0"),
    ({"logit_scale": 0.0}, ValueError, "logit_scale: expected a finite number above 0"),
    ({"label_smoothing": 1.0}, ValueError, "label_smoothing: expected at least 0 and less than 1"),
    ({"z_loss": -1.0}, ValueError, "z_loss: expected a finite number, at least 0"),
    (
        {"hidden": torch.zeros(12, 8).double(), "head_weight": torch.zeros(20, 8).double(), "backend": "triton"},
        TypeError,
        "16-bit or float32 for the Triton backend, found torch.float64",
    ),
    ({"backend": "cuda"}, ValueError, "backend: expected one of auto, triton, reference, found 'cuda'"),
]


@pytest.mark.parametrize(
    ("changed", "error", "message"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, *_) in enumerate(BAD)]
)
def test_what_is_refused(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        masked_linear_cross_entropy(**{**inputs(), **changed})


@pytest.mark.parametrize(
    ("name", "value"),
    [("targets", [1, 2, -100, 3, 4]), ("targets", [1, 2, 20, 3, 4]), ("rows", [0, 2, 1, 6, 8]), ("weights", None)],
)
def test_on_a_gpu_bad_values_make_the_loss_nan(
    monkeypatch: pytest.MonkeyPatch, name: str, value: list[int] | None
) -> None:
    """As the kernel does it, with the checks of the CPU switched off: only the row at fault, and the loss."""
    from premask_kernels import fused

    monkeypatch.setattr(fused, "check_values", lambda *_: None)
    bad = torch.tensor([1.0, 1, -1, 1, 1]) if value is None else torch.tensor(value)
    values = {**inputs(), name: bad}
    values["hidden"].requires_grad_()
    result = masked_linear_cross_entropy(**values, backend="triton")
    result.loss.backward()
    assert result.loss.isnan()
    assert values["hidden"].grad.isnan().any(2).sum() == 1


def test_public_names() -> None:
    import premask_kernels

    assert premask_kernels.__all__ == [
        "MaskedLoss",
        "SupervisedRows",
        "masked_linear_cross_entropy",
        "supervised_rows",
    ]
    assert isinstance(masked_linear_cross_entropy(**inputs()), premask_kernels.MaskedLoss)


def test_the_fixtures_play_the_kernel(kit: SimpleNamespace) -> None:
    """The backend named `triton` really runs the kernel here, in the interpreter."""
    from premask_kernels import launch

    assert launch.interpreted()
