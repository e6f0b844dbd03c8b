"""What stands between the matrix products of a decoder layer, each as one kernel. Not yet run on a GPU.

Every step is rounded where the modules of models/ round it, so that both give the same but for the order of sums.
"""

import torch
from torch import Tensor

from cascadevl.ops.kv_formats import LEVELS, Kept
from cascadevl.ops.triton import launch, power_of_two
from cascadevl.ops.triton.paged_attention import KINDS, numbers_of


def norm(hidden_TD: Tensor, weight_D: Tensor, eps: float, added_TD: Tensor | None = None) -> Tensor:
    """RMS norm of hidden, to which `added_TD` is added first, in place."""
    from cascadevl.ops.triton.fused_kernel import rms_norm

    assert hidden_TD.is_contiguous() and (added_TD is None or added_TD.is_contiguous())
    out_TD, width = torch.empty_like(hidden_TD), hidden_TD.shape[1]
    block = power_of_two(width)
    warps = 8 if block > 2048 else 4
    launch(rms_norm, (len(hidden_TD),), hidden_TD, weight_D, added_TD, out_TD, width, eps, BLOCK=block, num_warps=warps)
    return out_TD


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """silu(gate) · up."""
    from cascadevl.ops.triton.fused_kernel import silu_times

    assert gate_TF.is_contiguous() and up_TF.is_contiguous()
    out_TF = torch.empty_like(gate_TF)
    launch(silu_times, (-(-gate_TF.numel() // 1024),), gate_TF, up_TF, out_TF, gate_TF.numel(), BLOCK=1024)
    return out_TF


def place(
    heads: tuple[Tensor, Tensor, Tensor],
    norms: tuple[Tensor | None, Tensor | None],
    eps: float,
    rope: tuple[Tensor, Tensor],
    kept: tuple[Kept, Kept],
    tables_RP: Tensor,
    request_T: Tensor,
    position_T: Tensor,
) -> Tensor:
    """Queries (T, N, H), normed and rotated; keys, likewise, and values are then in their pages, as `Kept.put` does.

    `heads`: q_TNH, k_TKH and v_TKH as they were projected; `norms`: weights of q's and k's, if any.
    """
    from cascadevl.ops.triton.fused_kernel import place_heads

    (q_TNH, k_TKH, v_TKH), (cos_TH, sin_TH), (keys, values) = heads, rope, kept
    assert all(x.is_contiguous() for x in (*heads, *rope, keys.numbers, values.numbers))
    num_tokens, num_heads, size = q_TNH.shape
    out_TNH, format = torch.empty_like(q_TNH), keys.format
    launch(
        place_heads, (num_tokens, num_heads + 2 * k_TKH.shape[1]),
        q_TNH, k_TKH, v_TKH, *norms, cos_TH, sin_TH, out_TNH, numbers_of(keys), keys.ranges, numbers_of(values),
        values.ranges, tables_RP, request_T, position_T, eps, tables_RP.stride(0), KIND=KINDS[format],
        LEVELS=LEVELS.get(format, 0), PAGE=keys.numbers.shape[2], HALF=size // 2, NUM_HEADS=num_heads,
        NUM_KV_HEADS=k_TKH.shape[1], BLOCK=power_of_two(size // 2), num_warps=1,
    )  # fmt: skip
    return out_TNH
