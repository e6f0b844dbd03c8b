"""GPTQ: inputs are rounded one after another, and those still to come make up for the error (arXiv 2210.17323).

Rounding adds (Ŵ - W) x to the outputs of a linear; its square, in the mean over inputs, is δ H δᵀ for each row δ of
Ŵ - W, with H the mean of x xᵀ. Where inputs go together, what rounding one weight did is undone by moving others; the
best move follows from the Cholesky factor of H⁻¹ (§3.3 of the paper).

From the paper differs: inputs are rounded in the order of H's diagonal, the largest first, but scales belong to groups
of neighbours, so that nothing has to be put in order when the weight is read (`act-order` with `static-groups` of its
code); int4 scales are those with the least error weighted by that diagonal; a row that comes out worse than rounded to
nearest stays rounded to nearest.
"""

import torch
from torch import Tensor

from cascadevl.core.errors import CheckpointError, ConfigError
from cascadevl.ops.formats import Format, Quantized, join_nibbles
from cascadevl.ops.quantize import E2M1, E4M3_MAX, dequantize, e2m1_codes, levels_and_scales, quantize

DAMPING = 0.01
"""Of the mean of H's diagonal, added to all of it: samples never show all that inputs can be."""

SHRINK = tuple(1 - step / 50 for step in range(16))
"""int4 scales that are tried, as parts of the one that clips nothing."""

COLUMNS = 64
"""Inputs that are rounded before those behind them are moved, in one product."""


def quantize_compensated(
    weight_FD: Tensor, hessian_DD: Tensor, format: Format, *, damping: float = DAMPING
) -> Quantized:
    """Round so that outputs change least; `hessian_DD` is the mean of x xᵀ over inputs x.

    Over these inputs no output is further off than with weights rounded to nearest.
    """
    nearest = quantize(weight_FD, format)
    width = weight_FD.shape[1]
    if hessian_DD.shape != (width, width):
        raise ConfigError(f"The Hessian of {width} inputs is {width}×{width}, not {tuple(hessian_DD.shape)}.")
    if not hessian_DD.isfinite().all():
        raise CheckpointError("Inputs that calibrate a linear hold infinities or NaN; the checkpoint seems damaged.")
    weight_FD, hessian_DD = weight_FD.detach().float(), hessian_DD.float()
    diagonal_D = hessian_DD.diagonal()
    damped_DD = hessian_DD + torch.diag(torch.full_like(diagonal_D, damping * float(diagonal_D.mean()) or 1.0))
    grid = _search(weight_FD, damped_DD.diagonal(), nearest) if format.kind == "int4" else nearest
    rounded = _compensate(weight_FD, damped_DD, grid)
    before_F, after_F = (output_errors(weight_FD, each, hessian_DD) for each in (nearest, rounded))
    return _rows(rounded, nearest, after_F < before_F)


def output_errors(weight_FD: Tensor, quantized: Quantized, hessian_DD: Tensor) -> Tensor:
    """(F,), of each output: mean square of what rounding adds to it."""
    change_FD = dequantize(quantized) - weight_FD.float()
    return ((change_FD @ hessian_DD) * change_FD).sum(1)


def _search(weight_FD: Tensor, weights_D: Tensor, nearest: Quantized) -> Quantized:
    """The scales and zeros of int4 that are best to round to nearest with, input d counting `weights_D[d]`."""
    group = nearest.format.group
    weight_FGI, weights_GI = weight_FD.unflatten(1, (-1, group)), weights_D.unflatten(0, (-1, group))
    widest_FG, first_FG = nearest.scales.float(), _zeros(nearest)
    least_FG = torch.full_like(widest_FG, torch.inf)
    best_FG, zeros_FG = widest_FG, first_FG
    for shift in (0, -1, 1) if nearest.format.zeros else (0,):
        shifted_FG = (first_FG + shift).clamp(0, 15)
        for part in SHRINK:
            scales_FG = (widest_FG * part).half().float()
            steps_FG1 = torch.where(scales_FG > 0, scales_FG, 1.0)[..., None]
            levels_FGI = _nearest(weight_FGI / steps_FG1, nearest.format, shifted_FG[..., None])
            errors_FG = ((levels_FGI * steps_FG1 - weight_FGI).square() * weights_GI).sum(-1)
            better_FG = errors_FG < least_FG
            least_FG = torch.where(better_FG, errors_FG, least_FG)
            best_FG = torch.where(better_FG, scales_FG, best_FG)
            zeros_FG = torch.where(better_FG, shifted_FG, zeros_FG)
    zeros = zeros_FG.to(torch.uint8) if nearest.format.zeros else None
    return Quantized(nearest.format, nearest.quants, best_FG.half(), zeros)


