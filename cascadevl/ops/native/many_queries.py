"""Attention of many queries in C: prefill, and the vision tower.

torch's own kernel for CPUs takes twice as long where queries see only earlier keys: it computes what they do not see.
"""

import ctypes

import torch
from torch import Tensor

from cascadevl.ops.native.library import Library, library, pointer

LONGEST_HEAD = 256
"""KEYS of many_queries.c."""

FEW = 8
"""So many queries or fewer are not worth laying out the keys."""

_Strides = ctypes.c_int64 * 3


class _ManyQueries(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("num_sequences", "num_queries", "num_keys", "num_heads", "num_kv_heads")),
        *((name, ctypes.c_int32) for name in ("head_size", "causal", "window", "brief")),
        ("scale", ctypes.c_float),
        ("sinks", ctypes.c_void_p),
        *((name, _Strides) for name in ("q_strides", "k_strides", "v_strides", "out_strides")),
    )


def serves(q_RNTH: Tensor, k_RKTH: Tensor, v_RKTH: Tensor) -> bool:
    """Can the kernel be asked: fp32 on the CPU, more than a few queries, no gradients, and a compiler was here."""
    if torch.compiler.is_compiling():  # before any length is asked for: each would be a guard, and compiled for again
        return False
    tensors = q_RNTH, k_RKTH, v_RKTH
    return (
        q_RNTH.shape[2] > FEW
        and q_RNTH.shape[3] <= LONGEST_HEAD
        and all(x.dtype == torch.float32 and x.device.type == "cpu" and x.stride(3) == 1 for x in tensors)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
        and library() is not None
    )


def attend(
    q_RNTH: Tensor,
    k_RKTH: Tensor,
    v_RKTH: Tensor,
    scale: float,
    *,
    causal: bool,
    window: int | None = None,
    sinks_N: Tensor | None = None,
    brief: bool = False,
    loaded: Library | None = None,
) -> Tensor:
    """(R, N, T, H), as softmax attention gives it; only where `serves`. A query has the same bits in any company.

    `causal`: the last query sees every key, and each sees at most `window`. `brief` rounds what is multiplied to bf16
    where the processor multiplies that faster; sums are fp32 all the same.
    """
    loaded = loaded or library()
    assert loaded is not None and (window is None or causal)
    sequences, heads, queries, size = q_RNTH.shape
    out_RNTH = torch.empty(sequences, queries, heads, size).transpose(1, 2)
    sinks_N = None if sinks_N is None else sinks_N.detach().float().contiguous()
    asked = _ManyQueries(
        sequences, queries, k_RKTH.shape[2], heads, k_RKTH.shape[1], size, causal, window or 0, brief, scale,
        pointer(sinks_N), *(_Strides(*x.stride()[:3]) for x in (q_RNTH, k_RKTH, v_RKTH, out_RNTH)),
    )  # fmt: skip
    if not loaded.c.attend_many(*map(pointer, (out_RNTH, q_RNTH, k_RKTH, v_RKTH)), ctypes.byref(asked)):
        raise MemoryError(f"No memory for the keys and values of {k_RKTH.shape[2]} tokens.")
    return out_RNTH
