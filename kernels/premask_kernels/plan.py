"""How many supervised rows to take at a time: chunks that fill whole waves of the GPU and stay within a memory budget.

A chunk of m rows costs three GEMMs (two with a frozen head): logits `m x V` (inner length D), hidden gradient `m x D`
(inner length V), head gradient `V x D` (inner length m). cuBLAS cuts an output into tiles, and a GPU computes as many
tiles at once as it has multiprocessors (SMs): a wave. `m x D` is the one with few tiles. With tiles of 128 x 256,
D = 4096 and the 132 SMs of an H100 or H200, 1024 rows are 128 tiles: one wave, 97 % full; 1152 rows are 144 tiles: two
waves, 55 % full. So a chunk that is taken without regard for the waves may waste nearly half of its second GEMM (the
effect, with measurements, is NVIDIA's "wave quantization":
https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/index.html#wave-quant).

On an H200 and with the default budget, 16384 rows go in chunks of 2048 for Llama-3-8B (D 4096, V 128256; 97 % of full
waves), of 2304 for Qwen2.5-7B (3584, 152064; 95 %) and of 1152 for Gemma-2-9B (3584, 256000; 95 %). All stay above the
about 184 rows below which reading the head takes longer than multiplying by it.

This is arithmetic on an assumed tile: cuBLAS may choose other tiles or split the inner dimension. What was measured
stands in `MEASURED` and wins.
"""

from functools import lru_cache

TILE_ROWS, TILE_COLUMNS = 128, 256
"""The output tile that cuBLAS prefers for large 16-bit GEMMs on Hopper."""

FLOPS_PER_BYTE = 184
"""16-bit FLOPs that an H200 does while it moves one byte (790 TFLOP/s, 4.3 TB/s, both as reached in practice)."""

DEFAULT_BUDGET = 900_000_000
"""Bytes of the working buffers: logits and gathered rows of one chunk."""

MEASURED: dict[tuple[str, int, int], int] = {}
"""(device name, D, V) -> rows of a chunk, from the sweep of `make bench-gpu`. Nothing has been measured yet."""


def cdiv(a: int, b: int) -> int:
    """`a / b`, rounded up."""
    return -(-a // b)


def padded(vocabulary: int) -> int:
    """Elements from one row of logits to the next, a multiple of 16 as vector loads and GEMMs want it."""
    return cdiv(vocabulary, 16) * 16


def cost(rows: int, hidden: int, vocabulary: int, processors: int, *, trained: bool) -> int:
    """Time of one chunk in units of one wave through one element of the inner dimension."""

    def gemm(m: int, n: int, inner: int) -> int:
        tiles = cdiv(m, TILE_ROWS) * cdiv(n, TILE_COLUMNS)
        return cdiv(tiles, processors) * inner

    both = gemm(rows, vocabulary, hidden) + gemm(rows, hidden, vocabulary)
    if not trained:
        return both
    traffic = 2 * 4 * vocabulary * hidden  # bytes: the float32 head gradient is read and written once per chunk
    wave = 2 * TILE_ROWS * TILE_COLUMNS * processors
    return both + gemm(vocabulary, hidden, rows) + traffic * FLOPS_PER_BYTE // wave


def largest(hidden: int, vocabulary: int, itemsize: int, budget: int) -> int:
    """Most rows whose logits and gathered states fit `budget` bytes: whole tiles where one fits, else at least 1."""
    rows = budget // ((padded(vocabulary) + hidden) * itemsize)
    return max(1, rows // TILE_ROWS * TILE_ROWS or rows)


@lru_cache(maxsize=4096)
def chunks(
    rows: int,
    hidden: int,
    vocabulary: int,
    *,
    itemsize: int,
    processors: int,
    budget: int = DEFAULT_BUDGET,
    trained: bool = False,
    device: str = "",
) -> tuple[tuple[int, int], ...]:
    """Cut `rows` rows into half-open ranges, in order, the first the largest.

    `itemsize` is the bytes of one logit, `processors` the number of SMs, `device` the name under which `MEASURED` may
    know the shape. Every chunk but the last has the same size: the one whose whole sequence costs least.
    """
    limit = largest(hidden, vocabulary, itemsize, budget)
    measured = MEASURED.get((device, hidden, vocabulary))
    if rows <= 0:
        return ()
    if measured is not None and measured <= limit:
        size = measured
    else:
        sizes = range(TILE_ROWS, limit + 1, TILE_ROWS) if limit >= TILE_ROWS else [limit]

        def whole(size: int) -> tuple[int, int]:
            full, rest = divmod(rows, size)
            one = cost(size, hidden, vocabulary, processors, trained=trained)
            last = cost(rest, hidden, vocabulary, processors, trained=trained) if rest else 0
            return full * one + last, cdiv(rows, size)

        size = min(sizes, key=whole)
    return tuple((start, min(start + size, rows)) for start in range(0, rows, size))
