"""Number formats for weights of few bits: what they are called, and which tensors hold them.

Everything is a plain tensor, so that safetensors can hold it. G groups, B bytes of a row of nibbles (D / 2).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cascadevl.core.errors import CheckpointError, ConfigError

Kind = Literal["int8", "int4", "mxfp4", "fp8"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How a weight_FD is rounded: what its numbers are, and how many of them share a scale."""

    kind: Kind
    group: int = 0
    """Inputs that share a scale; 0: all of a row."""
    outputs: int = 1
    """Outputs that share a scale."""
    zeros: bool = False
    """Whether int4 groups have a zero point each; without, zero lies in the middle."""

    def __post_init__(self) -> None:
        if (self.group, self.outputs) not in SIZES[self.kind] or (self.zeros and self.kind != "int4"):
            known = " or ".join(f"{group}×{outputs}" for group, outputs in SIZES[self.kind])
            raise ConfigError(f"{self} is no format we know: {self.kind} has groups of {known}, and only int4 zeros.")

    def num_groups(self, width: int) -> int:
        """Scales along the D inputs of a row."""
        return -(-width // self.group) if self.group else 1

    def check_width(self, width: int) -> None:
        """Refuse groups that would not be full. FP8 blocks may end early, as DeepSeek-V3's do."""
        if self.kind != "fp8" and self.group and width % self.group:
            fitting = [size for size, _ in SIZES["int4"] if width % size == 0 and self.kind == "int4"]
            advice = f"Groups of {max(fitting)} fit." if fitting else "Use int8, which has no groups."
            raise ConfigError(f"{width} inputs cannot be cut into {self.kind} groups of {self.group}. {advice}")


SIZES: dict[Kind, list[tuple[int, int]]] = {
    "int8": [(0, 1), (32, 1), (64, 1), (128, 1)],
    "int4": [(32, 1), (64, 1), (128, 1)],
    "mxfp4": [(32, 1)],
    "fp8": [(0, 1), (128, 128)],
}
"""What may share a scale: inputs (0: all), outputs."""

FORMATS: dict[str, Format] = {
    "int8": Format(kind="int8"),
    "int8-g64": Format(kind="int8", group=64),
    "int4": Format(kind="int4", group=32, zeros=True),
    "int4-g32": Format(kind="int4", group=32),
    "int4-g64": Format(kind="int4", group=64),
    "int4-g128": Format(kind="int4", group=128),
    "int4-g32-zeros": Format(kind="int4", group=32, zeros=True),
    "int4-g64-zeros": Format(kind="int4", group=64, zeros=True),
    "int4-g128-zeros": Format(kind="int4", group=128, zeros=True),
    "mxfp4": Format(kind="mxfp4", group=32),
    "fp8": Format(kind="fp8"),
    "fp8-blocks": Format(kind="fp8", group=128, outputs=128),
}
"""The table: names for files and the command line. "int4" alone is the one that loses least, int4-g32-zeros."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """A weight_FD in few bits.

    int8    quants int8 (F, D)            scales fp32 (F, G)       weight = quant · scale; quants lie in -127 … 127
    int4    quants uint8 (F, B)           scales fp16 (F, G)       weight = (nibble - zero) · scale; 8, or zeros (F, G)
    mxfp4   quants uint8 (F, B)           scales uint8 (F, G)      weight = E2M1 · 2^(scale - 127) (OCP MX 1.0, §5)
    fp8     quants float8_e4m3fn (F, D)   scales fp32, one for each row (F, 1) or block (⌈F/128⌉, ⌈D/128⌉)

    Of two neighbours the first has the low nibble. GPT-OSS's `…_blocks` (F, G, 16) are these bytes, `…_scales` these
    scales.
    """

    format: Format
    quants: Tensor
    scales: Tensor
    zeros: Tensor | None = None

    def __post_init__(self) -> None:
        outputs, width = self.shape
        self.format.check_width(width)
        expected = (-(-outputs // self.format.outputs), self.format.num_groups(width))
        quants, scales = TYPES[self.format.kind]
        if self.quants.dtype != quants or self.scales.dtype != scales or tuple(self.scales.shape) != expected:
            raise CheckpointError(
                f"A {self.format.kind} weight of {outputs}×{width} has {quants} and {scales} {expected}; "
                f"these are {self.quants.dtype} and {self.scales.dtype} {tuple(self.scales.shape)}."
            )
        has_zeros = self.zeros is not None and self.zeros.dtype == torch.uint8 and self.zeros.shape == expected
        if self.format.zeros != has_zeros or (self.zeros is not None and not has_zeros):
            raise CheckpointError(f"{self.format} needs zeros, uint8 {expected}, exactly if it says zeros=True.")

    @property
    def shape(self) -> tuple[int, int]:
        """F and D."""
        outputs, stored = self.quants.shape
        return outputs, stored * 2 if self.quants.dtype == torch.uint8 else stored

    @property
    def num_bytes(self) -> int:
        """Of all tensors together."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """By the names of the fields."""
        named = {"quants": self.quants, "scales": self.scales, "zeros": self.zeros}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


TYPES: dict[Kind, tuple[torch.dtype, torch.dtype]] = {
    "int8": (torch.int8, torch.float32),
    "int4": (torch.uint8, torch.float16),
    "mxfp4": (torch.uint8, torch.uint8),
    "fp8": (torch.float8_e4m3fn, torch.float32),
}
"""Of quants and scales."""


def split_nibbles(bytes_FB: Tensor) -> Tensor:
    """uint8 (F, D) of 0 … 15."""
    return torch.stack([bytes_FB & 15, bytes_FB >> 4], -1).flatten(1)


def join_nibbles(codes_FD: Tensor) -> Tensor:
    """uint8 (F, B): two neighbours in a byte."""
    return codes_FD[:, ::2] | codes_FD[:, 1::2] << 4
