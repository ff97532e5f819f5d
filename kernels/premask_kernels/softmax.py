"""The Triton kernels: logits to losses and, in place, to their gradient; gradients of rows to their places.

`rows_kernel` walks each row twice, in tiles; one program per row at a time, and as many programs as the GPU has
multiprocessors (SMs), which take turns:

1. Every thread keeps a running maximum `m` of the elements it sees and the running sum `d` of `exp2(y - m)` (online
   softmax, https://arxiv.org/abs/1805.02867); no thread waits for another inside the loop, and an element costs one
   exponential. The threads are combined once per row.
2. Tiles are read again, last one first, and overwritten with the gradient. What was read last is still in the L2
   cache: rows in flight hold SMs x row bytes, 34 MB for 132 rows of 128256 bfloat16, but 68 MB for 256000, where an
   H100 has 50 MB and an H200 60 MB. Going backward, a cache that holds a part of the rows serves that part; going
   forward again, every tile would have been evicted just before it is needed. So the vocabulary is split into tiles
   inside one program. Splitting it over programs would take a second launch to combine their sums, which reads all
   logits from memory once more: what the second pass from L2 is there to avoid.

All arithmetic is float32, in units of log2 (`y = z * log2(e)`): `exp2` is what the hardware has. No matrix product, no
atomic operation, no autotuning: bitwise reproducible, and Triton's interpreter runs it.

Cost on an H200, calculated: per row of V 16-bit logits 2 V bytes read from memory and 2 V written, 16 us an SM for
V = 128256 at 4.3 TB/s in all, against 19 instructions an element (11 us at 1.75 GHz; counted in the code for sm_90),
two of them in the special function unit. So the memory decides: 4-5 % of the two GEMMs around it. A softcap adds a
tanh to each pass, for bfloat16 by `tanh.approx`: one instruction, whose error (2^-11 of its value) is below the
rounding of the logits it is applied to.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-1e30)


@triton.jit
def _tanh(x, APPROXIMATE: tl.constexpr):
    """By one instruction; or to 1e-7 by exp2, which the interpreter knows too."""
    if APPROXIMATE:
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    e = tl.exp2(tl.abs(x) * (-2 * LOG2_E))
    return tl.where(x < 0, e - 1, 1 - e) / (1 + e)


@triton.jit
def _log2_logits(x, b, logit_scale, softcap, HAS_SOFTCAP: tl.constexpr, APPROXIMATE: tl.constexpr):
    """Final logits in units of log2, and the tanh of the softcap (without one: the same again)."""
    x = x.to(tl.float32) + b
    if HAS_SOFTCAP:
        squashed = _tanh(x * (logit_scale / softcap), APPROXIMATE)
        return squashed * (softcap * LOG2_E), squashed
    y = x * (logit_scale * LOG2_E)
    return y, y


@triton.jit
def _absorb(
    z, bias, offsets, vocabulary, m, d, s, plain, logit_scale, softcap,
    MASKED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SMOOTHING: tl.constexpr,
    STATISTICS: tl.constexpr, APPROXIMATE: tl.constexpr,
):  # fmt: skip
    """Take one tile into every thread's maximum, sum of exponentials (and of these times y - m), and sum of logits."""
    b = 0.0
    if MASKED:
        mask = offsets < vocabulary
        x = tl.load(z + offsets, mask=mask, other=0.0)
        if HAS_BIAS:
            b = tl.load(bias + offsets, mask=mask, other=0.0).to(tl.float32)
        y, _ = _log2_logits(x, b, logit_scale, softcap, HAS_SOFTCAP, APPROXIMATE)
        y = tl.where(mask, y, float("-inf"))
        if HAS_SMOOTHING:
            plain += tl.sum(tl.sum(tl.where(mask, y, 0.0), 2), 0)
    else:
        x = tl.load(z + offsets)
        if HAS_BIAS:
            b = tl.load(bias + offsets).to(tl.float32)
        y, _ = _log2_logits(x, b, logit_scale, softcap, HAS_SOFTCAP, APPROXIMATE)
        if HAS_SMOOTHING:
            plain += tl.sum(tl.sum(y, 2), 0)
    higher = tl.maximum(m, tl.max(tl.max(y, 2), 0))
    shrink = tl.exp2(m - higher)
    e = tl.exp2(y - higher[None, :, None])
    if STATISTICS:
        below = tl.where(y > float("-inf"), y - higher[None, :, None], 0.0)
        s = (s + d * (m - higher)) * shrink + tl.sum(tl.sum(e * below, 2), 0)
    d = d * shrink + tl.sum(tl.sum(e, 2), 0)
    return higher, d, s, plain


