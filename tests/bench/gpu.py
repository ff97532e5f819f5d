"""Time and memory of the masked loss on a GPU, forward and backward, beside its peers and the bare matrix products.

    python tests/bench/gpu.py [--shapes Llama-3-8B ...] [--out tests/bench/results] [--sweep]
    python tests/bench/gpu.py --dry-run --out DIR     the same code at tiny shapes on the CPU, in Triton's interpreter

Shapes are the heads of Llama-3-8B, Qwen2.5-7B and Gemma-2-9B in bfloat16, 8192 and 16384 tokens of which 10, 30, 60 and
100 % are supervised (in runs, as answers are), with a frozen and with a trained head. Every contestant gets the masked
input as people use it, and supervised rows alone (compacted beforehand, so that no masking is measured). Times are
medians; memory is what is allocated at the peak beyond the inputs, the gradients that are left behind included, and
beside it without them. Writes `gpu-DEVICE.json`, `.md` (the table, with every bar that is missed) and `.svg`; run shape
by shape, the JSON file gathers them. `--sweep` tries chunk sizes and prints what `plan.MEASURED` should say.
"""

import argparse
import gc
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from gpu_contestants import Batch, Loss, contestants, matrix_products
from gpu_report import write_report

from premask_kernels import plan

SHAPES = {"Llama-3-8B": (4096, 128256), "Qwen2.5-7B": (3584, 152064), "Gemma-2-9B": (3584, 256000)}
TINY = {"tiny": (16, 300)}
SHARES = (0.1, 0.3, 0.6, 1.0)
RESULTS = Path(__file__).parent / "results"


