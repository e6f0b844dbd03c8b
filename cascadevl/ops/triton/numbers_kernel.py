# type: ignore
# Triton compiles what stands here; its types are not Python's.
"""Codes become numbers in registers: what the kernels share. Not yet run on a GPU.

Conversions from integers run at a fraction of the rate of additions on a GPU; putting the bits of a code into a
constant's mantissa, and subtracting the constant, does not (TurboMind, arXiv 2508.15601).
"""

import triton
import triton.language as tl


@triton.jit
def whole(codes, zero):
    """codes - zero in fp32, for codes of 8 bits: 2^23 + code is a number whose last bits are the code's."""
    return (codes.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - (zero + 8388608.0)


@triton.jit
def e4m3(codes):
    """fp32 of FP8's bits: sign, exponent and mantissa fall into those of fp16, whose exponents begin 8 lower.

    Works where the GPU knows no FP8. NaN comes out as ±480.
    """
    codes = codes.to(tl.int32)
    bits = ((codes & 0x7F) << 7) | ((codes & 0x80) << 8)
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def nearest(x):
    """The nearest whole number, of two the even one: beyond 1.5 · 2^23 fp32 has no others. For small x."""
    return x + 12582912.0 - 12582912.0


@triton.jit
def to_e4m3(x):
    """FP8's bits of fp32: the nearest, 448 at most. Works where the GPU knows no FP8."""
    size = tl.minimum(tl.abs(x), 448.0)
    bits = size.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    code = tl.where(size < 0.015625, nearest(size * 512.0).to(tl.int32), normal)
    code = tl.where(x != x, 0x7F, code)
    return (code | ((x.to(tl.int32, bitcast=True) >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def e2m1(codes):
    """fp32 of MXFP4's bits, likewise: exponents of fp16 begin 14 lower, and the least number is subnormal in both."""
    codes = codes.to(tl.int32)
    bits = ((codes & 7) << 9) | ((codes & 8) << 12)
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 16384.0


@triton.jit
def e8m0(codes):
    """fp32 of MXFP4's scales, 2^(code - 127); the least is subnormal, 255 is NaN (OCP MX 1.0, §5.4.1)."""
    codes = codes.to(tl.int32)
    bits = tl.where(codes == 0, 0x00400000, tl.where(codes == 255, 0x7FC00000, codes << 23))
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def product(a, b, total, WIDE: tl.constexpr):
    """total + a·b. WIDE: in fp32, for the interpreter, which takes the bits of bf16 for whole numbers."""
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")
