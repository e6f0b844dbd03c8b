"""Numbers of four and eight bits in int32 words, lowest bits first, and the order in which AWQ shuffles them."""

import torch
from torch import Tensor

from cascadevl.ops.formats import join_nibbles, split_nibbles

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Place in the word -> which of the eight columns lies there (casper-hansen/AutoAWQ, `modules/linear/gemm.py`)."""


def unpack(words: Tensor, bits: int) -> Tensor:
    """int32 (R, W) -> uint8 (R, W · 32 / bits)."""
    bytes_RB = words.contiguous().view(torch.uint8)  # little-endian, as safetensors is
    return bytes_RB if bits == 8 else split_nibbles(bytes_RB)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 (R, C) -> int32 (R, ⌈C · bits / 32⌉), the last word filled up with zeros."""
    per_word = 32 // bits
    filled = torch.nn.functional.pad(codes, (0, -codes.shape[1] % per_word))
    bytes_RB = filled if bits == 8 else join_nibbles(filled)
    return bytes_RB.flatten().view(torch.int32).unflatten(0, (len(codes), -1))


def unshuffle(codes: Tensor) -> Tensor:
    """AWQ's columns (R, C) in their own order."""
    place = [AWQ_ORDER.index(column) for column in range(8)]
    return codes.unflatten(1, (-1, 8))[:, :, place].flatten(1)
