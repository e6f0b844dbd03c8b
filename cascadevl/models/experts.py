"""Qwen3-MoE's mixture of experts, in the place of a block's dense MLP (InternVL3.5-30B-A3B, -241B-A28B, Intern-S1).

No shared expert, no bias. Parameters are stacked over experts, as current transformers names and shapes
them; folders that name each expert are stacked when they are read.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascadevl.models.config import ExpertsConfig
from cascadevl.ops.experts import Linear, Weight, apply_experts, route


class Experts(nn.Module):
    """E SwiGLU networks: `gate_up_proj` (E, 2F, D), gate rows before up rows, and `down_proj` (E, D, F)."""

    def __init__(self, hidden_size: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(config.num_experts, 2 * config.mlp_size, hidden_size))
        self.down_proj = nn.Parameter(torch.zeros(config.num_experts, hidden_size, config.mlp_size))

    def forward(self, rows_AD: Tensor, linear: Linear) -> Tensor:
        gate_AF, up_AF = linear(rows_AD, _inputs_first(self.gate_up_proj), None).chunk(2, dim=-1)
        return linear(F.silu(gate_AF) * up_AF, _inputs_first(self.down_proj), None)


def _inputs_first(weight_EOI: Tensor | nn.ModuleList) -> Weight:
    """Weights of few bits (models/quant_linear.py) are layers, and turn themselves."""
    return weight_EOI.mT if isinstance(weight_EOI, Tensor) else weight_EOI


class SparseMLP(nn.Module):
    """Router (`gate`) and experts; each token is answered by its best few.

    The logits that `balance_loss` takes are the output of `gate`.
    """

    def __init__(self, hidden_size: int, experts: ExpertsConfig) -> None:
        super().__init__()
        self.config = experts
        self.gate = nn.Linear(hidden_size, experts.num_experts, bias=False)
        self.experts = Experts(hidden_size, experts)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        weights_Tk, experts_Tk = route(self.gate(hidden_TD), self.config.num_per_token, self.config.normalise)
        return apply_experts(hidden_TD, weights_Tk, experts_Tk, self.config.num_experts, self.experts)
