"""Root-mean-square norm in the precision of the released code."""

import torch.nn.functional as F
from torch import Tensor

from cascadevl.ops.by_hand import RMSNorm, by_hand


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Statistics in fp32, rounded to x's type, then scaled (Qwen2, Llama, InternViT-6B)."""
    if by_hand(x, weight_D):
        return RMSNorm.apply(x, weight_D, eps)  # type: ignore[return-value]
    return weight_D * F.rms_norm(x.float(), weight_D.shape, eps=eps).to(x.dtype)
