# type: ignore
# Triton compiles what stands here; its types are not Python's.
"""Norms, rotary angles, rounding into pages, SwiGLU: passes over numbers that would each cost a launch. Not yet run
on a GPU."""

import triton
import triton.language as tl

from cascadevl.ops.triton.numbers_kernel import nearest, to_e4m3


@triton.jit
def rms_norm(hidden, weight, added, out, width, eps, BLOCK: tl.constexpr):
    """One row; with `added`, hidden becomes their sum first."""
    d = tl.arange(0, BLOCK)
    real = d < width
    at = tl.program_id(0).to(tl.int64) * width + d
    x = tl.load(hidden + at, mask=real, other=0.0)
    if added is not None:
        more = tl.load(added + at, mask=real, other=0.0)
        x = (x.to(tl.float32) + more.to(tl.float32)).to(hidden.dtype.element_ty)
        tl.store(hidden + at, x, mask=real)
    wide = x.to(tl.float32)
    scaled = _rounded(wide * tl.rsqrt(tl.sum(wide * wide, 0) / width + eps), x)
    scaled = scaled * tl.load(weight + d, mask=real, other=0.0).to(tl.float32)
    tl.store(out + at, scaled.to(out.dtype.element_ty), mask=real)


@triton.jit
def silu_times(gate, up, out, num, BLOCK: tl.constexpr):
    """Numbers one by one."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(gate + at, mask=at < num, other=0.0)
    wide = x.to(tl.float32)
    opened = _rounded(wide / (1.0 + tl.exp(-wide)), x)
    opened = opened * tl.load(up + at, mask=at < num, other=0.0).to(tl.float32)
    tl.store(out + at, opened.to(out.dtype.element_ty), mask=at < num)


@triton.jit
def place_heads(
    q, k, v, q_norm, k_norm, cos, sin, out, keys, key_ranges, values, value_ranges, tables, request, position,
    eps, max_pages, KIND: tl.constexpr, LEVELS: tl.constexpr, PAGE: tl.constexpr, HALF: tl.constexpr,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of a token in its two halves, which rotary angles turn and nibbles of a byte hold together."""
    token, head = tl.program_id(0), tl.program_id(1)
    h = tl.arange(0, BLOCK)
    turn = token.to(tl.int64) * (2 * HALF) + h
    if head < NUM_HEADS:
        at = (token.to(tl.int64) * NUM_HEADS + head) * (2 * HALF) + h
        first, second = _normed(q + at, q_norm, eps, h, HALF)
        first, second = _turned(first, second, cos + turn, sin + turn, q, h, HALF)
        tl.store(out + at, first.to(out.dtype.element_ty), mask=h < HALF)
        tl.store(out + at + HALF, second.to(out.dtype.element_ty), mask=h < HALF)
    else:
        kv_head = (head - NUM_HEADS) % NUM_KV_HEADS
        at = (token.to(tl.int64) * NUM_KV_HEADS + kv_head) * (2 * HALF) + h
        stands = tl.load(position + token)
        table = tables + tl.load(request + token).to(tl.int64) * max_pages
        page = tl.load(table + stands // PAGE).to(tl.int64)
        row = (page * NUM_KV_HEADS + kv_head) * PAGE + stands % PAGE
        if head < NUM_HEADS + NUM_KV_HEADS:
            first, second = _normed(k + at, k_norm, eps, h, HALF)
            first, second = _turned(first, second, cos + turn, sin + turn, k, h, HALF)
            _keep(first, second, keys, key_ranges, row, h, KIND, LEVELS, HALF)
        else:
            first, second = _normed(v + at, None, eps, h, HALF)
            _keep(first, second, values, value_ranges, row, h, KIND, LEVELS, HALF)


@triton.jit
def _normed(x, weight, eps, h, HALF: tl.constexpr):
    """Both halves of a head in fp32, RMS-normed if there is a weight."""
    narrow = tl.load(x, mask=h < HALF, other=0.0)
    first = narrow.to(tl.float32)
    second = tl.load(x + HALF, mask=h < HALF, other=0.0).to(tl.float32)
    if weight is not None:
        factor = tl.rsqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / (2 * HALF) + eps)
        of_first = tl.load(weight + h, mask=h < HALF, other=0.0).to(tl.float32)
        of_second = tl.load(weight + HALF + h, mask=h < HALF, other=0.0).to(tl.float32)
        first = _rounded(_rounded(first * factor, narrow) * of_first, narrow)
        second = _rounded(_rounded(second * factor, narrow) * of_second, narrow)
    return first, second


@triton.jit
def _turned(first, second, cos, sin, like, h, HALF: tl.constexpr):
    """Both halves of a head by the angles of its position."""
    cos_H = tl.load(cos, mask=h < HALF, other=0.0)
    sin_H = tl.load(sin, mask=h < HALF, other=0.0).to(tl.float32)
    wide_cos_H = cos_H.to(tl.float32)
    turned = _rounded(_rounded(first * wide_cos_H, cos_H) - _rounded(second * sin_H, cos_H), cos_H)
    return turned, _rounded(_rounded(second * wide_cos_H, cos_H) + _rounded(first * sin_H, cos_H), cos_H)


@triton.jit
def _keep(first, second, numbers, ranges, row, h, KIND: tl.constexpr, LEVELS: tl.constexpr, HALF: tl.constexpr):
    """A vector into its page: as it is, as FP8, or as codes with their range."""
    real = h < HALF
    if KIND >= 2:
        lowest = tl.minimum(_least(first, real), _least(second, real))
        highest = -tl.minimum(_least(-first, real), _least(-second, real))
        scale = tl.div_rn(highest - lowest, LEVELS * 1.0)
        # A vector with an infinity or NaN is lost, and says so.
        strange = tl.sum(tl.where(real & ((first - first != 0) | (second - second != 0)), 1, 0), 0) > 0
        divisor = tl.where(scale > 0, scale, 1.0)
        scale = tl.where(strange, float("nan"), scale)
        tl.store(ranges + row * 2, scale)
        tl.store(ranges + row * 2 + 1, lowest)
        low, high = _code(first, lowest, divisor, LEVELS), _code(second, lowest, divisor, LEVELS)
        if KIND == 3:
            tl.store(numbers + row * HALF + h, (low | (high << 4)).to(tl.uint8), mask=real)
        else:
            tl.store(numbers + row * (2 * HALF) + h, low.to(tl.uint8), mask=real)
            tl.store(numbers + row * (2 * HALF) + HALF + h, high.to(tl.uint8), mask=real)
    elif KIND == 1:
        tl.store(numbers + row * (2 * HALF) + h, to_e4m3(first), mask=real)
        tl.store(numbers + row * (2 * HALF) + HALF + h, to_e4m3(second), mask=real)
    else:
        tl.store(numbers + row * (2 * HALF) + h, first.to(numbers.dtype.element_ty), mask=real)
        tl.store(numbers + row * (2 * HALF) + HALF + h, second.to(numbers.dtype.element_ty), mask=real)


@triton.jit
def _least(x, real):
    return tl.min(tl.where(real, x, float("inf")), 0)


@triton.jit
def _code(x, lowest, divisor, LEVELS: tl.constexpr):
    code = nearest(tl.div_rn(x - lowest, divisor))
    return tl.minimum(tl.maximum(code, 0.0), LEVELS * 1.0).to(tl.int32)


@triton.jit
def _rounded(x, like):
    """fp32 of what x is in the type of another."""
    return x.to(like.dtype).to(tl.float32)
