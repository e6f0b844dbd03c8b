"""Weights of few bits in the order in which linear.c reads them, and its one function."""

import ctypes
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from cascadevl.core.errors import CheckpointError
from cascadevl.ops.formats import Format, Quantized, join_nibbles, split_nibbles
from cascadevl.ops.native.library import Library, library, pointer

KINDS = {("int8", False): 0, ("int4", False): 1, ("int4", True): 2, ("mxfp4", False): 3, ("fp8", False): 4}
"""Of linear.c, for formats without and with zeros."""

PLAIN_KIND = 5
"""And for weights in fp32 as torch has them."""

PANELS = 4
"""Weights are padded to as many panels, MAX_PANELS of linear.c."""

INPUTS = 64
"""And int8 rows to as many inputs, its INPUT_PADDING."""

MAX_INPUTS = 65_536
"""The sums of longer rows might not fit 32 bits."""


__all__ = ["Library", "Packed", "Weight", "library", "linear", "pack", "unpack"]


class Weight(ctypes.Structure):
    """A weight for C."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "num_outputs", "num_inputs", "group")),
        *((name, ctypes.c_void_p) for name in ("quants", "scales", "zeros", "bias")),
    )


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight and bias as the C code wants them: panels of outputs, a panel's numbers interleaved."""

    library: Library
    format: Format
    shape: tuple[int, int]
    """F and D, without padding."""
    quants: Tensor
    scales: Tensor
    zeros: Tensor | None
    bias: Tensor | None
    weight: Weight = field(repr=False)


def pack(quantized: Quantized, bias_F: Tensor | None, library: Library) -> Packed:
    """Bring a weight into the order of linear.c; `unpack` is the way back."""
    format, (outputs, width) = quantized.format, quantized.shape
    assert width <= MAX_INPUTS and quantized.quants.device.type == "cpu"
    _refuse_nan(quantized)
    lanes = library.lanes
    if format.kind == "int8":
        quants = _panels(
            F.pad(quantized.quants, (0, -width % (format.group or INPUTS))).view(torch.uint8) ^ 128, lanes, 4
        )
    elif format.kind == "fp8":
        quants = _panels(quantized.quants.view(torch.uint8), lanes, 1)
    else:
        low, high = split_nibbles(quantized.quants).unflatten(1, (-1, 2, 4)).unbind(2)
        quants = _panels((low | high << 4).flatten(1), lanes, 4)
    scales = quantized.scales
    if format.kind == "mxfp4":
        scales = scales.clamp(min=2) - 1  # the C code doubles E2M1; a scale under 2^-125 is as good as zero
    elif format.kind == "fp8":
        scales = scales.repeat_interleave(format.outputs, 0)[:outputs] * 256  # as its numbers come out 2^8 too small
    scales = _panels(scales, lanes, 1)
    zeros = None if quantized.zeros is None else _panels(quantized.zeros, lanes, 1)
    bias = None if bias_F is None else F.pad(bias_F.detach().float(), (0, -outputs % (PANELS * lanes)))
    group = format.group or (width if format.kind == "fp8" else 0)
    pointers = map(pointer, (quants, scales, zeros, bias))
    weight = Weight(KINDS[format.kind, format.zeros], outputs, width, group, *pointers)
    return Packed(library, format, (outputs, width), quants, scales, zeros, bias, weight)


def unpack(packed: Packed) -> Quantized:
    """The very tensors that were packed (but for MXFP4 scales under 2^-125)."""
    format, (outputs, width) = packed.format, packed.shape
    if format.kind == "int8":
        quants = (_rows(packed.quants, 4)[:outputs, :width] ^ 128).view(torch.int8)
    elif format.kind == "fp8":
        quants = _rows(packed.quants, 1)[:outputs].view(torch.float8_e4m3fn)
    else:
        bytes_FB = _rows(packed.quants, 4)[:outputs].unflatten(1, (-1, 4))
        quants = join_nibbles(torch.stack([bytes_FB & 15, bytes_FB >> 4], 2).flatten(1))
    scales = _rows(packed.scales, 1)[:outputs]
    if format.kind == "mxfp4":
        scales = scales + 1
    elif format.kind == "fp8":
        scales = scales[:: format.outputs] / 256
    zeros = None if packed.zeros is None else _rows(packed.zeros, 1)[:outputs].contiguous()
    return Quantized(format, quants.contiguous(), scales.contiguous(), zeros)


def linear(x: Tensor, packed: Packed) -> Tensor:
    """(…, D) -> (…, F) in x's dtype, computed as `quantize.linear_dynamic` does."""
    outputs, width = packed.shape
    assert x.shape[-1] == width and x.device.type == "cpu", (x.shape, packed.shape, x.device)
    # Asked first, as at one row and 576 inputs each call of torch costs a tenth of the work.
    rows = x if x.dtype == torch.float32 and x.is_contiguous() else x.to(torch.float32).contiguous()
    num_rows = x.numel() // width
    out = torch.empty(*x.shape[:-1], outputs)
    if not packed.library.c.linear(out.data_ptr(), rows.data_ptr(), num_rows, ctypes.byref(packed.weight)):
        raise MemoryError(f"No memory to quantise {num_rows} rows of {width} activations.")
    return out if x.dtype == torch.float32 else out.to(x.dtype)


def _refuse_nan(quantized: Quantized) -> None:
    if quantized.format.kind == "mxfp4":
        damaged = (quantized.scales == 255).any()
    else:
        damaged = not quantized.scales.isfinite().all()
        if quantized.format.kind == "fp8":
            damaged = damaged or (quantized.quants.view(torch.uint8) & 127 == 127).any()
    if damaged:
        raise CheckpointError("Quantised weights hold infinities or NaN; the checkpoint seems damaged.")


def _panels(rows: Tensor, lanes: int, together: int) -> Tensor:
    """(F, K) -> (panels, K / together, lanes, together): whose outputs lie side by side."""
    padded = F.pad(rows, (0, 0, 0, -len(rows) % (PANELS * lanes)))
    return padded.unflatten(0, (-1, lanes)).unflatten(2, (-1, together)).transpose(1, 2).contiguous()


def _rows(panels: Tensor, together: int) -> Tensor:
    assert panels.shape[3] == together
    return panels.transpose(1, 2).flatten(2).flatten(0, 1)
