"""GPT-OSS's mixture of experts (InternVL3.5-20B-A4B): biases everywhere and a clamped SwiGLU.

Model card: arXiv 2508.10925; official code: github.com/openai/gpt-oss, `torch/model.py`. Its attention (sinks,
windows in every other layer) needs no code here: `Layer` says it, `attend` does it.
"""

import torch
from torch import Tensor, nn

from cascadevl.models.config import ExpertsConfig
from cascadevl.ops.experts import Linear, apply_experts

SIGMOID_SLOPE = 1.702
"""x · sigmoid(1.702 x) approximates GELU (arXiv 1606.08415)."""


def clamped_swiglu(gate_up: Tensor, limit: float) -> Tensor:
    """(…, 2F), gate and up interleaved -> (…, F).

    The gate is bounded from above only (below it fades by itself); the up half is bounded on both sides and
    centred on one, so that a network of zeros lets its gate through.
    """
    gate = gate_up[..., ::2].clamp(max=limit)
    up = gate_up[..., 1::2].clamp(-limit, limit)
    return (up + 1) * (gate * torch.sigmoid(gate * SIGMOID_SLOPE))


class GptOssExperts(nn.Module):
    """E networks, weights stored inputs first: `gate_up_proj` (E, D, 2F) and `down_proj` (E, F, D)."""

    def __init__(self, hidden_size: int, config: ExpertsConfig, limit: float) -> None:
        super().__init__()
        num_experts, width = config.num_experts, config.mlp_size
        self.limit = limit
        self.gate_up_proj = nn.Parameter(torch.zeros(num_experts, hidden_size, 2 * width))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(num_experts, 2 * width))
        self.down_proj = nn.Parameter(torch.zeros(num_experts, width, hidden_size))
        self.down_proj_bias = nn.Parameter(torch.zeros(num_experts, hidden_size))

    def forward(self, rows_AD: Tensor, linear: Linear) -> Tensor:
        gate_up_AF = linear(rows_AD, self.gate_up_proj, self.gate_up_proj_bias)
        return linear(clamped_swiglu(gate_up_AF, self.limit), self.down_proj, self.down_proj_bias)


class GptOssMLP(nn.Module):
    """Router and experts. The softmax is taken over the chosen experts alone, so weights always sum to one."""

    def __init__(self, hidden_size: int, experts: ExpertsConfig, limit: float = 7.0) -> None:
        super().__init__()
        self.config = experts
        self.router = nn.Linear(hidden_size, experts.num_experts)
        self.experts = GptOssExperts(hidden_size, experts, limit)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        chosen_Tk, experts_Tk = self.router(hidden_TD).topk(self.config.num_per_token, dim=-1)
        return apply_experts(hidden_TD, chosen_Tk.softmax(-1), experts_Tk, self.config.num_experts, self.experts)
