"""The GGUF container: header, metadata and tensor table, each checked against the file's size.

Versions 2 and 3, little-endian: a count of tensors and of settings, the settings, the table, then
the tensors at aligned offsets (ggml-org/ggml, `docs/gguf.md`). Whatever a file claims, no more is
allocated than a small multiple of what it holds.
"""

import math
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from cascadevl.core.errors import CheckpointError
from cascadevl.ops.gguf_blocks import FORMATS, OTHER_NAMES, BlockFormat, dequantise

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 4
PIECE = 250_000
"""About how many weights are read at a time."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Number of a value's type -> its letter in `struct`."""
_FLOAT32, _STRING, _ARRAY = 6, 8, 9


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Where a tensor lies."""

    format: BlockFormat
    shape: tuple[int, ...]
    """As torch has it: the file names the innermost dimension first."""
    start: int
    """Offset in the file, in bytes."""

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) // self.format.num_weights * self.format.num_bytes


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """What a file says of itself; the tensors stay on the disk until `fill`."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]

    def fill(self, target: Tensor, name: str) -> None:
        """Read a tensor into `target`, contiguous and of its shape, a piece at a time.

        Raises CheckpointError for a file that ends early and for what is no number in the type of `target`.
        """
        tensor = self.tensors[name]
        assert target.shape == tensor.shape and target.is_contiguous()
        num_blocks = max(1, PIECE // tensor.format.num_weights)
        raw = torch.empty(num_blocks * tensor.format.num_bytes, dtype=torch.uint8)
        with open(self.path, "rb") as file:
            file.seek(tensor.start)
            for piece in target.view(-1).split(num_blocks * tensor.format.num_weights):
                stored = raw[: len(piece) // tensor.format.num_weights * tensor.format.num_bytes]
                if file.readinto(stored.numpy().data) != len(stored):
                    raise CheckpointError(f"{self.path} ended while {name!r} was being read.")
                piece.copy_(dequantise(stored, tensor.format))
                if not math.isfinite(float(piece.sum(dtype=torch.float32))) and not bool(piece.isfinite().all()):
                    raise CheckpointError(
                        f"The tensor {name!r} in {self.path} holds what is no number in {target.dtype}: the file is "
                        "damaged, or the type too narrow (bfloat16 and float32 hold more)."
                    )


def read_header(path: Path) -> GGUFFile:
    """Everything but the tensors. Raises CheckpointError naming what is wrong."""
    try:
        with open(path, "rb") as file:
            header = _Header(path, file)
            header.check_beginning()
            num_tensors = header.count(24)  # a name's length, one dimension's count, type, offset
            num_settings = header.count(13)  # a key's length, a type, a value
            metadata: dict[str, Any] = {}
            for _ in range(num_settings):
                key = header.string()
                if key in metadata:
                    raise header.wrong(f"the setting {key!r} is there twice")
                metadata[key] = header.value(header.number("I"), key)
            entries = [header.entry() for _ in range(num_tensors)]
            return GGUFFile(path, metadata, _place(header, entries, metadata.get("general.alignment", 32)))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


class _Header:
    """Reads forward; nothing is taken that is not there."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self.size = path.stat().st_size
        self.at = 0

    def wrong(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is no GGUF file that can be read: {what}.")

    @property
    def left(self) -> int:
        return min(self.size, MAX_HEADER_BYTES) - self.at

    def take(self, num_bytes: int, what: str) -> bytes:
        if num_bytes > self.left:
            raise self.wrong(f"{what} of {num_bytes} bytes at byte {self.at} does not fit into {self.size} bytes")
        self.at += num_bytes
        data = self._file.read(num_bytes)
        if len(data) != num_bytes:
            raise self.wrong(f"it ended at byte {self.at - num_bytes + len(data)} while it was being read")
        return data

    def number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter), "a number"))[0]

    def count(self, least_bytes: int) -> int:
        """How many things follow, each of so many bytes at least."""
        num = self.number("Q")
        if num * least_bytes > self.left:
            raise self.wrong(f"it claims {num} entries at byte {self.at}, its {self.size} bytes hold fewer")
        return num

    def string(self) -> str:
        at = self.at
        try:
            return self.take(self.number("Q"), "a text").decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.wrong(f"the text at byte {at} is not UTF-8") from error

    def check_beginning(self) -> None:
        if self.size < 24 or self.take(4, "the magic") != MAGIC:
            raise self.wrong("it does not begin with 'GGUF'")
        version = self.number("I")
        if version not in VERSIONS:
            hint = " (big-endian, it seems)" if version >= 1 << 16 else ""
            raise self.wrong(f"its version is {version}{hint}; versions {' and '.join(map(str, VERSIONS))} are read")

    def value(self, kind: int, key: str) -> Any:
        if kind == _FLOAT32:
            # The shortest decimal that is this number: 1e-05, not 9.999999747378752e-06.
            return float(str(np.float32(self.number("f"))))
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(key)
        raise self.wrong(f"the setting {key!r} has the unknown type {kind}")

    def _array(self, key: str) -> Sequence[Any]:
        kind = self.number("I")
        if kind == _STRING:
            return [self.string() for _ in range(self.count(8))]
        if kind not in _SCALARS:
            raise self.wrong(f"the setting {key!r} is an array of the type {kind}, which is not read")
        letter = _SCALARS[kind].replace("?", "B")
        numbers = array(letter)
        numbers.frombytes(self.take(self.count(numbers.itemsize) * numbers.itemsize, "an array"))
        return numbers

    def entry(self) -> tuple[str, BlockFormat, tuple[int, ...], int]:
        """Name, format, shape and offset behind the header of one tensor."""
        name, num_dimensions = self.string(), self.number("I")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise self.wrong(f"{name!r} has {num_dimensions} dimensions; 1 to {MAX_DIMENSIONS} are possible")
        shape = tuple(self.number("Q") for _ in range(num_dimensions))[::-1]
        kind, offset = self.number("I"), self.number("Q")
        if kind not in FORMATS:
            readable = ", ".join(format.name for format in FORMATS.values())
            raise CheckpointError(
                f"{self.path}: {name!r} is stored as {OTHER_NAMES.get(kind, f'type {kind}')}, which is not read here. "
                f"Readable: {readable}. Take another file of the same model, such as its Q8_0 or Q4_K_M."
            )
        if shape[-1] % FORMATS[kind].num_weights:
            raise self.wrong(
                f"rows of {name!r} have {shape[-1]} numbers, no multiple of {FORMATS[kind].num_weights} "
                f"as {FORMATS[kind].name} needs"
            )
        return name, FORMATS[kind], shape, offset


def _place(
    header: _Header, entries: Sequence[tuple[str, BlockFormat, tuple[int, ...], int]], alignment: Any
) -> dict[str, GGUFTensor]:
    """Tensors with their places in the file, all of them within it."""
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise header.wrong(f"general.alignment is {alignment!r}; a power of two was expected")
    begin = -(-header.at // alignment) * alignment
    tensors: dict[str, GGUFTensor] = {}
    for name, format, shape, offset in entries:
        tensor = GGUFTensor(format, shape, begin + offset)
        if name in tensors:
            raise header.wrong(f"the tensor {name!r} is there twice")
        if offset % alignment:
            raise header.wrong(f"the offset {offset} of {name!r} is no multiple of the alignment {alignment}")
        if tensor.start + tensor.num_bytes > header.size:
            raise CheckpointError(
                f"{header.path} is cut off: {name!r} should end at byte {tensor.start + tensor.num_bytes}, "
                f"the file has {header.size}. Download it again."
            )
        tensors[name] = tensor
    return tensors
