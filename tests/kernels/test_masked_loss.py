"""The masked loss against the dense one in float64: the reference, and the Triton kernel in Triton's interpreter."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from premask_kernels import masked_linear_cross_entropy

pytest.importorskip("triton", reason="the Triton kernel is tested in Triton's interpreter: pip install triton")

BACKENDS = ["reference", "triton"]

OPTIONS: list[dict[str, Any]] = [
    {},
    {"weighted": False},
    {"biased": True},
    {"softcap": 3.0},
    {"logit_scale": 0.3},
    {"label_smoothing": 0.1},
    {"z_loss": 1e-2},
    {"denominator": 3.5},
    {"padding": 3},
    {"compact": True},
    {"compact": True, "padding": 2},
    {"biased": True, "softcap": 2.0, "logit_scale": 1.7, "label_smoothing": 0.2, "z_loss": 1e-3, "padding": 2},
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_every_option(kit: SimpleNamespace, backend: str, options: dict[str, Any]) -> None:
    problem = kit.problem(**options).to(torch.float32)
    kit.close(kit.ours(problem, backend=backend), kit.dense(problem), 1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_the_reference_is_exact_in_float64(kit: SimpleNamespace, options: dict[str, Any]) -> None:
    problem = kit.problem(**options)
    kit.close(kit.ours(problem), kit.dense(problem), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_any_combination(kit_of_functions: SimpleNamespace, backend: str, data: st.DataObject) -> None:
    kit = kit_of_functions
    supervised = data.draw(st.integers(0, 9), "supervised")
    maybe = st.booleans()
    options: dict[str, Any] = {
        "logit_scale": data.draw(st.sampled_from([1.0, 0.0625, 3.0])),
        "softcap": data.draw(st.sampled_from([None, 1.0, 30.0])),
        "label_smoothing": data.draw(st.sampled_from([0.0, 0.3])),
        "z_loss": data.draw(st.sampled_from([0.0, 1e-2])),
    }
    problem = kit.problem(
        seed=data.draw(st.integers(0, 99), "seed"),
        states=data.draw(st.integers(supervised + 1, 20), "states"),
        supervised=supervised,
        width=data.draw(st.integers(1, 9), "width"),
        vocabulary=data.draw(st.integers(2, 150), "vocabulary"),
        weighted=data.draw(maybe, "weighted"),
        biased=data.draw(maybe, "biased"),
        padding=data.draw(st.integers(0, 2), "padding"),
        compact=data.draw(maybe, "compact"),
        denominator=data.draw(st.sampled_from([None, 0.7, 1000.0]), "denominator"),
        size=data.draw(st.sampled_from([0.1, 1.0, 5.0]), "size"),
        **options,
    ).to(torch.float32)
    budget = data.draw(st.sampled_from([None, 1, 3000]), "budget")
    kit.close(kit.ours(problem, backend=backend, memory_budget=budget), kit.dense(problem), 3e-5, 0.1)


@pytest.fixture(scope="module")
def kit_of_functions(request: pytest.FixtureRequest) -> SimpleNamespace:
    """`kit` for a hypothesis test, which runs many examples with one fixture; and small tiles."""
    from premask_kernels import launch

    functions = vars(request.config.pluginmanager.get_plugin(str(request.path.parent / "conftest.py")))
    kept, launch.MAX_THREADS = launch.MAX_THREADS, 8
    request.addfinalizer(lambda: setattr(launch, "MAX_THREADS", kept))
    return SimpleNamespace(**{name: functions[name] for name in ("problem", "dense", "ours", "close", "Problem")})


@pytest.mark.parametrize("vocabulary", [1, 2, 63, 64, 65, 127, 128, 129, 200, 513])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("small_tiles")
def test_vocabularies_around_the_size_of_a_tile(kit: SimpleNamespace, backend: str, vocabulary: int) -> None:
    problem = kit.problem(vocabulary=vocabulary, biased=True, softcap=4.0, label_smoothing=0.1, z_loss=1e-3).to(
        torch.float32
    )
    kit.close(kit.ours(problem, backend=backend), kit.dense(problem), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, OPTIONS[-1]], ids=["plain", "all"])
def test_16_bits_no_worse_than_eager(
    kit: SimpleNamespace, backend: str, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    """Measured against float64 on the same rounded inputs, the error may be that of eager torch and a little more.

    The interpreter truncates float32 to bfloat16 where hardware rounds, so one more unit in the last place is allowed.
    """
    problem = kit.problem(states=20, supervised=16, width=32, vocabulary=300, size=0.3, **options).to(dtype)
    exact = kit.dense(problem)
    found, eager = kit.ours(problem, backend=backend), kit.dense(problem, dtype)
    spare = torch.finfo(dtype).eps * (2 if dtype == torch.bfloat16 and backend == "triton" else 0.5)
    for mine, theirs, truth in [
        (found.loss, eager.loss, exact.loss),
        *zip(found.gradients, eager.gradients, exact.gradients, strict=True),
    ]:
        if truth is not None:
            allowed = (theirs.double() - truth).abs().max() + spare * truth.abs().max()
            assert (mine.double() - truth).abs().max() <= allowed
            assert (mine.double() - truth).norm() <= (theirs.double() - truth).norm() + spare * truth.norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"weighted": False}, {"compact": True}, {"denominator": 5.0}])
def test_no_rows(kit: SimpleNamespace, backend: str, options: dict[str, Any]) -> None:
    found = kit.ours(kit.problem(supervised=0, biased=True, **options).to(torch.float32), backend=backend)
    assert found.loss.item() == 0
    assert found.loss.requires_grad
    for gradient in found.gradients:
        assert torch.equal(gradient, torch.zeros_like(gradient))
    assert found.token_loss.shape == found.correct.shape == found.entropy.shape == (0,)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("denominator", [None, 4.0])
def test_all_weights_zero(kit: SimpleNamespace, backend: str, denominator: float | None) -> None:
    problem = kit.problem(supervised=0, padding=4, biased=True, denominator=denominator).to(torch.float32)
    found = kit.ours(problem, backend=backend)
    assert found.loss.item() == 0
    for values in (*found.gradients, found.token_loss, found.correct, found.entropy):
        assert torch.equal(values, torch.zeros_like(values))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_weight_zero_cannot_spoil_anything(kit: SimpleNamespace, backend: str) -> None:
    """Its hidden state is so large that its logits overflow."""
    problem = kit.problem(padding=1).to(torch.float32)
    clean = kit.ours(problem, backend=backend)
    problem.hidden[-1] = 1e38
    spoilt = kit.ours(problem, backend=backend)
    assert torch.equal(clean.loss, spoilt.loss)
    for one, other in zip(clean.gradients[:2], spoilt.gradients[:2], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1e3, 1e6])
def test_huge_logits(kit: SimpleNamespace, backend: str, size: float) -> None:
    problem = kit.problem(size=size, biased=True).to(torch.float32)
    kit.close(kit.ours(problem, backend=backend), kit.dense(problem), 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_of_minus_infinity(kit: SimpleNamespace, backend: str) -> None:
    """A bias of -inf forbids tokens; the loss and the gradients of the others stay finite."""
    problem = kit.problem(vocabulary=40, biased=True).to(torch.float32)
    problem.targets.clamp_(max=19)
    problem.bias[20:] = -torch.inf
    found = kit.ours(problem, backend=backend)
    fewer = kit.Problem(**{**vars(problem), "head": problem.head[:20], "bias": problem.bias[:20]})
    truth = kit.dense(fewer)
    kit.close(
        SimpleNamespace(**{**vars(found), "gradients": [found.gradients[0], found.gradients[1][:20], None]}),
        SimpleNamespace(**{**vars(truth), "gradients": [*truth.gradients[:2], None]}),
        1e-5,
    )
    assert not found.gradients[1][20:].any()


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # numpy's, which plays the GPU in the interpreter
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_means_nan_out(kit: SimpleNamespace, backend: str) -> None:
    problem = kit.problem(weighted=False).to(torch.float32)
    problem.hidden[int(problem.rows[2])] = torch.nan
    found = kit.ours(problem, backend=backend)
    assert found.loss.isnan()
    assert found.token_loss.isnan().nonzero().tolist() == [[2]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, OPTIONS[-1]], ids=["plain", "all"])
def test_the_size_of_a_chunk_does_not_matter(kit: SimpleNamespace, backend: str, options: dict[str, Any]) -> None:
    problem = kit.problem(states=24, supervised=20, vocabulary=50, **options).to(torch.float32)
    whole = kit.ours(problem, backend=backend)
    for budget in (1, 1_000, 5_000):  # 1, 4 or 5, and 17 to 25 rows
        kit.close(kit.ours(problem, backend=backend, memory_budget=budget), whole, 5e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_bits_every_time(kit: SimpleNamespace, backend: str) -> None:
    problem = kit.problem(supervised=11, **OPTIONS[-1]).to(torch.float32)
    first, *others = [kit.ours(problem, backend=backend, memory_budget=3000) for _ in range(3)]
    for other in others:
        assert torch.equal(first.loss, other.loss)
        assert all(torch.equal(a, b) for a, b in zip(first.gradients, other.gradients, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_is_multiplied_by_what_comes_back(kit: SimpleNamespace, backend: str) -> None:
    """By loss scaling or a sum of losses; twice with a graph that is kept."""
    problem = kit.problem().to(torch.float32)
    hidden = problem.hidden.clone().requires_grad_()
    loss = masked_linear_cross_entropy(hidden, problem.head, problem.targets, problem.rows, backend=backend).loss
    (once,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (scaled,) = torch.autograd.grad(1024 * loss + 7, hidden, retain_graph=True)
    assert torch.equal(scaled, 1024 * once)
    assert torch.equal(torch.autograd.grad(loss, hidden)[0], once)


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=["plain", "all"])
def test_gradcheck(kit: SimpleNamespace, options: dict[str, Any]) -> None:
    problem = kit.problem(states=5, supervised=3, width=4, vocabulary=6, **options)
    inputs = [x.requires_grad_() for x in (problem.hidden, problem.head, problem.bias) if x is not None]

    def loss(hidden: torch.Tensor, head: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return masked_linear_cross_entropy(
            hidden, head, problem.targets, problem.rows, weights=problem.weights, bias=bias, **problem.options
        ).loss

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("trained", [(), ("hidden",), ("head",), ("bias",), ("hidden", "bias")], ids=str)
def test_only_what_needs_a_gradient_gets_one(kit: SimpleNamespace, backend: str, trained: tuple[str, ...]) -> None:
    problem = kit.problem(biased=True).to(torch.float32)
    inputs = {name: getattr(problem, name).requires_grad_(name in trained) for name in ("hidden", "head", "bias")}
    loss = masked_linear_cross_entropy(
        inputs["hidden"],
        inputs["head"],
        problem.targets,
        problem.rows,
        weights=problem.weights,
        bias=inputs["bias"],
        backend=backend,
    ).loss
    truth = kit.dense(problem)
    assert torch.allclose(loss.double(), truth.loss)
    assert loss.requires_grad == bool(trained)
    if trained:
        loss.backward()
    for (name, leaf), gradient in zip(inputs.items(), truth.gradients, strict=True):
        assert (leaf.grad is not None) == (name in trained)
        if leaf.grad is not None:
            assert torch.allclose(leaf.grad.double(), gradient, atol=1e-6)