def _compensate(weight_FD: Tensor, hessian_DD: Tensor, grid: Quantized) -> Quantized:
    """Round to the scales and zeros of `grid`."""
    outputs, width = weight_FD.shape
    format, group = grid.format, grid.format.group or width
    scales_GF = levels_and_scales(grid)[1].repeat_interleave(format.outputs, 0)[:outputs].T.contiguous()
    steps_GF, zeros_GF = torch.where(scales_GF > 0, scales_GF, 1.0), _zeros(grid).T.contiguous()
    order_D = hessian_DD.diagonal().argsort(descending=True, stable=True)
    factor_DD = _factor(hessian_DD[order_D][:, order_D])
    weight_DF = weight_FD.T[order_D]  # inputs first: one after another they are moved and rounded
    levels_DF, groups = torch.empty_like(weight_DF), (order_D // group).tolist()
    for start in range(0, width, COLUMNS):
        here = slice(start, min(start + COLUMNS, width))
        rows_CF, factor_CD = weight_DF[here], factor_DD[here]
        errors_CF = torch.empty_like(rows_CF)
        for c, row_F in enumerate(rows_CF):
            at, g = start + c, groups[start + c]
            levels_DF[at] = _nearest(row_F / steps_GF[g], format, zeros_GF[g])
            errors_CF[c] = (row_F - levels_DF[at] * scales_GF[g]) / factor_CD[c, at]
            rows_CF[c + 1 :].addr_(factor_CD[c, at + 1 : here.stop], errors_CF[c], alpha=-1)
        weight_DF[here.stop :].addmm_(factor_CD[:, here.stop :].T, errors_CF, alpha=-1)
    levels_FD = levels_DF[order_D.argsort()].T.contiguous()
    return Quantized(format, _coded(levels_FD, grid), grid.scales, grid.zeros)


def _factor(hessian_DD: Tensor) -> Tensor:
    """Upper triangular U with UᵀU = H⁻¹: its row d says how weights behind d make up for an error in d."""
    inverse_DD = torch.cholesky_inverse(torch.linalg.cholesky(hessian_DD))
    return torch.linalg.cholesky(inverse_DD, upper=True)


def _zeros(quantized: Quantized) -> Tensor:
    """Of int4, in the shape of the scales."""
    if quantized.zeros is None:
        return torch.full_like(quantized.scales, 8.0, dtype=torch.float32)
    return quantized.zeros.float()


def _nearest(levels: Tensor, format: Format, zeros: Tensor) -> Tensor:
    """The closest of what the format can say, as `levels_and_scales` gives it."""
    if format.kind == "int4":
        return torch.clamp(levels.round(), -zeros, 15 - zeros)
    if format.kind == "int8":
        return levels.round().clamp(-127, 127)
    if format.kind == "fp8":
        return levels.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float()
    return torch.tensor(E2M1, device=levels.device)[e2m1_codes(levels).int()]


def _coded(levels_FD: Tensor, grid: Quantized) -> Tensor:
    """The quants that stand for levels, each of which the format can say."""
    kind = grid.format.kind
    if kind == "int4":
        return join_nibbles((levels_FD + _zeros(grid).repeat_interleave(grid.format.group, 1)).to(torch.uint8))
    return join_nibbles(e2m1_codes(levels_FD)) if kind == "mxfp4" else levels_FD.to(grid.quants.dtype)


def _rows(rounded: Quantized, nearest: Quantized, better_F: Tensor) -> Quantized:
    """Rows of `rounded` where it is better. Formats whose outputs share scales have the same in both."""
    new, old = rounded.tensors(), nearest.tensors()
    chosen = {
        name: torch.where(better_F[:, None], new[name], old[name]) if len(old[name]) == len(better_F) else old[name]
        for name in old
    }
    return Quantized(nearest.format, **chosen)