def batches(
    shape: tuple[int, int], states: int, share: float, *, trained: bool, device: str, dtype: torch.dtype
) -> dict[str, Batch]:
    """The same supervised tokens, as masked and as compacted input."""
    (width, vocabulary), generator = shape, torch.Generator(device).manual_seed(0)

    def normal(*size: int, std: float) -> torch.Tensor:
        return (torch.randn(size, generator=generator, device=device, dtype=torch.float32) * std).to(dtype)

    hidden, head = normal(states, width, std=1.0), normal(vocabulary, width, std=width**-0.5)
    ids = torch.randint(vocabulary, (states,), generator=generator, device=device)
    run = max(10, states // 64)  # prompts and answers take turns
    place = torch.arange(states, device=device)
    supervised = (place % run) >= run - round(share * run)
    rows = supervised.nonzero()[:, 0]
    labels = ids.masked_fill(~supervised, -100)
    head.requires_grad_(trained)
    compact = hidden[rows].requires_grad_()
    return {
        "masked": Batch(hidden=hidden.requires_grad_(), head=head, labels=labels, rows=rows, targets=ids[rows]),
        "compacted": Batch(hidden=compact, head=head, labels=ids[rows], rows=None, targets=ids[rows]),
    }


def clear(batch: Batch) -> None:
    """Forget the gradients."""
    batch.hidden.grad = batch.head.grad = None


def seconds(call: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of `call`, after two to warm up."""
    for _ in range(2):
        call()
    taken = []
    for _ in range(repeats):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            taken.append(begin.elapsed_time(end) / 1e3)
        else:
            start = perf_counter()
            call()
            taken.append(perf_counter() - start)
    return statistics.median(taken)


def memory(call: Callable[[], Any], batch: Batch, device: str) -> tuple[int, int]:
    """Bytes at the peak of `call` beyond what was there, and the same without the gradients it leaves behind."""
    if device != "cuda":
        return 0, 0
    clear(batch)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    left = sum(x.grad.nbytes for x in (batch.hidden, batch.head) if x.grad is not None)
    return peak, peak - left


def measure(loss: Loss, batch: Batch, device: str, repeats: int) -> dict[str, Any]:
    """Time, memory and loss of one contestant; or how it failed."""

    def step() -> torch.Tensor:
        clear(batch)
        value = loss(batch)
        value.backward()
        return value.detach()

    try:
        value = float(step())
        taken = seconds(step, device, repeats)
        peak, extra = memory(step, batch, device)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:200]}
    finally:
        clear(batch)
    return {
        "ms": taken * 1e3,
        "peak_bytes": peak,
        "extra_bytes": extra,
        "head_gradient_bytes": 4 * batch.head.numel(),  # the one in float32 that a trained head is allowed
        "loss": value,
    }


def limit(batch: Batch, device: str, repeats: int) -> dict[str, float]:
    """Milliseconds of the bare matrix products: the fastest of all rows at once and of our chunks."""
    found = {}
    for name, whole in (("whole", True), ("chunks", False)):
        found[name] = seconds(matrix_products(batch, whole=whole), device, repeats) * 1e3
        gc.collect()
    return {"ms": min(found.values()), **{f"{name}_ms": value for name, value in found.items()}}


def compare(names: list[str], arguments: argparse.Namespace, losses: dict[str, Loss]) -> Iterator[dict[str, Any]]:
    """One row per shape, tokens, share, head, input and contestant."""
    shapes, dtype = (TINY, torch.float32) if arguments.dry_run else (SHAPES, torch.bfloat16)
    device, repeats = arguments.device, 1 if arguments.dry_run else 10
    for name in names:
        for states in (24,) if arguments.dry_run else (8192, 16384):
            for share in SHARES[1:2] if arguments.dry_run else SHARES:
                for trained in (False, True):
                    both = batches(shapes[name], states, share, trained=trained, device=device, dtype=dtype)
                    kind: dict[str, Any] = {"shape": name, "tokens": states, "share": share, "trained": trained}
                    yield {**kind, "input": "compacted", "who": "matrix products"} | limit(
                        both["compacted"], device, repeats
                    )
                    for form, batch in both.items():
                        for who, loss in losses.items():
                            found = measure(loss, batch, device, repeats)
                            yield {**kind, "input": form, "who": who} | found
                            gc.collect()
                            if device == "cuda":
                                torch.cuda.empty_cache()


def sweep(names: list[str], arguments: argparse.Namespace, loss: Loss) -> dict[str, dict[int, float]]:
    """Milliseconds of ours by rows of a chunk, 8192 supervised rows, frozen head."""
    shapes, dtype = (TINY, torch.float32) if arguments.dry_run else (SHAPES, torch.bfloat16)
    device = arguments.device
    label = torch.cuda.get_device_name() if device == "cuda" else "interpreter"
    found: dict[str, dict[int, float]] = {}
    for name in names:
        width, vocabulary = shapes[name]
        states = 24 if arguments.dry_run else 8192
        batch = batches(shapes[name], states, 1.0, trained=False, device=device, dtype=dtype)["compacted"]
        most = plan.largest(width, vocabulary, dtype.itemsize, plan.DEFAULT_BUDGET)
        found[name] = {}
        for size in (8, 16) if arguments.dry_run else range(512, most + 1, plan.TILE_ROWS):
            plan.MEASURED[label, width, vocabulary] = size
            plan.chunks.cache_clear()
            found[name][size] = measure(loss, batch, device, 1 if arguments.dry_run else 5)["ms"]
        del plan.MEASURED[label, width, vocabulary]
        plan.chunks.cache_clear()
        best = min(found[name], key=found[name].__getitem__)
        print(f'("{label}", {width}, {vocabulary}): {best},  # {name}, {found[name][best]:.2f} ms', flush=True)
    return found


def show(row: dict[str, Any]) -> None:
    """One line of progress."""
    head = "trained" if row["trained"] else "frozen"
    what = f"{row['ms']:9.2f} ms  {row.get('extra_bytes', 0) / 1e9:6.2f} GB" if "ms" in row else row["failed"]
    print(
        f"{row['shape']:<11} {row['tokens']:>6} {row['share']:>4.0%} {head:<8}{row['input']:<10}{row['who']:<27}{what}"
    )
    sys.stdout.flush()


def main() -> int:
    """Measure, write the files, and return 1 if a bar is missed on a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--sweep", action="store_true", help="try chunk sizes as well")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU: proves the code, no figures")
    arguments = parser.parse_args()
    arguments.device = "cpu" if arguments.dry_run else "cuda"
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("No GPU here: nothing is measured and nothing is written. (--dry-run tries the code on the CPU.)")
        return 2
    names = list(TINY) if arguments.dry_run else arguments.shapes
    losses, versions, absent = contestants("triton" if arguments.dry_run else "auto")
    if arguments.dry_run:
        losses.pop("torch.compile", None)  # compiles C++ for half a minute, for a figure that nobody reads
    for name, reason in absent.items():
        print(f"absent: {name} ({reason})")
    rows = []
    for row in compare(names, arguments, losses):
        show(row)
        rows.append(row)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "dry run",
        "versions": {"torch": torch.__version__, **versions},
        "absent": absent,
        "rows": rows,
        "chunks": sweep(names, arguments, losses["premask"]) if arguments.sweep else {},
    }
    missed = write_report(result, arguments.out)
    return int(bool(missed) and not arguments.dry_run)


if __name__ == "__main__":
    sys.exit(main())
