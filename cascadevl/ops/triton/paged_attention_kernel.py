# type: ignore
# Triton compiles what stands here; its types are not Python's.
"""Attention over pages of keys and values of any width, flash-decoding style. Not yet run on a GPU.

A program has one token, the query heads that share a key head, and a part of the context; what parts found is merged
by their maxima and sums (Flash-Decoding, Dao et al. 2023). The heads of a group make the rows of a matrix product, so
queries stay in 16 bits and only keys and values are converted (TurboMind, arXiv 2508.15601).

Ranges are applied to sums, not to numbers: with key = code · scale + lowest, q·key = scale · (q·code) + lowest · Σq,
and for values likewise; codes are exact in 16 bits. Of 4 bits the two nibbles of a byte are half a head apart: two
products each, and no thread brings neighbours together.
"""

import triton
import triton.language as tl

from cascadevl.ops.triton.numbers_kernel import e4m3, product, whole


@triton.jit
def attend(
    q, keys, key_ranges, values, value_ranges, tables, request, position, sinks, out, tops, sums,
    scale, window, max_pages, num_tokens,
    KIND: tl.constexpr, PAGE: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, LEAST: tl.constexpr,
    SPLITS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out (T, N, H), or with SPLITS the unfinished (splits, T, N, H) with their maxima and sums (splits, T, N)."""
    token, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    g, h, n = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_N)
    head_G = token.to(tl.int64) * (NUM_KV_HEADS * GROUP) + kv_head * GROUP + g
    real_GH = (g < GROUP)[:, None] & (h < WIDTH)[None, :]
    at_GH = head_G[:, None] * SIZE + h[None, :]
    q_GH = tl.load(q + at_GH, mask=real_GH, other=0.0)
    q_sum_G = tl.sum(q_GH.to(tl.float32), 1)
    if KIND == 3:
        second_q_GH = tl.load(q + at_GH + WIDTH, mask=real_GH, other=0.0)
        q_sum_G += tl.sum(second_q_GH.to(tl.float32), 1)
        second_GH = tl.zeros((BLOCK_G, BLOCK_H), tl.float32)

    last = tl.load(position + token) + 1
    first = tl.where(window > 0, tl.maximum(last - window, 0), 0)
    each = tl.maximum(tl.cdiv(tl.cdiv(last - first, SPLITS), BLOCK_N) * BLOCK_N, LEAST)
    begin = first + split * each
    end = tl.minimum(begin + each, last)
    table = tables + tl.load(request + token).to(tl.int64) * max_pages

    top_G = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    sum_G = tl.zeros((BLOCK_G,), tl.float32)
    if sinks is not None:  # like a key of the first part whose value is zero
        sink_G = tl.load(sinks + kv_head * GROUP + g, mask=g < GROUP, other=0.0)
        top_G = tl.where(split == 0, sink_G, top_G)
        sum_G = tl.where(split == 0, 1.0, sum_G)
    lowest_G = tl.zeros((BLOCK_G,), tl.float32)
    first_GH = tl.zeros((BLOCK_G, BLOCK_H), tl.float32)
    for start in range(begin, end, BLOCK_N):
        at_N = start + n
        here_N = at_N < end
        page_N = tl.load(table + at_N // PAGE, mask=here_N, other=0).to(tl.int64)
        row_N = (page_N * NUM_KV_HEADS + kv_head) * PAGE + at_N % PAGE
        real_NH = here_N[:, None] & (h < WIDTH)[None, :]
        at_NH = row_N[:, None] * WIDTH + h[None, :]

        keys_NH = tl.load(keys + at_NH, mask=real_NH, other=0)
        score_GN = tl.zeros((BLOCK_G, BLOCK_N), tl.float32)
        if KIND == 3:
            high_NH = whole(keys_NH >> 4, 0.0).to(q.dtype.element_ty)
            score_GN = product(second_q_GH, tl.trans(high_NH), score_GN, WIDE)
        score_GN = product(q_GH, tl.trans(_first(keys_NH, KIND).to(q.dtype.element_ty)), score_GN, WIDE)
        if KIND >= 2:
            key_scale_N = tl.load(key_ranges + row_N * 2, mask=here_N, other=0.0)
            key_lowest_N = tl.load(key_ranges + row_N * 2 + 1, mask=here_N, other=0.0)
            score_GN = score_GN * key_scale_N[None, :] + q_sum_G[:, None] * key_lowest_N[None, :]
        score_GN = tl.where(here_N[None, :], score_GN * scale, float("-inf"))

        new_top_G = tl.maximum(top_G, tl.max(score_GN, 1))
        weight_GN = tl.exp(score_GN - new_top_G[:, None])
        shrink_G = tl.exp(top_G - new_top_G)
        top_G = new_top_G
        sum_G = sum_G * shrink_G + tl.sum(weight_GN, 1)

        values_NH = tl.load(values + at_NH, mask=real_NH, other=0)
        if KIND >= 2:
            value_scale_N = tl.load(value_ranges + row_N * 2, mask=here_N, other=0.0)
            value_lowest_N = tl.load(value_ranges + row_N * 2 + 1, mask=here_N, other=0.0)
            lowest_G = lowest_G * shrink_G + tl.sum(weight_GN * value_lowest_N[None, :], 1)
            weight_GN = weight_GN * value_scale_N[None, :]
        weight_GN = weight_GN.to(q.dtype.element_ty)
        if KIND == 3:
            high_NH = whole(values_NH >> 4, 0.0).to(q.dtype.element_ty)
            second_GH = product(weight_GN, high_NH, second_GH * shrink_G[:, None], WIDE)
        numbers_NH = _first(values_NH, KIND).to(q.dtype.element_ty)
        first_GH = product(weight_GN, numbers_NH, first_GH * shrink_G[:, None], WIDE)

    at_GH += split.to(tl.int64) * num_tokens * (NUM_KV_HEADS * GROUP * SIZE)
    divisor_G = sum_G
    if SPLITS > 1:
        divisor_G = tl.full((BLOCK_G,), 1.0, tl.float32)
        at_G = split.to(tl.int64) * num_tokens * (NUM_KV_HEADS * GROUP) + head_G
        tl.store(tops + at_G, top_G, mask=g < GROUP)
        tl.store(sums + at_G, sum_G, mask=g < GROUP)
    found_GH = (first_GH + lowest_G[:, None]) / divisor_G[:, None]
    tl.store(out + at_GH, found_GH.to(out.dtype.element_ty), mask=real_GH)
    if KIND == 3:
        found_GH = (second_GH + lowest_G[:, None]) / divisor_G[:, None]
        tl.store(out + at_GH + WIDTH, found_GH.to(out.dtype.element_ty), mask=real_GH)


@triton.jit
def _first(codes, KIND: tl.constexpr):
    """Numbers of the vector, or of its first half where a byte has two; without their range."""
    if KIND == 0:
        return codes
    elif KIND == 1:
        return e4m3(codes)
    elif KIND == 2:
        return whole(codes, 0.0)
    else:
        return whole(codes & 15, 0.0)


@triton.jit
def merge(
    parts, tops, sums, out, num_tokens, num_splits,
    SIZE: tl.constexpr, NUM_HEADS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    """One head of a token: the parts of its context, each weighed by what its maximum is below the greatest."""
    s, h = tl.arange(0, BLOCK_SPLITS), tl.arange(0, BLOCK_H)
    at = tl.program_id(0).to(tl.int64) * NUM_HEADS + tl.program_id(1)
    at_S = s.to(tl.int64) * num_tokens * NUM_HEADS + at
    real_SH = (s < num_splits)[:, None] & (h < SIZE)[None, :]
    top_S = tl.load(tops + at_S, mask=s < num_splits, other=float("-inf"))
    weight_S = tl.exp(top_S - tl.max(top_S, 0))
    total = tl.sum(weight_S * tl.load(sums + at_S, mask=s < num_splits, other=0.0), 0)
    part_SH = tl.load(parts + at_S[:, None] * SIZE + h[None, :], mask=real_SH, other=0.0)
    found_H = tl.sum(part_SH * weight_S[:, None], 0) / total
    tl.store(out + at * SIZE + h, found_H.to(out.dtype.element_ty), mask=h < SIZE)
