"""Attention over pages for single tokens of many requests, in C. Its results have the same bits in any batch."""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cascadevl.core import native
from cascadevl.ops.attention import Layer


def serves(q_TNH: Tensor, keys_PKSH: Tensor) -> bool:
    """Can the kernel be asked: fp32 on the CPU, heads of a multiple of 8, and a compiler was here."""
    plain = all(x.dtype == torch.float32 and x.device.type == "cpu" for x in (q_TNH, keys_PKSH))
    return plain and q_TNH.shape[-1] % 8 == 0 and not torch.is_grad_enabled() and _kernel() is not None


def paged_attention(
    layer: Layer,
    q_TNH: Tensor,
    keys_PKSH: Tensor,
    values_PKSH: Tensor,
    tables_RP: Tensor,
    request_T: Tensor,
    position_T: Tensor,
) -> Tensor:
    """(T, N, H): token t of request `request_T[t]` sees its tokens 0 … `position_T[t]`.

    Legend: P pages, S tokens of a page, R requests. Tables and the last two are int32. Only where `serves`.
    """
    kernel = _kernel()
    assert kernel is not None
    q_TNH, out_TNH = q_TNH.contiguous(), torch.empty(q_TNH.shape)
    sinks = layer.sinks_N.detach().float().contiguous() if layer.sinks_N is not None else None
    done = kernel(
        out_TNH.data_ptr(), q_TNH.data_ptr(), keys_PKSH.data_ptr(), values_PKSH.data_ptr(), tables_RP.data_ptr(),
        request_T.data_ptr(), position_T.data_ptr(), len(q_TNH), q_TNH.shape[1], keys_PKSH.shape[1], q_TNH.shape[2],
        keys_PKSH.shape[2], tables_RP.shape[1], layer.scale, layer.window or 0,
        sinks.data_ptr() if sinks is not None else None,
    )  # fmt: skip
    if not done:
        raise MemoryError(f"No memory for the scores of {len(q_TNH)} tokens.")
    return out_TNH


@functools.cache
def _kernel() -> Callable[..., int] | None:
    library = native.load(Path(__file__).with_suffix(".c"), ("-ffp-contract=fast",))
    if library is None:
        return None
    kernel = library.paged_attention
    kernel.argtypes = [*[ctypes.c_void_p] * 7, *[ctypes.c_int] * 6, ctypes.c_float, ctypes.c_int, ctypes.c_void_p]
    return kernel
