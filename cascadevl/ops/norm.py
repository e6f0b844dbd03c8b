"""Root-mean-square norm in the precision of the released code."""

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Statistics in fp32, rounded to x's type, then scaled (Qwen2, Llama, InternViT-6B)."""
    return weight_D * F.rms_norm(x.float(), weight_D.shape, eps=eps).to(x.dtype)
