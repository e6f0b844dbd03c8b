"""How keys and values are kept: as numbers of 32 or 16 bits, or of 8 or 4 with a range for each vector.

TurboMind's scheme (arXiv 2508.15601): every vector of H numbers, of one token, head and layer, is rounded by itself
when it is written: code = round((x - lowest) / scale), scale = (highest - lowest) / levels. FP8 (E4M3) has no range:
keys and values are far below 448. Legend: B bytes or numbers that a vector takes.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from cascadevl.core.errors import ConfigError
from cascadevl.core.precision import KVFormat

DTYPES: dict[KVFormat, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.uint8,
    "int4": torch.uint8,
}
LEVELS: dict[KVFormat, int] = {"int8": 255, "int4": 15}
"""Steps between the lowest number of a vector and the highest, where it has a range."""

FP8_MOST = 448.0
"""What is larger is kept as this."""


def vector_bytes(format: KVFormat, size: int) -> int:
    """Of `size` numbers, their range included."""
    numbers = size // 2 if format == "int4" else size
    return numbers * DTYPES[format].itemsize + (8 if format in LEVELS else 0)


@dataclass(frozen=True, slots=True)
class Kept:
    """Vectors of H numbers in one format, in any shape (…)."""

    format: KVFormat
    numbers: Tensor
    """(…, B)"""
    ranges: Tensor | None
    """(…, 2), fp32: scale and lowest number of each vector; only with int8 and int4."""

    @classmethod
    def empty(cls, format: KVFormat, shape: tuple[int, ...], device: torch.device) -> Self:
        """Memory for vectors; what is never touched is never taken. The last of `shape` is H."""
        if format == "int4" and shape[-1] % 16:
            raise ConfigError(f"Keys and values of 4 bits need heads of a multiple of 16 numbers, got {shape[-1]}.")
        width = shape[-1] // 2 if format == "int4" else shape[-1]
        numbers = torch.empty((*shape[:-1], width), dtype=DTYPES[format], device=device)
        ranges = torch.empty((*shape[:-1], 2), device=device) if format in LEVELS else None
        return cls(format, numbers, ranges)

    @classmethod
    def of(cls, x: Tensor, format: KVFormat) -> Self:
        """Round vectors (…, H)."""
        if format not in LEVELS:
            return cls(format, (x.clamp(-FP8_MOST, FP8_MOST) if format == "fp8" else x).to(DTYPES[format]), None)
        x = x.float()
        lowest, highest = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        scale = (highest - lowest) / LEVELS[format]
        # A vector with an infinity or NaN is lost, and says so.
        scale = torch.where(x.isfinite().all(-1, keepdim=True), scale, torch.nan)
        divisor = torch.where(scale > 0, scale, 1.0)
        codes = ((x - lowest) / divisor).round().clamp(0, LEVELS[format]).nan_to_num(0).to(torch.uint8)
        if format == "int4":
            first, second = codes.chunk(2, dim=-1)
            codes = first | second << 4
        return cls(format, codes, torch.cat([scale, lowest], -1))

    def floats(self) -> Tensor:
        """(…, H), fp32; as they are where the format is a type that torch computes in."""
        if self.ranges is None:
            return self.numbers.float() if self.format == "fp8" else self.numbers
        codes = self.numbers
        if self.format == "int4":
            codes = torch.cat([codes & 15, codes >> 4], -1)
        return codes * self.ranges[..., :1] + self.ranges[..., 1:]

    def __getitem__(self, where: object) -> "Kept":
        """A view, or a copy where `where` is a tensor, of some vectors."""
        ranges = None if self.ranges is None else self.ranges[where]  # type: ignore[index]
        return Kept(self.format, self.numbers[where], ranges)  # type: ignore[index]

    def put(self, where: object, x: Tensor) -> None:
        """Round vectors (…, H) and keep them at `where`."""
        new = Kept.of(x, self.format)
        self.numbers[where] = new.numbers  # type: ignore[index]
        if self.ranges is not None:
            self.ranges[where] = new.ranges  # type: ignore[index]

    @property
    def num_bytes(self) -> int:
        return self.numbers.nbytes + (0 if self.ranges is None else self.ranges.nbytes)
