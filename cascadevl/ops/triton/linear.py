"""Weights of few bits in the order in which linear_kernel.py reads them, and its one function. Not yet run on a GPU.

The order: panels of 64 outputs, in a panel blocks of 32 inputs, in a block output after output, of each 32 bytes, or
16 where two codes share one. So what a step of the kernel reads lies in one piece, and each thread reads 16 bytes at
once: row-major weights of 4 bits would leave a warp with half lines. Code (f, d) lies in the byte

    ((f // 64 · ⌈D / 32⌉ + d // 32) · 64 + f mod 64) · 32 + d mod 32                   of 8 bits
    ((f // 64 · ⌈D / 32⌉ + d // 32) · 64 + f mod 64) · 16 + d mod 16                   of 4: low where d mod 32 < 16

Nibbles of one byte are 16 inputs apart, so that a mask gives one matrix and a shift another, and no thread has to
bring neighbours together. Legend: G groups of inputs that share a scale.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cascadevl.core.errors import CheckpointError
from cascadevl.ops.formats import Format, Kind, Quantized, join_nibbles, split_nibbles
from cascadevl.ops.triton import interpreted, launch, num_processors

PANEL, BLOCK = 64, 32
"""Outputs of a panel, inputs of a block."""

PADDING = 128
"""Outputs are filled up to a multiple, the largest tile's."""

KINDS: dict[Kind, int] = {"int8": 0, "int4": 1, "mxfp4": 2, "fp8": 3}


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program of the kernel computes."""

    rows: int
    outputs: int
    blocks: int
    """Of 32 inputs, for one step."""
    warps: int
    stages: int
    """Steps whose weights are on their way."""


TILES: dict[int, Tile] = {
    1: Tile(rows=16, outputs=64, blocks=4, warps=4, stages=4),
    17: Tile(rows=32, outputs=64, blocks=4, warps=4, stages=4),
    33: Tile(rows=64, outputs=64, blocks=4, warps=4, stages=3),
    65: Tile(rows=128, outputs=128, blocks=2, warps=8, stages=3),
}
"""From how many rows on -> tile. Chosen by reasoning: benchmarks/gpu/kernels.py is to tell better ones."""

LEAST_STEPS = 4
"""Of a split; with fewer, adding up takes longer than it saves."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight and bias as the kernel wants them."""

    format: Format
    shape: tuple[int, int]
    """F and D, without padding."""
    quants: Tensor
    """uint8 (panels, blocks, 64, 32 or 16)."""
    scales: Tensor
    """(G, F) with padding; of FP8's blocks, too, one for each output."""
    zeros: Tensor | None
    bias: Tensor | None
    """fp32."""


def pack(quantized: Quantized, bias_F: Tensor | None) -> Packed:
    """Bring a weight into the order of the kernel; `unpack` is the way back."""
    format, (outputs, width) = quantized.format, quantized.shape
    if not quantized.scales.float().isfinite().all() or (format.kind == "mxfp4" and (quantized.scales == 255).any()):
        raise CheckpointError("Scales of quantised weights are infinite or NaN; the checkpoint seems damaged.")
    scales = quantized.scales
    if format.kind in ("int4", "mxfp4"):
        low, high = split_nibbles(quantized.quants).unflatten(1, (-1, 2, BLOCK // 2)).unbind(2)
        codes = low | high << 4
    else:
        codes = F.pad(quantized.quants.view(torch.uint8), (0, -width % BLOCK)).unflatten(1, (-1, BLOCK))
        if format.kind == "int8":
            codes = codes ^ 128
        elif (codes & 127 == 127).any():
            raise CheckpointError("FP8 weights hold NaN; the checkpoint seems damaged.")
        scales = scales.repeat_interleave(format.outputs, 0)[:outputs]
    codes = F.pad(codes, (0, 0, 0, 0, 0, -outputs % PADDING)).unflatten(0, (-1, PANEL))
    bias = None if bias_F is None else F.pad(bias_F.detach().float(), (0, -outputs % PADDING))
    zeros = None if quantized.zeros is None else _columns(quantized.zeros)
    return Packed(format, (outputs, width), codes.transpose(1, 2).contiguous(), _columns(scales), zeros, bias)


def unpack(packed: Packed) -> Quantized:
    """The very tensors that were packed."""
    format, (outputs, width) = packed.format, packed.shape
    codes = packed.quants.transpose(1, 2).flatten(0, 1)[:outputs]
    if format.kind in ("int4", "mxfp4"):
        quants = join_nibbles(torch.stack([codes & 15, codes >> 4], 2).flatten(1))
    else:
        quants = codes.flatten(1)[:, :width].contiguous()
        quants = (quants ^ 128).view(torch.int8) if format.kind == "int8" else quants.view(torch.float8_e4m3fn)
    scales = packed.scales.T[: outputs : format.outputs].contiguous()
    zeros = None if packed.zeros is None else packed.zeros.T[:outputs].contiguous()
    return Quantized(format, quants, scales, zeros)


def linear(x: Tensor, packed: Packed, *, splits: int | None = None) -> Tensor:
    """(…, D) -> (…, F) in x's dtype: products in that type, sums in fp32.

    `splits`: parts into which the inputs are cut and which are added up afterwards, so that few rows employ the
    whole GPU; None: as many as it takes.
    """
    from cascadevl.ops.triton.linear_kernel import add_up, multiply

    (outputs, width), format = packed.shape, packed.format
    assert x.shape[-1] == width, (x.shape, packed.shape)
    rows_TD = x.reshape(-1, width).contiguous()
    num_rows = len(rows_TD)
    out_TF = torch.empty(num_rows, outputs, dtype=x.dtype, device=x.device)
    if not num_rows:
        return out_TF.view(*x.shape[:-1], outputs)
    tile = TILES[max(start for start in TILES if start <= num_rows)]
    programs = -(-outputs // tile.outputs), -(-num_rows // tile.rows)
    if splits is None:
        splits = _num_splits(programs[0] * programs[1], -(-width // (BLOCK * tile.blocks)), x.device)
    parts = out_TF if splits == 1 else torch.empty(splits, num_rows, outputs, device=x.device)
    launch(
        multiply, (*programs, splits),
        rows_TD, packed.quants, packed.scales, packed.zeros, packed.bias, parts, num_rows, width, outputs,
        packed.scales.shape[1], KIND=KINDS[format.kind], GROUP=format.group, PANEL=PANEL, BLOCK_T=tile.rows,
        BLOCK_F=tile.outputs, BLOCKS=tile.blocks, SPLITS=splits, WIDE=interpreted(), num_warps=tile.warps,
        num_stages=tile.stages,
    )  # fmt: skip
    if splits > 1:
        grid = (-(-out_TF.numel() // 1024),)
        launch(add_up, grid, parts, packed.bias, out_TF, out_TF.numel(), outputs, splits, BLOCK=1024)
    return out_TF.view(*x.shape[:-1], outputs)


def _num_splits(num_programs: int, num_steps: int, device: torch.device) -> int:
    """Two programs for each processor, where the inputs suffice."""
    return max(1, min(2 * num_processors(device) // num_programs, num_steps // LEAST_STEPS))


def _columns(scales_FG: Tensor) -> Tensor:
    """(G, F): neighbouring outputs, which neighbouring threads have, lie side by side."""
    return F.pad(scales_FG.T, (0, -len(scales_FG) % PADDING)).contiguous()
