"""Rounding weights to few bits, and what they mean: the oracle of every kernel, in plain torch.

`linear` multiplies with the rounded weights and nothing else is rounded. `linear_dynamic` also rounds activations to 8
bits, in groups of each row, as fast kernels must; its bits are theirs, since whole numbers are summed exactly and the
few roundings come in one fixed order.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cascadevl.core.errors import CheckpointError, ConfigError
from cascadevl.ops.formats import Format, Quantized, join_nibbles, split_nibbles

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What the sixteen codes of MXFP4 stand for."""

E4M3_MAX = 448.0

ACTIVATION_GROUP = 64
"""Activations that share a scale where the weights have no groups."""

MIN_EXPONENT = 2
"""The least MXFP4 scale we write, 2^-125: kernels halve it, and it must stay a normal number."""


def quantize(weight_FD: Tensor, format: Format) -> Quantized:
    """Round to nearest. Scales are such that nothing is clipped: no weight is off by more than half a step."""
    if weight_FD.ndim != 2 or not weight_FD.numel():
        raise ConfigError(f"Only matrices (outputs, inputs) can be quantised, not {tuple(weight_FD.shape)}.")
    format.check_width(weight_FD.shape[1])
    weight_FD = weight_FD.detach().float()
    if not weight_FD.isfinite().all():
        raise CheckpointError("Weights with infinities or NaN cannot be quantised; the checkpoint seems damaged.")
    if format.kind == "int4":
        return _quantize_int4(weight_FD, format)
    if format.kind == "mxfp4":
        return _quantize_mxfp4(weight_FD, format)
    highest = _amax(weight_FD, format)
    if format.kind == "int8":
        scales = highest / 127
        return Quantized(format, _levels(weight_FD, scales, format).round().clamp(-127, 127).to(torch.int8), scales)
    scales = highest / E4M3_MAX
    levels_FD = _levels(weight_FD, scales, format).clamp(-E4M3_MAX, E4M3_MAX)
    return Quantized(format, levels_FD.to(torch.float8_e4m3fn), scales)


def dequantize(quantized: Quantized) -> Tensor:
    """weight_FD in fp32."""
    levels_FD, scales = levels_and_scales(quantized)
    return levels_FD * _spread(scales, quantized.format, levels_FD.shape)


def linear(x: Tensor, quantized: Quantized, bias_F: Tensor | None = None) -> Tensor:
    """(…, D) -> (…, F); gradients reach x."""
    return F.linear(x, dequantize(quantized).to(x.dtype), bias_F)


