"""Who may serve a linear layer with weights of few bits: the table, and the choice.

Never silently slow: what no kernel serves is dequantised anew for each call, and the log says so once.
"""

import functools
import logging
from typing import Literal

import torch
from torch import Tensor

from cascadevl.ops import quantize
from cascadevl.ops.formats import Format, Quantized
from cascadevl.ops.native import linear as native
from cascadevl.ops.triton import available
from cascadevl.ops.triton import linear as gpu

Implementation = Literal["native", "triton", "dequantised"]
"""`native`: linear.c, activations in 8 bits. `triton`: linear_kernel.py, activations as they are. `dequantised`: the
weights in full for this call, and F.linear."""

Packed = native.Packed | gpu.Packed

_log = logging.getLogger("cascadevl")

TABLE: dict[tuple[str, str], dict[int, Implementation]] = {
    # Times as fast as F.linear in fp32 with 1, 8 and 512 rows, over the shapes of benchmarks/results/kernels.json
    # (AVX-512 VNNI) and kernels_avx2.json (the same processor without it).
    ("int8", "cpu"): {1: "native"},  # 4–16, 6–12, 4–5; with AVX2 3–11, 2–5, 1.4–1.7
    ("int4", "cpu"): {1: "native"},  # 5–24, 5–18, 3–4.5; with AVX2 3–15, 2–6, 1.3–2
    ("mxfp4", "cpu"): {1: "native"},  # 4–19, 5–16, 3–4; with AVX2 3–13, 2–6, 1.3–1.7
    ("fp8", "cpu"): {1: "native"},  # 1.3–5, 2–5, 1.1–1.3; with AVX2 1.1–3.6, 1.2–2.9, and then 0.7–0.9, as dequantised
    # Not measured yet: benchmarks/gpu/kernels.py tells from how many rows on another should serve.
    ("int8", "cuda"): {1: "triton"},
    ("int4", "cuda"): {1: "triton"},
    ("mxfp4", "cuda"): {1: "triton"},
    ("fp8", "cuda"): {1: "triton"},
}
"""(kind, device) -> from how many rows on -> who serves."""


def choose(format: Format, device: torch.device, num_rows: int, gradients: bool = False) -> Implementation:
    """What the table says; kernels have no gradients."""
    rows = TABLE.get((format.kind, device.type), {})
    if gradients or not rows:
        return "dequantised"
    return rows[max((start for start in rows if start <= num_rows), default=min(rows))]


def prepare(quantized: Quantized, bias_F: Tensor | None) -> Packed | None:
    """The weight as its kernel wants it; None where no kernel will ever serve it."""
    kind, device = quantized.format.kind, quantized.quants.device
    wanted = TABLE.get((kind, device.type), {}).values()
    if "triton" in wanted and available():
        return gpu.pack(quantized, bias_F)
    library = native.library() if "native" in wanted else None
    if library is None or quantized.shape[1] > native.MAX_INPUTS:
        _say_slow(kind, device.type)
        return None
    return native.pack(quantized, bias_F, library)


@functools.cache
def _say_slow(kind: str, device: str) -> None:
    _log.warning(
        "No kernel serves %s weights on this %s: each call dequantises them, which is slower than weights in fp32. "
        "On a CPU, install a C compiler, on a GPU Triton; or use the layers that QuantLinear.dequantized() gives.",
        kind,
        device,
    )


def plain(weight: Quantized | Packed) -> Quantized:
    """The weight as plain tensors, made for this call where a kernel holds it otherwise."""
    if isinstance(weight, native.Packed):
        return native.unpack(weight)
    return gpu.unpack(weight) if isinstance(weight, gpu.Packed) else weight


def linear(x: Tensor, weight: Quantized | Packed, bias_F: Tensor | None) -> Tensor:
    """(…, D) -> (…, F), in x's dtype. What `prepare` gave holds the bias already, and gets it all the same."""
    if not isinstance(weight, Quantized):
        gradients = torch.is_grad_enabled() and x.requires_grad
        chosen = choose(weight.format, x.device, x.numel() // x.shape[-1], gradients)
        if chosen == "native" and isinstance(weight, native.Packed):
            return native.linear(x, weight)
        if chosen == "triton" and isinstance(weight, gpu.Packed):
            return gpu.linear(x, weight)
    return quantize.linear(x, plain(weight), None if bias_F is None else bias_F.to(x.dtype))
