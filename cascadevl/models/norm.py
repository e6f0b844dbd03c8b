"""RMS norm as a module, for the tower of 6B and for all decoders."""

import torch
from torch import Tensor, nn

from cascadevl.ops.norm import rms_norm


class RMSNorm(nn.Module):
    """RMS norm with a weight; see `ops/norm.py`."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)