def quantize_rows(x_TD: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """int8 (T, D) in -127 … 127 and fp32 scales (T, G); a group that is not finite has the scale NaN.

    One scale for a whole row would not do: language models have a few activations hundreds of times as large as the
    rest (arXiv 2208.07339), beside which the rest would vanish.
    """
    width = x_TD.shape[1]
    x_TGI = F.pad(x_TD.float(), (0, -width % group)).unflatten(1, (-1, group))
    highest_TG1 = x_TGI.abs().amax(-1, keepdim=True)
    finite_TG1 = highest_TG1.isfinite()
    scales_TG1 = torch.where(finite_TG1, highest_TG1 / 127, torch.nan)
    levels_TGI = x_TGI / torch.where(scales_TG1 > 0, scales_TG1, 1.0)
    quants_TGI = torch.where(finite_TG1, levels_TGI, 0.0).round().clamp(-127, 127).to(torch.int8)
    return quants_TGI.flatten(1)[:, :width], scales_TG1[..., 0]


def linear_dynamic(x_TD: Tensor, quantized: Quantized, bias_F: Tensor | None = None) -> Tensor:
    """fp32 (T, F), activations rounded by `quantize_rows`; group after group, and without gradients.

    FP8 weights meet activations that are not rounded: both are floats already.
    """
    if quantized.format.kind == "fp8":
        return linear(x_TD.float(), quantized, bias_F)
    group = quantized.format.group or ACTIVATION_GROUP
    quants_TD, scales_TG = quantize_rows(x_TD, group)
    levels_FD, scales_FG = levels_and_scales(quantized)
    out_TF = x_TD.new_zeros(len(x_TD), len(levels_FD), dtype=torch.float32)
    for index, (x, weight) in enumerate(zip(quants_TD.split(group, 1), levels_FD.split(group, 1), strict=True)):
        dot_TF = (x.double() @ weight.double().T).float()  # exact: whole or half numbers far under 2^53
        if quantized.format.group:
            dot_TF = dot_TF * scales_FG[:, index]
        out_TF = out_TF + dot_TF * scales_TG[:, index, None]
    if not quantized.format.group:
        out_TF = out_TF * scales_FG[:, 0]
    return out_TF if bias_F is None else out_TF + bias_F


def levels_and_scales(quantized: Quantized) -> tuple[Tensor, Tensor]:
    """fp32: what the quants say (F, D), and their scales, as stored or (F, G); a weight is their product."""
    format, quants, scales = quantized.format, quantized.quants, quantized.scales
    if format.kind == "mxfp4":
        # 2^-127 is subnormal, and 255 stands for NaN (OCP MX 1.0, §5.4.1); ldexp in two steps keeps both right.
        scales_FG = torch.ldexp(torch.ones_like(scales, dtype=torch.float32), scales.int() - 127)
        scales_FG = torch.where(scales == 255, torch.nan, scales_FG)
        return torch.tensor(E2M1, device=quants.device)[split_nibbles(quants).int()], scales_FG
    if format.kind == "int4":
        nibbles_FD = split_nibbles(quants).float()
        zeros = 8.0 if quantized.zeros is None else _spread(quantized.zeros.float(), format, nibbles_FD.shape)
        return nibbles_FD - zeros, scales.float()
    return quants.float(), scales


def _quantize_int4(weight_FD: Tensor, format: Format) -> Quantized:
    low = _amax((-weight_FD).clamp(min=0), format)
    high = _amax(weight_FD.clamp(min=0), format)
    scales = _half_upwards((low + high) / 15 if format.zeros else torch.maximum(low, high) / 7)
    levels_FD = _levels(weight_FD, scales.float(), format).round()
    if not format.zeros:
        return Quantized(format, join_nibbles((levels_FD + 8).clamp(0, 15).to(torch.uint8)), scales)
    zeros = (low / torch.where(scales > 0, scales.float(), 1.0)).round().clamp(0, 15)
    codes_FD = (levels_FD + _spread(zeros, format, weight_FD.shape)).clamp(0, 15).to(torch.uint8)
    return Quantized(format, join_nibbles(codes_FD), scales, zeros.to(torch.uint8))


def _quantize_mxfp4(weight_FD: Tensor, format: Format) -> Quantized:
    """The least scale that clips nothing. OCP's own rule rounds it down, and clips what lies between 6 and 8."""
    mantissa, exponent = torch.frexp(_amax(weight_FD, format) / 6)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent) + 127
    scales = exponent.clamp(MIN_EXPONENT, 254).to(torch.uint8)
    levels_FD = weight_FD * _spread(torch.ldexp(torch.ones_like(mantissa), 127 - scales.int()), format, weight_FD.shape)
    return Quantized(format, join_nibbles(e2m1_codes(levels_FD)), scales)


def e2m1_codes(levels: Tensor) -> Tensor:
    """uint8: the code of the nearest value of `E2M1`."""
    values = torch.tensor(E2M1[:8], device=levels.device)
    codes = torch.bucketize(levels.abs(), (values[1:] + values[:-1]) / 2)
    return (codes + 8 * levels.signbit()).to(torch.uint8)


def _half_upwards(scales: Tensor) -> Tensor:
    """fp16, never less than it was: a smaller scale would clip."""
    if (scales > torch.finfo(torch.float16).max).any():
        raise ConfigError(f"Weights up to {7 * scales.max():.3g} are too large for int4's fp16 scales: use int8.")
    halves = scales.half()
    return torch.where(halves.float() < scales, (halves.view(torch.int16) + 1).view(torch.float16), halves)


def _amax(weight_FD: Tensor, format: Format) -> Tensor:
    """The highest magnitude of the weights that share a scale, in the shape of the scales."""
    outputs, width = weight_FD.shape
    rows, columns = format.outputs, format.group or width
    padded = F.pad(weight_FD.abs(), (0, -width % columns, 0, -outputs % rows))
    return padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).amax((1, 3))


def _levels(weight_FD: Tensor, scales: Tensor, format: Format) -> Tensor:
    # A scale is zero where all its weights are, or are so small that it vanished.
    return weight_FD / _spread(torch.where(scales > 0, scales, 1.0), format, weight_FD.shape)


def _spread(scales: Tensor, format: Format, shape: tuple[int, ...]) -> Tensor:
    """What each weight's own scale is, (F, D) or broadcastable to it."""
    outputs, width = shape
    if format.outputs > 1:
        scales = scales.repeat_interleave(format.outputs, 0)[:outputs]
    return scales.repeat_interleave(format.group, 1)[:, :width] if format.group else scales
