"""Blocks of GGML's number formats become fp32, many at a time.

Weights lie in blocks of 32 or 256, each with scales of its own; within a block the weights' low bits come
first to last, in halves or quarters of a byte. Layouts: ggml-org/llama.cpp, `ggml/src/ggml-common.h` and
`ggml-quants.c`. Legend: B blocks, W weights of a block.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Unpack = Callable[[Tensor], Tensor]
"""uint8 (B, bytes of a block) -> fp32 (B, W)."""


class BlockFormat(NamedTuple):
    """How some weights lie in some bytes."""

    name: str
    num_weights: int
    num_bytes: int
    unpack: Unpack


def dequantise(raw: Tensor, format: BlockFormat) -> Tensor:
    """Whole blocks, uint8 and flat, -> their weights, fp32 and flat."""
    return format.unpack(raw.view(-1, format.num_bytes)).flatten()


def _stored(dtype: torch.dtype) -> Unpack:
    """Numbers as they are; a block of one."""
    return lambda raw: raw.view(dtype).float()


def _half(raw: Tensor, at: int) -> Tensor:
    """(B, 1): the fp16 number at a byte of each block."""
    return raw[:, at : at + 2].contiguous().view(torch.float16).float()


def _spread(raw: Tensor, bits: int, group: int) -> Tensor:
    """Numbers of a few bits: of every `group` bytes first all lowest bits, then all next ones."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=raw.device)[:, None]
    return ((raw.unflatten(1, (-1, 1, group)) >> shifts) & (2**bits - 1)).flatten(1)


def _q4_0(raw: Tensor) -> Tensor:
    return _half(raw, 0) * (_spread(raw[:, 2:], 4, 16).float() - 8)


def _q4_1(raw: Tensor) -> Tensor:
    return _half(raw, 0) * _spread(raw[:, 4:], 4, 16).float() + _half(raw, 2)


def _with_fifth_bits(high: Tensor, low: Tensor) -> Tensor:
    """Q5: weight w has bit w of the four bytes `high` above its four bits."""
    return _spread(low, 4, 16) | _spread(high, 1, 1) << 4


def _q5_0(raw: Tensor) -> Tensor:
    return _half(raw, 0) * (_with_fifth_bits(raw[:, 2:6], raw[:, 6:]).float() - 16)


def _q5_1(raw: Tensor) -> Tensor:
    return _half(raw, 0) * _with_fifth_bits(raw[:, 4:8], raw[:, 8:]).float() + _half(raw, 2)


def _q8_0(raw: Tensor) -> Tensor:
    return _half(raw, 0) * raw[:, 2:].view(torch.int8).float()


def _sub_scales(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Q4_K and Q5_K: scale and offset (B, 8, 1) of every 32 weights, of six bits each in twelve bytes."""
    first, second, rest = raw[:, 4:16].split(4, dim=1)
    scales = torch.cat([first & 63, (rest & 15) | (first >> 6) << 4], dim=1)
    offsets = torch.cat([second & 63, (rest >> 4) | (second >> 6) << 4], dim=1)
    return (_half(raw, 0) * scales)[..., None], (_half(raw, 2) * offsets)[..., None]


def _q4_k(raw: Tensor) -> Tensor:
    scales, offsets = _sub_scales(raw)
    return (scales * _spread(raw[:, 16:], 4, 32).unflatten(1, (8, 32)) - offsets).flatten(1)


def _q5_k(raw: Tensor) -> Tensor:
    scales, offsets = _sub_scales(raw)
    numbers = _spread(raw[:, 48:], 4, 32) | _spread(raw[:, 16:48], 1, 32) << 4
    return (scales * numbers.unflatten(1, (8, 32)) - offsets).flatten(1)


def _q6_k(raw: Tensor) -> Tensor:
    """Four bits of 256 weights, then two, then the scales of every 16, then the scale of all."""
    numbers = (_spread(raw[:, :128], 4, 64) | _spread(raw[:, 128:192], 2, 32) << 4).float() - 32
    scales = _half(raw, 208) * raw[:, 192:208].view(torch.int8)
    return (scales[..., None] * numbers.unflatten(1, (16, 16))).flatten(1)


FORMATS: dict[int, BlockFormat] = {
    0: BlockFormat("F32", 1, 4, _stored(torch.float32)),
    1: BlockFormat("F16", 1, 2, _stored(torch.float16)),
    2: BlockFormat("Q4_0", 32, 18, _q4_0),
    3: BlockFormat("Q4_1", 32, 20, _q4_1),
    6: BlockFormat("Q5_0", 32, 22, _q5_0),
    7: BlockFormat("Q5_1", 32, 24, _q5_1),
    8: BlockFormat("Q8_0", 32, 34, _q8_0),
    12: BlockFormat("Q4_K", 256, 144, _q4_k),
    13: BlockFormat("Q5_K", 256, 176, _q5_k),
    14: BlockFormat("Q6_K", 256, 210, _q6_k),
    30: BlockFormat("BF16", 1, 2, _stored(torch.bfloat16)),
}
"""The table: number of a type in files (`enum ggml_type`) -> its format."""

_LATER = (
    *("IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS"),
    *("I8", "I16", "I32", "I64", "F64", "IQ1_M"),
)
OTHER_NAMES = {9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", **dict(enumerate(_LATER, 16)), 39: "MXFP4"}
"""Types that are not read, for messages."""
