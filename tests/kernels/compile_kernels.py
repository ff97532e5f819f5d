"""Compile every variant of the kernels for GPUs that are not here, and print what became of each, one JSON per line.

    TRITON_INTERPRET=0 python tests/kernels/compile_kernels.py ARCHITECTURE ... [--all]

Run by `test_kernels_compile.py` in a process of its own: Triton decides at its first import whether it compiles or
interprets.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia
from triton.compiler import ASTSource

from premask_kernels import launch, softmax
from premask_kernels.objective import Objective

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
CUOBJDUMP = Path(nvidia.__file__).parent / "bin/cuobjdump"


def compiled(kernel: Any, kinds: dict[str, str], fixed: dict[str, Any], loose: set[str], architecture: int) -> Any:
    """`kernel` as launched with arguments of `kinds`, compile-time `fixed`; all but `loose` are divisible by 16."""
    place = {name: (kernel.arg_names.index(name),) for name in [*kinds, *fixed]}
    integers = {name for name, kind in kinds.items() if kind.startswith("*") or kind == "i32"}
    source = ASTSource(
        fn=kernel,
        signature={**kinds, **dict.fromkeys(fixed, "constexpr")},
        constexprs={place[name]: value for name, value in fixed.items()},
        attrs={place[name]: [["tt.divisibility", 16]] for name in integers - loose},
    )
    warps = fixed.get("THREADS", 128) // 32
    options = {"num_warps": warps, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def rows_kernel(dtype: torch.dtype, vocabulary: int, architecture: int, **flags: bool) -> Any:
    """One variant of `softmax.rows_kernel`."""
    objective = Objective(softcap=30.0 * flags.pop("softcap"), label_smoothing=0.1 * flags.pop("smoothing"))
    fixed: dict[str, Any] = launch.constants(dtype, vocabulary, objective=objective, **flags)
    real, name = "fp32", NAMES[dtype]
    kinds = {
        "logits": f"*{name}", "stride": "i32", "targets": "*i64", "weights": "*fp32", "rows": "*i64",
        "bias": f"*{name}", "token_loss": "*fp32", "correct": "*i8", "entropy": "*fp32", "first": "i32",
        "count": "i32", "vocabulary": "i32", "logit_scale": real, "softcap": real, "label_smoothing": real,
        "z_loss": real,
    }  # fmt: skip
    for absent in ("weights", "rows", "bias"):
        if not flags[absent]:
            del kinds[absent]
            fixed[absent] = None
    loose = {"first", "count"} | (set() if vocabulary % 16 == 0 else {"vocabulary"})
    return compiled(softmax.rows_kernel, kinds, fixed, loose, architecture)


def scatter_kernel(dtype: torch.dtype, architecture: int) -> Any:
    """`softmax.scatter_kernel` with rows and weights."""
    name = NAMES[dtype]
    kinds = {"gradient": f"*{name}", "rows": "*i64", "weights": "*fp32", "scale": "*fp32", "out": f"*{name}"}
    fixed = {"HAS_ROWS": True, "HAS_WEIGHTS": True, "BLOCK": 2048}
    return compiled(softmax.scatter_kernel, {**kinds, "width": "i32"}, fixed, set(), architecture)


def usage(kernel: Any) -> dict[str, int | bool]:
    """Registers and stack (spills) a thread, shared memory a program, and what must not be in the code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        text = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()  # type: ignore[union-attr]
    ptx = kernel.asm["ptx"]
    return {
        "registers": int(registers),
        "stack": int(stack),
        "shared": kernel.metadata.shared,
        "double": ".f64" in ptx,
        "asynchronous": "cp.async" in ptx,
        "tanh": "tanh.approx" in ptx,
    }


def variants(every: bool) -> Iterator[dict[str, bool]]:
    """All combinations of what the loops do, and of what surrounds them; or four of them."""
    inner = ("bias", "softcap", "smoothing", "statistics", "gradient")
    full = {"weights": True, "rows": True}
    if every:
        for values in itertools.product([False, True], repeat=len(inner)):
            yield full | dict(zip(inner, values, strict=True))
        for weights, rows in ((False, False), (False, True), (True, False)):
            yield dict.fromkeys(inner, False) | {"gradient": True, "weights": weights, "rows": rows}
        return
    plain = full | dict.fromkeys(inner, False) | {"gradient": True}
    yield plain
    yield plain | {"softcap": True}
    yield full | dict.fromkeys(inner, True)
    yield full | dict.fromkeys(inner, True) | {"gradient": False}


def main() -> None:
    """Print one line per variant."""
    every = "--all" in sys.argv
    for architecture in map(int, (word for word in sys.argv[1:] if word.isdigit())):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            print(json.dumps({"kernel": "scatter", **usage(scatter_kernel(dtype, architecture))}), flush=True)
            for flags in itertools.islice(variants(every), None if every or dtype == torch.bfloat16 else 1):
                # 50257 is divisible by nothing, so that its last tile is cut within a vector
                for vocabulary in (128256, 50257) if every and dtype == torch.bfloat16 else (128256,):
                    kernel = rows_kernel(dtype, vocabulary, architecture, **flags)
                    told = {"architecture": architecture, "dtype": NAMES[dtype], "vocabulary": vocabulary, **flags}
                    print(json.dumps({"kernel": "rows", **told, **usage(kernel)}), flush=True)


if __name__ == "__main__":
    main()
