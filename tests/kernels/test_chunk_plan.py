"""Chunks of rows: they cover every row once, stay within the budget, and fill waves on the shapes of the benchmark."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premask_kernels import plan

SHAPES = {"Llama-3-8B": (4096, 128256), "Qwen2.5-7B": (3584, 152064), "Gemma-2-9B": (3584, 256000)}
H200 = {"itemsize": 2, "processors": 132}


@given(
    rows=st.integers(0, 5000),
    hidden=st.integers(1, 5000),
    vocabulary=st.integers(1, 300_000),
    itemsize=st.sampled_from([2, 4]),
    processors=st.integers(1, 200),
    budget=st.integers(1, 2_000_000_000),
    trained=st.booleans(),
)
def test_every_row_once_within_the_budget(
    rows: int, hidden: int, vocabulary: int, itemsize: int, processors: int, budget: int, trained: bool
) -> None:
    cuts = plan.chunks(
        rows, hidden, vocabulary, itemsize=itemsize, processors=processors, budget=budget, trained=trained
    )
    assert [row for start, stop in cuts for row in range(start, stop)] == list(range(rows))
    assert all(stop - start <= cuts[0][1] for start, stop in cuts)
    if cuts and cuts[0][1] > 1:
        assert cuts[0][1] * (plan.padded(vocabulary) + hidden) * itemsize <= budget


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("trained", [False, True])
def test_waves_are_full_on_an_h200(shape: str, trained: bool) -> None:
    """Of the tiles that the chosen chunks occupy, at least 94 % are computed for a row, at N = 16384."""
    hidden, vocabulary = SHAPES[shape]
    rows = 16384
    cuts = plan.chunks(rows, hidden, vocabulary, **H200, trained=trained)
    paid = sum(plan.cost(stop - start, hidden, vocabulary, 132, trained=False) for start, stop in cuts)
    ideal = 2 * rows * vocabulary * hidden / (plan.TILE_ROWS * plan.TILE_COLUMNS * 132)
    assert ideal / paid > 0.94


def test_1024_rows_are_one_wave_and_1152_two() -> None:
    """The example of the docstring."""

    def tiles(rows: int) -> int:
        return plan.cdiv(rows, plan.TILE_ROWS) * plan.cdiv(4096, plan.TILE_COLUMNS)

    assert (tiles(1024), tiles(1152)) == (128, 144)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("states", [8192, 16384])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 1.0])
def test_memory_stays_under_the_bar(shape: str, states: int, share: float) -> None:
    """Everything that one pass with a frozen head allocates, from shapes: under 1.2 GB in bfloat16."""
    hidden, vocabulary = SHAPES[shape]
    rows = int(states * share)
    size = plan.chunks(rows, hidden, vocabulary, **H200)[0][1]
    forward = size * (plan.padded(vocabulary) + hidden) * 2 + rows * hidden * 2
    backward = (rows + states) * hidden * 2
    assert max(forward, backward) < 1.2e9


def test_what_was_measured_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plan.MEASURED, ("NVIDIA H200", 4096, 128256), 640)
    plan.chunks.cache_clear()
    assert plan.chunks(2000, 4096, 128256, **H200, device="NVIDIA H200")[0] == (0, 640)
    assert plan.chunks(2000, 4096, 128256, **H200, device="NVIDIA A100")[0] != (0, 640)
    assert plan.chunks(2000, 4096, 128256, **H200, budget=10_000_000, device="NVIDIA H200")[0][1] < 640
    plan.chunks.cache_clear()
