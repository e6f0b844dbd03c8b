# type: ignore
# Triton compiles what stands here; its types are not Python's.
"""Rows times weights of few bits, which become numbers in registers. Not yet run on a GPU.

The weight is the left operand, outputs × inputs: that one a tensor core may take from registers, so what was
dequantised there need not be written down again (TurboMind's choice for MXFP4 and FP8, arXiv 2508.15601).
"""

import triton
import triton.language as tl

from cascadevl.ops.triton.numbers_kernel import e2m1, e4m3, e8m0, product, whole


@triton.jit
def multiply(
    x, quants, scales, zeros, bias, out, num_rows, width, num_outputs, padded_outputs,
    KIND: tl.constexpr, GROUP: tl.constexpr, PANEL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCKS: tl.constexpr, SPLITS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One tile of out (T, F), or of one of its SPLITS parts in fp32, without bias. KIND and order: see linear.py."""
    BYTES: tl.constexpr = 16 if (KIND == 1 or KIND == 2) else 32
    INPUTS: tl.constexpr = BLOCKS * BYTES
    f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    split = tl.program_id(2)
    num_blocks = tl.cdiv(width, 32)
    blocks_each = tl.cdiv(tl.cdiv(num_blocks, BLOCKS), SPLITS) * BLOCKS
    end = tl.minimum((split + 1) * blocks_each, num_blocks)
    panel_F = (f // PANEL).to(tl.int64) * num_blocks
    i = tl.arange(0, INPUTS)
    input_I = i // BYTES * 32 + i % BYTES
    x_IT = x + t.to(tl.int64)[None, :] * width + input_I[:, None]
    row_T = (t < num_rows)[None, :]
    sum_FT = tl.zeros((BLOCK_F, BLOCK_T), tl.float32)
    for block in range(split * blocks_each, end, BLOCKS):
        b = block + tl.arange(0, BLOCKS)
        here_FB = (b < end)[None, :] & (f < padded_outputs)[:, None]
        at_FB = ((panel_F[:, None] + b[None, :]) * PANEL + (f % PANEL)[:, None]) * BYTES
        at_FBC = at_FB[:, :, None] + tl.arange(0, BYTES)[None, None, :]
        codes = tl.load(quants + at_FBC, mask=here_FB[:, :, None], other=0)
        left = width - block * 32
        first_IT = tl.load(x_IT + block * 32, mask=(input_I < left)[:, None] & row_T, other=0.0)
        if GROUP:
            at_FB = (b * 32 // GROUP)[None, :] * padded_outputs + f[:, None]
            scale_FB = tl.load(scales + at_FB, mask=here_FB, other=0)
        if KIND == 0 or KIND == 3:
            if KIND == 0:
                weight = whole(codes, 128.0)
            else:
                weight = e4m3(codes)
            if GROUP:
                weight = weight * scale_FB[:, :, None]
        else:
            low, high = codes & 15, codes >> 4
            if KIND == 2:
                scale_FB1 = e8m0(scale_FB)[:, :, None]
                weight, second = e2m1(low) * scale_FB1, e2m1(high) * scale_FB1
            else:
                if zeros is not None:
                    zero = whole(tl.load(zeros + at_FB, mask=here_FB, other=0), 0.0)[:, :, None]
                else:
                    zero = 8.0
                scale_FB1 = scale_FB.to(tl.float32)[:, :, None]
                weight, second = whole(low, zero) * scale_FB1, whole(high, zero) * scale_FB1
            second_IT = tl.load(x_IT + block * 32 + 16, mask=(input_I + 16 < left)[:, None] & row_T, other=0.0)
            second_FI = tl.reshape(second, (BLOCK_F, INPUTS)).to(x.dtype.element_ty)
            sum_FT = product(second_FI, second_IT, sum_FT, WIDE)
        sum_FT = product(tl.reshape(weight, (BLOCK_F, INPUTS)).to(x.dtype.element_ty), first_IT, sum_FT, WIDE)
    if not GROUP:  # codes were exact, their sum gets the scale
        sum_FT = sum_FT * tl.load(scales + f, mask=f < padded_outputs, other=0)[:, None]
    if SPLITS == 1 and bias is not None:
        sum_FT = sum_FT + tl.load(bias + f, mask=f < padded_outputs, other=0)[:, None]
    at_FT = (split.to(tl.int64) * num_rows + t)[None, :] * num_outputs + f[:, None]
    tl.store(out + at_FT, sum_FT.to(out.dtype.element_ty), mask=(f < num_outputs)[:, None] & row_T)


@triton.jit
def add_up(parts, bias, out, num, num_outputs, num_splits, BLOCK: tl.constexpr):
    """out (T, F) = the sum of its parts, always in one order, and bias."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < num
    total = tl.zeros((BLOCK,), tl.float32)
    part = at
    for _ in range(num_splits):
        total += tl.load(parts + part, mask=here, other=0.0)
        part += num
    if bias is not None:
        total += tl.load(bias + at % num_outputs, mask=here, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=here)
