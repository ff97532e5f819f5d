"""The list of supervised rows against a loop, and the whole way from labels to the loss against transformers' shift."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from premask_kernels import masked_linear_cross_entropy, supervised_rows

LABELS = st.lists(st.sampled_from([-100, 0, 1, 7]), max_size=30).map(lambda labels: [-100, *labels])


def naive(labels: list[int], weights: list[float] | None) -> list[tuple[int, int, float]]:
    found = []
    for place, label in enumerate(labels):
        weight = 1.0 if weights is None else weights[place]
        if label != -100 and weight != 0:
            found.append((place - 1, label, weight))
    return found


@given(LABELS, st.booleans(), st.integers(1, 9), st.randoms(use_true_random=False))
def test_like_a_loop(labels: list[int], weighted: bool, bucket: int, random: object) -> None:
    weights = [random.choice([0.0, 0.5, 2.0]) for _ in labels] if weighted else None  # type: ignore[attr-defined]
    truth = naive(labels, weights)
    found = supervised_rows(labels, weights, bucket=bucket)
    real = slice(len(truth))
    got_weights = np.ones(len(found.rows), np.float32) if found.weights is None else found.weights
    assert list(zip(found.rows[real], found.targets[real], got_weights[real], strict=True)) == truth
    assert found.denominator == sum(weight for *_, weight in truth)
    assert len(found.rows) % bucket == 0 and len(found.rows) - len(truth) < bucket
    padding = slice(len(truth), None)
    assert (found.rows[padding] == len(labels) - 1).all() and not found.targets[padding].any()
    assert not got_weights[padding].any()
    assert found.rows.dtype == found.targets.dtype == np.int64 and got_weights.dtype == np.float32


def test_buckets_give_few_shapes() -> None:
    shapes = {len(supervised_rows([-100] + [5] * n, bucket=64).rows) for n in range(1, 200)}
    assert shapes == {64, 128, 192, 256}


def test_the_first_token_cannot_be_supervised() -> None:
    with pytest.raises(ValueError, match="the first token is supervised, but nothing stands before it"):
        supervised_rows([3, -100])
    assert not len(supervised_rows([3, -100], [0, 1]).rows)  # of weight 0: not supervised


def test_weights_fit_the_labels() -> None:
    with pytest.raises(ValueError, match="one for each of the 3 labels, found 2"):
        supervised_rows([-100, 1, 2], [1.0, 1.0])


@pytest.mark.parametrize("bucket", [1, 16])
def test_from_labels_to_the_loss_of_transformers(bucket: int) -> None:
    """Shift inside the model, mean over the labels that are not -100."""
    torch.manual_seed(0)
    hidden, head = torch.randn(2, 10, 8), torch.randn(33, 8)
    labels = torch.randint(33, (2, 10)).masked_fill_(torch.rand(2, 10) < 0.5, -100)
    labels[:, 0] = -100
    logits = hidden @ head.T
    truth = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 33), labels[:, 1:].reshape(-1))
    found = supervised_rows(labels.numpy(), bucket=bucket)
    loss = masked_linear_cross_entropy(
        hidden,
        head,
        torch.from_numpy(found.targets),
        torch.from_numpy(found.rows),
        weights=None if found.weights is None else torch.from_numpy(found.weights),
        denominator=found.denominator,
    ).loss
    assert torch.allclose(loss, truth)


def test_the_code_in_the_readme() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "supervised_rows(" in code]
    names: dict[str, torch.Tensor] = {}
    torch.manual_seed(0)
    exec(compile(code, "README", "exec"), names)  # noqa: S102
    logits = torch.nn.functional.linear(names["hidden"], names["head"].weight)
    truth = torch.nn.functional.cross_entropy(logits[0, :-1], names["labels"][0, 1:])
    assert torch.allclose(names["loss"], truth)
    (gradient,) = torch.autograd.grad(truth, names["hidden"])
    assert torch.allclose(names["hidden"].grad, gradient, atol=1e-7)
