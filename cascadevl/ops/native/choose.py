"""The likeliest token of each row of scores, in C.

After a step, whose weights have filled the processor's caches, a framework's first calls take longest: for few and
short rows several of them cost more than the choice.
"""

import ctypes

import torch
from torch import Tensor

from cascadevl.ops.native.library import library


def likeliest(scores_TV: Tensor, banned: Tensor) -> list[int]:
    """Tokens, the first of those with equal scores; -1 where a score is NaN or the greatest infinite.

    Changes `scores_TV`, on the CPU and contiguous: those `banned`, int64, are -inf afterwards.
    """
    loaded = library()
    if loaded is None:
        scores_TV[:, banned] = float("-inf")
        top_T, chosen_T = scores_TV.max(1)  # NaN, if there is one
        return torch.where(top_T.isfinite(), chosen_T, -1).tolist()
    assert scores_TV.is_contiguous() and scores_TV.dtype == torch.float32
    rows, num = scores_TV.shape
    chosen = (ctypes.c_int64 * rows)()
    loaded.c.choose(chosen, scores_TV.data_ptr(), rows, num, banned.data_ptr(), len(banned))
    return list(chosen)
