"""Gradients by hand: what a step on a CPU spends beside its matrix products is mostly the moving of memory.

Autograd walks through a whole tensor for every operation and keeps all it may need again. The functions here compute
the same values some hundred rows at a time, so that what passes between operations stays in the cache of a core, and
compute again what costs no product instead of keeping it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 512
"""Of a piece: enough for a product to run at its full rate, little enough for caches of 1 MiB."""


def by_hand(*inputs: Tensor) -> bool:
    """Whether a function of these should give its gradient by hand: on a CPU, while learning, in one precision.

    Elsewhere its plain form is used: a GPU has kernels of its own, a compiler joins operations by itself, and
    autocast chooses types for each operation.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    first = inputs[0]
    plain = first.device.type == "cpu" and first.dtype in (torch.float32, torch.float64)
    alike = all(type(x) in (Tensor, nn.Parameter) and x.dtype == first.dtype for x in inputs)  # none is sharded
    return plain and alike and any(x.requires_grad for x in inputs)


def pieces(num: int) -> Iterator[slice]:
    """Of so many rows."""
    for start in range(0, num, ROWS):
        yield slice(start, min(start + ROWS, num))


class RMSNorm(torch.autograd.Function):
    """x / √(mean x² + ε) · weight over the last axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        rows_MD, out = x.reshape(-1, len(weight_D)), torch.empty(x.shape, dtype=x.dtype)
        out_MD = out.view(rows_MD.shape)
        inverse_M1 = rows_MD.new_empty(len(rows_MD), 1)
        for at in pieces(len(rows_MD)):
            torch.linalg.vector_norm(rows_MD[at], dim=-1, keepdim=True, out=inverse_M1[at])
            inverse_M1[at].square_().div_(len(weight_D)).add_(eps).rsqrt_()
            torch.mul(rows_MD[at], inverse_M1[at], out=out_MD[at]).mul_(weight_D)
        ctx.save_for_backward(rows_MD, weight_D, inverse_M1)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_out: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        rows_MD, weight_D, inverse_M1 = ctx.saved_tensors
        to_out_MD = to_out.reshape(rows_MD.shape)
        to_rows_MD, to_weight_D = torch.empty_like(rows_MD), torch.zeros_like(weight_D)
        for at in pieces(len(rows_MD)):
            # With n = x·inverse: d/dx = inverse · (g·w - n · mean(g·w·n)), d/dw = Σ g·n.
            normed, found = rows_MD[at] * inverse_M1[at], to_rows_MD[at]
            torch.mul(to_out_MD[at], normed, out=found)
            to_weight_D += found.sum(0)
            along_M1 = (found @ weight_D)[:, None].div_(-len(weight_D))
            torch.mul(to_out_MD[at], weight_D, out=found).addcmul_(normed, along_M1).mul_(inverse_M1[at])
        return to_rows_MD.view(to_out.shape), to_weight_D, None


class Rotate(torch.autograd.Function):
    """Each head's halves (a, b) become (a·cos - b·sin, b·cos + a·sin); backwards the angle is the other way."""

    @staticmethod
    def forward(ctx: Any, x_TNH: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TH, sin_TH)
        return _turned(x_TNH, cos_TH, sin_TH, back=False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_out_TNH: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _turned(to_out_TNH, *ctx.saved_tensors, back=True), None, None


def _turned(x_TNH: Tensor, cos_TH: Tensor, sin_TH: Tensor, *, back: bool) -> Tensor:
    out_TNH = torch.empty(x_TNH.shape, dtype=x_TNH.dtype)
    half, sign = x_TNH.shape[-1] // 2, -1 if back else 1
    for at in pieces(len(x_TNH)):
        x, out, cos, sin = x_TNH[at], out_TNH[at], cos_TH[at, None], sin_TH[at, None]
        torch.mul(x, cos, out=out)
        out[..., :half].addcmul_(x[..., half:], sin[..., half:], value=-sign)
        out[..., half:].addcmul_(x[..., :half], sin[..., :half], value=sign)
    return out_TNH


class SwiGLU(torch.autograd.Function):
    """(silu(x·gateᵀ) · x·upᵀ)·downᵀ; of the width in between two tensors are kept instead of four."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
        wide = (len(x_TD), len(gate_FD))
        gated_TF, raised_TF, out_TD = x_TD.new_empty(wide), x_TD.new_empty(wide), torch.empty_like(x_TD)
        for at in pieces(len(x_TD)):
            torch.mm(x_TD[at], gate_FD.T, out=gated_TF[at])
            torch.mm(x_TD[at], up_FD.T, out=raised_TF[at])
            torch.mm(torch.nn.functional.silu(gated_TF[at]).mul_(raised_TF[at]), down_DF.T, out=out_TD[at])
        ctx.save_for_backward(x_TD, gate_FD, up_FD, down_DF, gated_TF, raised_TF)
        return out_TD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_out_TD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_TD, gate_FD, up_FD, down_DF, gated_TF, raised_TF = ctx.saved_tensors
        to_x_TD = torch.empty_like(x_TD)
        learns = ctx.needs_input_grad[1:]
        to_gate, to_up, to_down = (
            torch.zeros_like(weight) if learn else None
            for weight, learn in zip((gate_FD, up_FD, down_DF), learns, strict=True)
        )
        for at in pieces(len(x_TD)):
            x, gated, raised, to_out = x_TD[at], gated_TF[at], raised_TF[at], to_out_TD[at]
            let_through, to_joined = torch.nn.functional.silu(gated), to_out @ down_DF
            if to_down is not None:
                torch.addmm(to_down, to_out.T, let_through * raised, out=to_down)
            to_gated = torch.ops.aten.silu_backward(to_joined * raised, gated)
            to_raised = to_joined.mul_(let_through)
            to_x = torch.mm(to_gated, gate_FD, out=to_x_TD[at])
            torch.addmm(to_x, to_raised, up_FD, out=to_x)
            if to_gate is not None:
                torch.addmm(to_gate, to_gated.T, x, out=to_gate)
            if to_up is not None:
                torch.addmm(to_up, to_raised.T, x, out=to_up)
        return to_x_TD, to_gate, to_up, to_down
