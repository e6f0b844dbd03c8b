"""Mixture of experts as functions: choose, bring the rows of one expert together, weigh and add.

A token is sent to its best k of E feed-forward networks and gets their weighted sum. What one network
computes is the caller's: an `Expert` gets rows and asks `linear(rows, weight, bias)`, and this file
decides what that means, one expert at a time or all experts in one differentiable pass over sorted rows.
No row is padded, none is dropped for capacity.

k  experts per token        A  assignments, T × k: a row for each token and expert that meet
I, O  inputs and outputs of one linear map
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Weight = Tensor | nn.ModuleList
"""weight_EIO, or a linear layer for each expert, as weights of few bits are."""

Linear = Callable[[Tensor, Weight, Tensor | None], Tensor]
"""(rows_AI, weight_EIO, bias_EO or None) -> rows_AO; which expert serves which row, the callable knows."""

Expert = Callable[[Tensor, Linear], Tensor]
"""(rows_AD, linear) -> rows_AD: the network, written as if there were one."""

Run = tuple[int, slice]
"""An expert and the rows that belong to it."""

CACHE_BYTES = 1 << 20
"""Rows beyond this leave a core's own cache before the next operation reads them."""


def route(logits_TE: Tensor, num_per_token: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """(weights_Tk, experts_Tk): softmax over all experts in fp32, then the best k (Qwen3-MoE).

    Weights have the dtype of the logits; `normalise` lets those of a token sum to one.
    """
    weights_Tk, experts_Tk = logits_TE.float().softmax(-1).topk(num_per_token, -1)
    if normalise:
        weights_Tk = weights_Tk / weights_Tk.sum(-1, keepdim=True)
    return weights_Tk.to(logits_TE.dtype), experts_Tk


def balance_loss(logits_TE: Tensor, num_per_token: int) -> Tensor:
    """How unevenly one layer uses its experts: E · Σ f·P (Switch Transformer, arXiv 2101.03961, eq. 4-6).

    f is the number of times an expert was chosen per token, P its mean probability. A fair router gives
    num_per_token, the least there is when f and P agree; one that always takes the same experts, up to E.
    The gradient flows through P alone. A batch of several layers as transformers weighs it: pass their
    logits laid end to end.
    """
    num_tokens, num_experts = logits_TE.shape
    probabilities_TE = logits_TE.float().softmax(-1)
    chosen_A = probabilities_TE.topk(num_per_token, -1).indices.flatten()
    counts_E = torch.bincount(chosen_A, minlength=num_experts)
    # No token: no imbalance, and no 0 / 0.
    return num_experts * (counts_E * probabilities_TE.sum(0)).sum() / max(num_tokens, 1) ** 2


def apply_experts(
    hidden_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor, num_experts: int, expert: Expert
) -> Tensor:
    """Sum over a token's k experts of weight times output, (T, D)."""
    if torch.compiler.is_compiling():
        # Runs differ from call to call: traced, each would be compiled anew.
        untraced: Any = torch.compiler.disable(apply_experts)
        return untraced(hidden_TD, weights_Tk, experts_Tk, num_experts, expert)
    if experts_Tk.device.type == "cuda" and not torch.is_grad_enabled():
        return apply_without_waiting(hidden_TD, weights_Tk, experts_Tk, num_experts, expert)
    num_tokens, num_per_token = experts_Tk.shape
    if num_tokens == 1:
        # Decoding: one row for each expert, nothing to sort.
        runs = [(index, slice(row, row + 1)) for row, index in enumerate(experts_Tk[0].tolist())]
        return weights_Tk @ expert(hidden_TD.expand(num_per_token, -1), partial(grouped_linear, runs))
    order_A, runs = sort_by_expert(experts_Tk, num_experts)
    rows_AD = hidden_TD.index_select(0, order_A // num_per_token)
    if torch.is_grad_enabled() or rows_AD.nbytes <= CACHE_BYTES:
        rows_AD = expert(rows_AD, partial(grouped_linear, runs))
    else:
        # One expert after the other, so that what it computes between its maps stays in the cache.
        for index, run in runs:
            rows_AD[run] = expert(rows_AD[run], partial(linear_of_one, index))
    # A weighted sum of looked-up rows: embedding_bag does it without writing the looked-up rows down.
    places_Tk = order_A.argsort().view(num_tokens, num_per_token)
    return F.embedding_bag(places_Tk, rows_AD, mode="sum", per_sample_weights=weights_Tk)


def apply_without_waiting(
    hidden_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor, num_experts: int, expert: Expert
) -> Tensor:
    """`apply_experts` on a GPU: how many rows an expert has stays there, as asking would wait for all that is still
    being computed, in every layer. Without gradients; not yet run on a GPU."""
    num_tokens, num_per_token = experts_Tk.shape
    experts_A, order_A = experts_Tk.flatten().sort()
    ends_E = torch.searchsorted(
        experts_A, torch.arange(num_experts, device=experts_A.device), right=True, out_int32=True
    )
    rows_AD = hidden_TD.index_select(0, order_A // num_per_token)
    rows_AD = expert(rows_AD, partial(grouped_on_device, experts_A, ends_E))
    places_Tk = order_A.argsort().view(num_tokens, num_per_token)
    return F.embedding_bag(places_Tk, rows_AD, mode="sum", per_sample_weights=weights_Tk)


def sort_by_expert(experts_Tk: Tensor, num_experts: int) -> tuple[Tensor, list[Run]]:
    """The order that brings each expert's assignments together, and a run for every expert that has some."""
    experts_A = experts_Tk.flatten()
    runs, start = [], 0
    for index, count in enumerate(torch.bincount(experts_A, minlength=num_experts).tolist()):
        if count:
            runs.append((index, slice(start, start + count)))
            start += count
    return experts_A.argsort(), runs


def linear_of_one(index: int, rows_AI: Tensor, weight_EIO: Weight, bias_EO: Tensor | None) -> Tensor:
    """All rows belong to one expert, whose weight is read in place."""
    if isinstance(weight_EIO, nn.ModuleList):
        out_AO = weight_EIO[index](rows_AI)
        return out_AO if bias_EO is None else out_AO + bias_EO[index]
    if bias_EO is None:
        return rows_AI @ weight_EIO[index]
    return torch.addmm(bias_EO[index], rows_AI, weight_EIO[index])


def grouped_linear(runs: list[Run], rows_AI: Tensor, weight_EIO: Weight, bias_EO: Tensor | None) -> Tensor:
    """Each run of rows times the weight of its expert; differentiable in rows, weights and biases."""
    if isinstance(weight_EIO, nn.ModuleList):
        return torch.cat([linear_of_one(index, rows_AI[run], weight_EIO, bias_EO) for index, run in runs])
    if torch.is_grad_enabled():
        return _GroupedLinear.apply(rows_AI, weight_EIO, bias_EO, runs)
    return _grouped(rows_AI, weight_EIO, bias_EO, runs)


def grouped_on_device(
    experts_A: Tensor, ends_E: Tensor, rows_AI: Tensor, weight_EIO: Weight, bias_EO: Tensor | None
) -> Tensor:
    """Rows in the order of their experts, and where each expert's end. What torch's kernel refuses (numbers that are
    not bf16, rows of no multiple of 16 bytes, weights of few bits) has to ask for the ends after all."""
    if (
        isinstance(weight_EIO, nn.ModuleList)
        or not rows_AI.dtype == weight_EIO.dtype == torch.bfloat16
        or any(size % 8 for size in weight_EIO.shape[1:])
    ):
        ends = ends_E.tolist()
        runs = [(index, slice(*each)) for index, each in enumerate(pairwise([0, *ends])) if each[0] < each[1]]
        return grouped_linear(runs, rows_AI, weight_EIO, bias_EO)
    out_AO = F.grouped_mm(rows_AI, weight_EIO, offs=ends_E)
    return out_AO if bias_EO is None else out_AO + bias_EO[experts_A]


def _grouped(rows_AI: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None, runs: list[Run]) -> Tensor:
    out_AO = rows_AI.new_empty(len(rows_AI), weight_EIO.shape[2])
    for index, run in runs:
        if bias_EO is None:
            torch.mm(rows_AI[run], weight_EIO[index], out=out_AO[run])
        else:
            torch.addmm(bias_EO[index], rows_AI[run], weight_EIO[index], out=out_AO[run])
    return out_AO


class _GroupedLinear(torch.autograd.Function):
    """Gradients are written once, to where they belong.

    Autograd's own way through `weight[index]` fills and adds a zero tensor as large as all experts, for each
    expert. torch's `grouped_mm` avoids that too, but refuses widths that are no multiple of 16 bytes, float64,
    and gradients that are broadcast (what `sum()` sends back).
    """

    @staticmethod
    def forward(ctx: Any, rows_AI: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None, runs: list[Run]) -> Tensor:
        ctx.save_for_backward(rows_AI, weight_EIO)
        ctx.runs = runs
        return _grouped(rows_AI, weight_EIO, bias_EO, runs)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad_AO: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        rows_AI, weight_EIO = ctx.saved_tensors
        to_rows, to_weight, to_bias, _ = ctx.needs_input_grad
        weight_EOI, rows_IA = weight_EIO.mT, rows_AI.T
        grad_rows_AI = torch.empty_like(rows_AI) if to_rows else None
        grad_weight_EIO = torch.empty_like(weight_EIO) if to_weight else None
        grad_bias_EO = grad_AO.new_empty(len(weight_EIO), grad_AO.shape[1]) if to_bias else None
        for index, run in ctx.runs:
            own_AO = grad_AO[run]
            if grad_rows_AI is not None:
                torch.mm(own_AO, weight_EOI[index], out=grad_rows_AI[run])
            if grad_weight_EIO is not None:
                torch.mm(rows_IA[:, run], own_AO, out=grad_weight_EIO[index])
            if grad_bias_EO is not None:
                torch.sum(own_AO, 0, out=grad_bias_EO[index])
        # Nobody has written to the experts without a token.
        idle = list(set(range(len(weight_EIO))).difference(index for index, _ in ctx.runs))
        for gradient in (grad_weight_EIO, grad_bias_EO):
            if gradient is not None and idle:
                gradient[idle] = 0
        return grad_rows_AI, grad_weight_EIO, grad_bias_EO, None