@triton.jit
def _replace(
    z, bias, offsets, vocabulary, lse, factor, smooth, logit_scale, softcap,
    MASKED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SMOOTHING: tl.constexpr,
    APPROXIMATE: tl.constexpr,
):  # fmt: skip
    """Overwrite one tile of logits with its gradient, as if the target were elsewhere."""
    b = 0.0
    if MASKED:
        mask = offsets < vocabulary
        x = tl.load(z + offsets, mask=mask, other=0.0)
        if HAS_BIAS:
            b = tl.load(bias + offsets, mask=mask, other=0.0).to(tl.float32)
    else:
        x = tl.load(z + offsets)
        if HAS_BIAS:
            b = tl.load(bias + offsets).to(tl.float32)
    y, squashed = _log2_logits(x, b, logit_scale, softcap, HAS_SOFTCAP, APPROXIMATE)
    g = tl.exp2(y - lse) * factor
    if HAS_SMOOTHING:
        g -= smooth
    if HAS_SOFTCAP:
        g *= 1 - squashed * squashed
    if MASKED:
        tl.store(z + offsets, g.to(z.dtype.element_ty), mask=mask)
    else:
        tl.store(z + offsets, g.to(z.dtype.element_ty))


@triton.jit(do_not_specialize=["first", "count"])
def rows_kernel(
    logits, stride, targets, weights, rows, bias, token_loss, correct, entropy,
    first, count, vocabulary, logit_scale, softcap, label_smoothing, z_loss,
    HAS_WEIGHTS: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr, STATISTICS: tl.constexpr, GRADIENT: tl.constexpr, APPROXIMATE: tl.constexpr,
    VECTORS: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows `first` to `first + count` of the batch, whose raw logits are rows 0 to `count` of `logits`."""
    # A tile is [VECTORS, THREADS, VECTOR]: every thread owns neighbours along the last axis, so that reductions over
    # the first and the last stay within a thread.
    TILE: tl.constexpr = VECTORS * THREADS * VECTOR
    lane = tl.arange(0, THREADS)[None, :, None] * VECTOR + tl.arange(0, VECTOR)[None, None, :]
    inside = tl.arange(0, VECTORS)[:, None, None] * (THREADS * VECTOR) + lane
    full = vocabulary // TILE
    for local in tl.range(tl.program_id(0), count, tl.num_programs(0)):
        row = first + local
        z = logits + tl.cast(local, tl.int64) * stride
        target = tl.load(targets + row)
        wrong = (target < 0) | (target >= vocabulary)
        weight = 1.0
        if HAS_WEIGHTS:
            weight = tl.load(weights + row)
            wrong = wrong | (weight < 0)
        if HAS_ROWS:
            wrong = wrong | (tl.load(rows + row) <= tl.load(rows + row - 1, mask=row > 0, other=-1))
        if weight != 0:
            # Nothing may wait for the device to raise an error, so what cannot be right becomes NaN.
            weight = tl.where(wrong, float("nan"), weight)
            target = tl.where(wrong, 0, target)
            b = 0.0
            if HAS_BIAS:
                b = tl.load(bias + target).to(tl.float32)
            at_target, tanh_target = _log2_logits(
                tl.load(z + target), b, logit_scale, softcap, HAS_SOFTCAP, APPROXIMATE
            )
            m = tl.full([THREADS], LOWEST, tl.float32)
            d = tl.full([THREADS], 0.0, tl.float32)
            s = tl.full([THREADS], 0.0, tl.float32)
            plain = tl.full([THREADS], 0.0, tl.float32)
            for tile in tl.range(0, full, num_stages=STAGES):
                m, d, s, plain = _absorb(
                    z, bias, tile * TILE + inside, vocabulary, m, d, s, plain, logit_scale, softcap,
                    False, HAS_BIAS, HAS_SOFTCAP, HAS_SMOOTHING, STATISTICS, APPROXIMATE,
                )  # fmt: skip
            if full * TILE < vocabulary:
                m, d, s, plain = _absorb(
                    z, bias, full * TILE + inside, vocabulary, m, d, s, plain, logit_scale, softcap,
                    True, HAS_BIAS, HAS_SOFTCAP, HAS_SMOOTHING, STATISTICS, APPROXIMATE,
                )  # fmt: skip
            top = tl.max(m, 0)
            shrink = tl.exp2(m - top)
            total = tl.sum(d * shrink, 0)
            lse = top + tl.log2(total)
            loss = lse - at_target
            if HAS_SMOOTHING:
                loss += label_smoothing * (at_target - tl.sum(plain, 0) / vocabulary)
            natural = lse * LN_2
            loss = loss * LN_2 + z_loss * natural * natural
            tl.store(token_loss + row, tl.where(wrong, float("nan"), loss))
            if STATISTICS:
                tl.store(correct + row, (at_target >= top).to(tl.int8))
                below = tl.sum((s + d * (m - top)) * shrink, 0)
                tl.store(entropy + row, (tl.log2(total) - below / total) * LN_2)
            if GRADIENT:
                outer = weight * logit_scale
                factor = (1 + 2 * z_loss * natural) * outer
                smooth = label_smoothing / vocabulary * outer
                if full * TILE < vocabulary:
                    _replace(
                        z, bias, full * TILE + inside, vocabulary, lse, factor, smooth, logit_scale, softcap,
                        True, HAS_BIAS, HAS_SOFTCAP, HAS_SMOOTHING, APPROXIMATE,
                    )  # fmt: skip
                for step in tl.range(0, full, num_stages=STAGES):
                    _replace(
                        z, bias, (full - 1 - step) * TILE + inside, vocabulary, lse, factor, smooth, logit_scale,
                        softcap, False, HAS_BIAS, HAS_SOFTCAP, HAS_SMOOTHING, APPROXIMATE,
                    )  # fmt: skip
                g = tl.exp2(at_target - lse) * factor - smooth - (1 - label_smoothing) * outer
                if HAS_SOFTCAP:
                    g *= 1 - tanh_target * tanh_target
                tl.debug_barrier()  # the thread that wrote the target's place above may be another
                tl.store(z + target, g.to(logits.dtype.element_ty))
        else:
            tl.store(token_loss + row, 0.0)
            if STATISTICS:
                tl.store(correct + row, tl.cast(0, tl.int8))
                tl.store(entropy + row, 0.0)
            if GRADIENT:
                zero = tl.full([VECTORS, THREADS, VECTOR], 0.0, tl.float32).to(logits.dtype.element_ty)
                for start in tl.range(0, vocabulary, TILE):
                    tl.store(z + start + inside, zero, mask=start + inside < vocabulary)


@triton.jit
def scatter_kernel(
    gradient, rows, weights, scale, out, width,
    HAS_ROWS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`out[rows[i]] = gradient[i] * scale`, row i for program i; rows of weight 0, which may repeat, are left alone."""
    i = tl.program_id(0)
    weight = 1.0
    if HAS_WEIGHTS:
        weight = tl.load(weights + i)
    if weight != 0:
        place = tl.cast(i, tl.int64)
        if HAS_ROWS:
            place = tl.load(rows + i)
        factor = tl.load(scale)
        for start in tl.range(0, width, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            mask = offsets < width
            g = tl.load(gradient + tl.cast(i, tl.int64) * width + offsets, mask=mask).to(tl.float32)
            tl.store(out + place * width + offsets, (g * factor).to(out.dtype.element_ty), mask=mask)
