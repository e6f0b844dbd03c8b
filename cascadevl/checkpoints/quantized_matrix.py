"""A matrix of few bits as files of any kind say it, and whether one of our formats holds it exactly.

What is read here is never rounded again: a matrix that no `Format` holds to the bit becomes whole numbers of the
model's own type, with a reason that is said aloud. Legend: F outputs, D inputs, G groups of inputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cascadevl.checkpoints.weights import Entry, read_raw
from cascadevl.core.errors import CheckpointError
from cascadevl.ops.formats import SIZES, Format, Kind, Quantized, join_nibbles
from cascadevl.ops.quantize import dequantize

MIDDLE = {"int4": 8, "int8": 128}
"""The code that stands for zero where a file has no zero points."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Codes:
    """weight = (code - zero) · scale for whole numbers, value · scale for FP8 and MXFP4."""

    kind: Kind
    codes: Tensor
    """int4 and int8: uint8 (F, D). fp8: float8_e4m3fn (F, D). mxfp4: uint8 (F, D / 2), first nibbles low."""
    scales: Tensor
    """(F, G), or (⌈F / outputs⌉, G) where several outputs share one; of mxfp4 the exponents."""
    zeros: Tensor | None = None
    """uint8, like the scales; None: the middle."""
    group: int
    """Inputs that share a scale."""
    outputs: int = 1
    groups_D: Tensor | None = None
    """The group of each input (GPTQ's act-order); None: each group after the other."""

    @property
    def num_inputs(self) -> int:
        return self.codes.shape[1] * (2 if self.kind == "mxfp4" else 1)


@dataclass(frozen=True, slots=True)
class Held:
    """A matrix as a model keeps it."""

    weight: Quantized | Tensor
    """Of few bits, or fp32 (F, D)."""
    order_D: Tensor | None = None
    """Which input each column belongs to; None: each to its own."""
    reason: str = ""
    """Why it is whole, where no format holds it."""

    def dense(self) -> Tensor:
        """fp32 (F, D), the columns in the order of the inputs."""
        if isinstance(self.weight, Tensor):
            return self.weight
        whole_FD = dequantize(self.weight)
        return whole_FD if self.order_D is None else whole_FD[:, self.order_D.argsort()]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounded:
    """Some tensors of a file that stand for one weight; in tables of tensors it takes that weight's place."""

    shape: tuple[int, ...]
    """Of the weight."""
    tensors: Mapping[str, tuple[str, Entry]]
    """Role -> (name in the file, where it lies)."""
    decode: Callable[[dict[str, Tensor]], Codes]

    def read(self) -> Held:
        """Raises CheckpointError, naming the tensor, for scales or numbers that are infinite or NaN."""
        tensors = {role: read_raw(entry) for role, (_, entry) in self.tensors.items()}
        for role, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
                name, entry = self.tensors[role]
                raise CheckpointError(f"The tensor {name!r} in {entry.file} holds NaN or infinity: it is damaged.")
        return hold(self.decode(tensors))


class _Inexact(Exception):
    """None of our formats has these numbers; says why."""


def hold(codes: Codes) -> Held:
    """In one of our formats where that is exact, else whole."""
    try:
        ordered, order_D = _grouped(codes)
        return Held(_HOLD[codes.kind](ordered), order_D)
    except _Inexact as reason:
        return Held(decode(codes), None, str(reason))


def decode(codes: Codes) -> Tensor:
    """What the codes mean, fp32 (F, D)."""
    assert codes.kind != "mxfp4"
    groups_D = torch.arange(codes.num_inputs) // codes.group if codes.groups_D is None else codes.groups_D
    levels_FD = codes.codes.float()
    if codes.kind in MIDDLE:
        levels_FD -= MIDDLE[codes.kind] if codes.zeros is None else codes.zeros.float()[:, groups_D]
    return levels_FD * codes.scales.float().repeat_interleave(codes.outputs, 0)[: len(levels_FD), groups_D]


def _grouped(codes: Codes) -> tuple[Codes, Tensor | None]:
    """The columns so that groups lie together, and which input each column then is."""
    if codes.groups_D is None:
        return codes, None
    groups_D = codes.groups_D.long()
    in_turn_D = torch.arange(len(groups_D)) // codes.group
    if torch.equal(groups_D, in_turn_D):
        return replace(codes, groups_D=None), None
    order_D = groups_D.argsort(stable=True)
    if not torch.equal(groups_D[order_D], in_turn_D):
        raise _Inexact(f"its inputs lie in groups that are not all of {codes.group}")
    return replace(codes, codes=codes.codes[:, order_D], groups_D=None), order_D


def _int4(codes: Codes) -> Quantized:
    sizes = [size for size, _ in SIZES["int4"] if codes.group % size == 0 and codes.num_inputs % codes.group == 0]
    if not sizes:
        raise _Inexact(f"int4 groups of {codes.group} of {codes.num_inputs} inputs")
    halves = codes.scales.half()
    if not torch.equal(halves.float(), codes.scales.float()):
        raise _Inexact("its scales do not fit fp16")
    repeats = codes.group // max(sizes)
    zeros = None if codes.zeros is None else codes.zeros.repeat_interleave(repeats, 1)
    format = Format(kind="int4", group=max(sizes), zeros=zeros is not None)
    return Quantized(format, join_nibbles(codes.codes), halves.repeat_interleave(repeats, 1), zeros)


def _int8(codes: Codes) -> Quantized:
    group = codes.group if codes.group < codes.num_inputs else 0
    if (group, 1) not in SIZES["int8"]:
        raise _Inexact(f"int8 groups of {group} inputs")
    if codes.zeros is not None and bool((codes.zeros != MIDDLE["int8"]).any()):
        raise _Inexact("int8 with zero points")
    return Quantized(Format(kind="int8", group=group), (codes.codes ^ 128).view(torch.int8), codes.scales.float())


def _fp8(codes: Codes) -> Quantized:
    if codes.codes.dtype != torch.float8_e4m3fn:
        raise _Inexact("FP8 of another kind than E4M3")
    if codes.outputs == 1 and codes.group >= codes.num_inputs:
        return Quantized(Format(kind="fp8"), codes.codes, codes.scales.float())
    if (codes.group, codes.outputs) not in SIZES["fp8"]:
        raise _Inexact(f"FP8 blocks of {codes.outputs}×{codes.group}")
    return Quantized(Format(kind="fp8", group=codes.group, outputs=codes.outputs), codes.codes, codes.scales.float())


def _mxfp4(codes: Codes) -> Quantized:
    return Quantized(Format(kind="mxfp4", group=32), codes.codes, codes.scales)


_HOLD: dict[Kind, Callable[[Codes], Quantized]] = {"int4": _int4, "int8": _int8, "fp8": _fp8, "mxfp4": _mxfp4}


def same_kind(first: Held, second: Held) -> bool:
    """Whether rows of both may lie in one matrix."""
    if isinstance(first.weight, Tensor) or isinstance(second.weight, Tensor):
        return False
    one, other = first.order_D, second.order_D
    same_order = one is other or (one is not None and other is not None and torch.equal(one, other))
    return same_order and first.weight.format == second.weight.format
