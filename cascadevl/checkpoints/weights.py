"""Safetensors, one tensor at a time: headers first, then each tensor straight into its memory.

Our own reader (the format is a length, a JSON header and raw bytes) because it must say which
file and tensor is wrong before anything is allocated, and must not keep file pages resident.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cascadevl.core.errors import CheckpointError
from cascadevl.core.files import as_usual, write_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
PIECE = 250_000
"""Numbers that are read at a time."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Offset in the file, in bytes."""

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Reader:
    """Fills tensors from files, a piece at a time, through memory that it keeps.

    Memory that comes and goes between tensors that stay would leave holes, up to half of the model's size.
    """

    def __init__(self) -> None:
        self._bytes = torch.empty(8 * PIECE, dtype=torch.uint8)
        self._numbers = torch.empty(PIECE)

    def fill(self, target: Tensor, entry: Entry, name: str, skipped: int = 0) -> None:
        """Read into `target`, contiguous and of any floating type, from behind the numbers `skipped`.

        Raises CheckpointError for a file that ends early and for what is no number in the type of `target`.
        """
        with open(entry.file, "rb", buffering=0) as file:
            file.seek(entry.start + skipped * entry.dtype.itemsize)
            for piece in target.view(-1).split(PIECE):
                stored = piece
                if piece.dtype != entry.dtype:
                    stored = self._bytes[: len(piece) * entry.dtype.itemsize].view(entry.dtype)
                _read(file, stored)
                if stored is not piece:
                    piece.copy_(stored)
                numbers = piece if piece.dtype == torch.float32 else self._numbers[: len(piece)].copy_(piece)
                if not math.isfinite(float(numbers.sum())) and not bool(numbers.isfinite().all()):
                    why = "NaN or infinity: the file is damaged, or training diverged."
                    if bool(stored.float().isfinite().all()):
                        why = f"numbers too large for {target.dtype}: load it as bfloat16 or float32."
                    raise CheckpointError(f"The tensor {name!r} in {entry.file} holds {why}")


def read_raw(entry: Entry) -> Tensor:
    """A whole tensor in its stored type, whatever its numbers mean."""
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    with open(entry.file, "rb", buffering=0) as file:
        file.seek(entry.start)
        _read(file, tensor.view(-1))
    return tensor


def _read(file: FileIO, stored: Tensor) -> None:
    view = stored.view(torch.uint8).numpy().data
    while view:
        got = file.readinto(view)
        if not got:
            raise CheckpointError(f"{file.name} ended while a tensor was being read.")
        view = view[got:]


def entries(folder: Path) -> dict[str, Entry]:
    """Every tensor of a folder by name. Raises CheckpointError for missing or damaged shards."""
    found: dict[str, Entry] = {}
    for file in shard_files(folder):
        for name, entry in read_header(file).items():
            if name in found:
                raise CheckpointError(f"The tensor {name!r} is in {found[name].file.name} and in {file.name}.")
            found[name] = entry
    return found


def shard_files(folder: Path) -> list[Path]:
    """The files that the index names, or else every safetensors file that there is."""
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            if any(Path(name).name != name for name in names):
                raise ValueError("a shard lies in the folder itself")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{index} is not an index of shards: {error}") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {len(names)} shards: {', '.join(missing[:3])}. "
                "Download the folder again; a download may have stopped half-way."
            )
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = sorted(p.name for p in folder.glob("*.bin"))
        hint = f" {others[0]} is a pickle, which is never opened: convert it to safetensors." if others else ""
        raise CheckpointError(f"{folder} has no weights: expected model.safetensors or {INDEX}.{hint}")
    return files


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of one file, checked against the file's size."""
    size = file.stat().st_size
    with open(file, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"{file} is not a safetensors file, or it is cut off ({size} bytes).")
        try:
            header = json.loads(handle.read(length))
            tensors = {name: _entry(file, 8 + length, item) for name, item in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"The header of {file} cannot be read: {error}") from error
    for name, entry in tensors.items():
        if entry.start < 8 + length or entry.start + entry.num_bytes > size:
            raise CheckpointError(
                f"{file} is cut off: {name!r} should end at byte {entry.start + entry.num_bytes}, "
                f"the file has {size}. Download it again."
            )
    return tensors


def _entry(file: Path, data_start: int, item: dict) -> Entry:
    if item["dtype"] not in DTYPES:
        raise ValueError(f"unknown type {item['dtype']}")
    start, end = item["data_offsets"]
    entry = Entry(file, DTYPES[item["dtype"]], tuple(item["shape"]), data_start + start)
    if end - start != entry.num_bytes:
        raise ValueError(f"{end - start} bytes for shape {item['shape']} of {item['dtype']}")
    return entry


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """One file. Raises OSError where the disk is full or closed, which safetensors tells in words alone."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(whole, path, {"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    as_usual(path)


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], max_shard_bytes: int) -> None:
    """model.safetensors, or numbered shards with an index once one file would be too large."""
    shards = list(_shards(tensors, max_shard_bytes, folder))
    weight_map, total = {}, 0
    for number, (temporary, names, num_bytes) in enumerate(shards, start=1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        temporary.rename(folder / name)
        weight_map |= dict.fromkeys(names, name)
        total += num_bytes
    if len(shards) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(
    tensors: Iterable[tuple[str, Tensor]], max_bytes: int, folder: Path
) -> Iterator[tuple[Path, list[str], int]]:
    """Write a shard whenever the next tensor would not fit; only one shard is in memory."""
    pending: dict[str, Tensor] = {}
    num_bytes = count = 0

    def flush() -> tuple[Path, list[str], int]:
        path = folder / f"shard-{count}.part"
        write_tensors(pending, path)
        return path, list(pending), num_bytes

    for name, tensor in tensors:
        if pending and num_bytes + tensor.nbytes > max_bytes:
            yield flush()
            pending, num_bytes, count = {}, 0, count + 1
        pending[name] = tensor.detach().to("cpu").contiguous()
        num_bytes += tensor.nbytes
    yield flush()
