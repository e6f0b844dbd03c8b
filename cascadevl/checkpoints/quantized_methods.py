"""How AWQ, GPTQ, FP8 and MXFP4 folders store weights of few bits.

Each reader gets `quantization_config` and the tensors of a folder, and says which of them stand for which weight.
compressed-tensors has a file of its own. Legend: F outputs, D inputs, G groups of inputs, E experts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cascadevl.checkpoints.quantized_bits import unpack, unshuffle
from cascadevl.checkpoints.quantized_matrix import MIDDLE, Codes, Rounded
from cascadevl.checkpoints.weights import Entry
from cascadevl.core.errors import CheckpointError
from cascadevl.ops.formats import Kind

Config = Mapping[str, Any]
Stored = Mapping[str, Entry]
Method = Callable[[Config, Stored], dict[str, Rounded]]
"""(quantization_config, tensors by name) -> weights by name. Raises CheckpointError for what it cannot read."""

Tensors = dict[str, tuple[str, Entry]]
"""Role -> (name, where it lies)."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
NIBBLES: dict[int, Kind] = {4: "int4", 8: "int8"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """The tensors that stand for one weight, by the ends of their names."""

    main: str
    """What shows that a weight is of few bits."""
    others: tuple[str, ...]
    """What must lie beside it."""
    optional: tuple[str, ...] = ()
    weight: str = ".weight"
    """How the weight itself would be called."""
    unless: str | None = None
    """What lies beside `main` where it belongs to another form."""

    def all(self, stored: Stored) -> Iterator[tuple[str, Tensors]]:
        """Each weight of this form. Raises CheckpointError where one lacks a part, or is there in full as well."""
        for name in stored:
            if not name.endswith(self.main):
                continue
            stem = name.removesuffix(self.main)
            if self.unless is not None and stem + self.unless in stored:
                continue
            ends = (self.main, *self.others, *(end for end in self.optional if stem + end in stored))
            if missing := [stem + end for end in ends if stem + end not in stored]:
                raise CheckpointError(f"{stored[name].file} has {name!r} without {', '.join(map(repr, missing))}.")
            if self.weight not in ends and stem + self.weight in stored:
                raise CheckpointError(f"{name!r} and {stem + self.weight!r} are the same weight: which one holds?")
            yield stem + self.weight, {end: (stem + end, stored[stem + end]) for end in ends}


def check(tensors: Tensors, end: str, dtypes: tuple[torch.dtype, ...], *shapes: tuple[int, ...]) -> None:
    """Refuse a tensor of another type or shape than it must have."""
    name, entry = tensors[end]
    if entry.dtype not in dtypes or entry.shape not in shapes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise CheckpointError(
            f"The tensor {name!r} in {entry.file} is {str(entry.dtype).removeprefix('torch.')} {list(entry.shape)}; "
            f"expected {wanted} {' or '.join(str(list(shape)) for shape in shapes)}, as quantization_config says."
        )


def matrix(tensors: Tensors, end: str, num_axes: int = 2) -> tuple[int, ...]:
    """The shape of a tensor that must have so many axes."""
    name, entry = tensors[end]
    if len(entry.shape) != num_axes:
        raise CheckpointError(
            f"The tensor {name!r} in {entry.file} has the shape {list(entry.shape)}, not of a matrix."
        )
    return entry.shape


def refuse_unless(config: Config, key: str, known: tuple[Any, ...], default: Any) -> Any:
    """A setting of which only some values are read."""
    value = config.get(key, default)
    if value not in known:
        raise CheckpointError(
            f"quantization_config has {key} {value!r}: expected {' or '.join(map(repr, known))}. "
            "Load the model's folder in full precision, and round it with `cascadevl quantize`."
        )
    return value


def group_size(config: Config, width: int) -> int:
    """Inputs that share a scale; -1 in files means all."""
    group = config.get("group_size", config.get("q_group_size", 128))
    if not isinstance(group, int) or not (group == -1 or group > 0):
        raise CheckpointError(f"quantization_config has group_size {group!r}: expected a whole number, or -1.")
    return width if group == -1 else min(group, width)


def read_awq(config: Config, stored: Stored) -> dict[str, Rounded]:
    """AWQ (arXiv 2306.00978) as AutoAWQ's "gemm": a word holds eight outputs, shuffled; (inputs, outputs)."""
    refuse_unless(config, "bits" if "bits" in config else "w_bit", (4,), 4)
    refuse_unless({**config, "version": str(config.get("version", "gemm")).lower()}, "version", ("gemm",), "gemm")
    found = {}
    for weight, tensors in Form(main=".qweight", others=(".qzeros", ".scales")).all(stored):
        width, words = matrix(tensors, ".qweight")
        group = group_size(config, width)
        check(tensors, ".qweight", (torch.int32,), (width, words))
        check(tensors, ".qzeros", (torch.int32,), (-(-width // group), words))
        check(tensors, ".scales", FLOATS, (-(-width // group), 8 * words))
        found[weight] = Rounded(shape=(8 * words, width), tensors=tensors, decode=partial(_decode_awq, group))
    return found


def _decode_awq(group: int, tensors: dict[str, Tensor]) -> Codes:
    codes, zeros = (unshuffle(unpack(tensors[end], 4)).T.contiguous() for end in (".qweight", ".qzeros"))
    return Codes(kind="int4", codes=codes, scales=tensors[".scales"].T.contiguous(), zeros=zeros, group=group)


def read_gptq(config: Config, stored: Stored) -> dict[str, Rounded]:
    """GPTQ (arXiv 2210.17323): a word holds eight inputs; zero points less one in the first version of the files."""
    bits = refuse_unless(config, "bits", (4, 8), 4)
    version = refuse_unless(config, "checkpoint_format", ("gptq", "gptq_v2"), "gptq")
    refuse_unless(config, "is_marlin_format", (False,), False)
    own = [pattern for pattern, change in (config.get("dynamic") or {}).items() if change]
    if own:
        raise CheckpointError(f"quantization_config.dynamic gives {own[0]!r} settings of its own, which are not read.")
    found = {}
    form = Form(main=".qweight", others=(".qzeros", ".scales"), optional=(".g_idx",))
    for weight, tensors in form.all(stored):
        words, outputs = matrix(tensors, ".qweight")
        width = words * 32 // bits
        group = group_size(config, width)
        num_groups = -(-width // group)
        check(tensors, ".qweight", (torch.int32,), (words, outputs))
        check(tensors, ".qzeros", (torch.int32,), (num_groups, outputs * bits // 32))
        check(tensors, ".scales", FLOATS, (num_groups, outputs))
        if ".g_idx" in tensors:
            check(tensors, ".g_idx", (torch.int32, torch.int64), (width,))
        decode = partial(_decode_gptq, bits, group, 1 if version == "gptq" else 0, bool(config.get("sym", False)))
        found[weight] = Rounded(shape=(outputs, width), tensors=tensors, decode=decode)
    return found


def _decode_gptq(bits: int, group: int, zero_shift: int, symmetric: bool, tensors: dict[str, Tensor]) -> Codes:
    kind = NIBBLES[bits]
    codes = unpack(tensors[".qweight"].T, bits)
    # Within its bits, as AutoGPTQ has it: a zero point of 0 was stored as all ones.
    zeros = (unpack(tensors[".qzeros"], bits) + zero_shift & 2**bits - 1).T.contiguous()
    return Codes(
        kind=kind,
        codes=codes,
        scales=tensors[".scales"].T.contiguous(),
        zeros=without_middle(kind, zeros) if symmetric else zeros,
        group=group,
        groups_D=group_of_each(tensors.get(".g_idx"), len(tensors[".scales"])),
    )


def without_middle(kind: Kind, zeros: Tensor) -> Tensor | None:
    """None where all zero points are the middle, as symmetric files have them."""
    return None if bool((zeros == MIDDLE[kind]).all()) else zeros


def group_of_each(groups_D: Tensor | None, num_groups: int) -> Tensor | None:
    """`g_idx`, which must speak of groups that there are."""
    if groups_D is not None and not 0 <= int(groups_D.min()) <= int(groups_D.max()) < num_groups:
        raise CheckpointError(
            f"g_idx speaks of the groups {int(groups_D.min())} to {int(groups_D.max())} of {num_groups}."
        )
    return groups_D


def read_fp8(config: Config, stored: Stored) -> dict[str, Rounded]:
    """FP8 E4M3: DeepSeek's and Qwen3's blocks of 128×128 (arXiv 2412.19437), or a scale for each output or all."""
    blocks = config.get("weight_block_size")
    refuse_unless(config, "fmt", ("e4m3", None), "e4m3")
    found = {}
    for end in (".weight_scale_inv", ".weight_scale"):
        for weight, tensors in Form(main=end, others=(".weight",)).all(stored):
            found[weight] = fp8_matrix(tensors, end, ".weight", blocks)
    return found


def fp8_matrix(tensors: Tensors, scale: str, weight: str, blocks: Sequence[int] | None) -> Rounded:
    """An FP8 weight and the numbers that it is to be multiplied with (`…_inv` in files means the same)."""
    outputs, width = shape = matrix(tensors, weight)
    if blocks is not None and (len(blocks) != 2 or not all(isinstance(size, int) and size > 0 for size in blocks)):
        raise CheckpointError(f"quantization_config speaks of blocks of {blocks!r}: expected two whole numbers.")
    check(tensors, weight, (torch.float8_e4m3fn, torch.float8_e5m2), shape)
    if blocks is None:
        check(tensors, scale, (*FLOATS, torch.float8_e8m0fnu), (), (1,), (1, 1), (outputs,), (outputs, 1))
        rows, columns = 1, width
    else:
        rows, columns = blocks
        check(tensors, scale, (*FLOATS, torch.float8_e8m0fnu), (-(-outputs // rows), -(-width // columns)))
    decode = partial(_decode_fp8, scale, weight, rows, columns)
    return Rounded(shape=shape, tensors=tensors, decode=decode)


def _decode_fp8(scale: str, weight: str, rows: int, columns: int, tensors: dict[str, Tensor]) -> Codes:
    codes, scales = tensors[weight], tensors[scale].float()
    if scales.numel() == 1 or scales.ndim == 1:
        scales = scales.view(-1, 1).expand(-(-len(codes) // rows), 1).contiguous()
    return Codes(kind="fp8", codes=codes, scales=scales, group=columns, outputs=rows)


def read_mxfp4(config: Config, stored: Stored) -> dict[str, Rounded]:
    """GPT-OSS's experts (arXiv 2508.10925): (E, F, G, 16) bytes and (E, F, G) exponents, stacked inputs first in full.

    transformers ends their names in `_blocks` and `_scales`, openai/gpt-oss in `.blocks` and `.scales`.
    """
    found = {}
    for mark in "_.":
        for weight, tensors in Form(main=f"{mark}blocks", others=(f"{mark}scales",), weight="").all(stored):
            found[weight] = mxfp4_stack(tensors, f"{mark}blocks", f"{mark}scales")
    return found


def mxfp4_stack(tensors: Tensors, blocks: str, scales: str) -> Rounded:
    """The weights of all experts."""
    experts, outputs, groups, _ = shape = matrix(tensors, blocks, 4)
    check(tensors, blocks, (torch.uint8,), (*shape[:3], 16))
    check(tensors, scales, (torch.uint8,), shape[:3])
    decode = partial(_decode_mxfp4, blocks, scales)
    return Rounded(shape=(experts, groups * 32, outputs), tensors=tensors, decode=decode)


def _decode_mxfp4(blocks: str, scales: str, tensors: dict[str, Tensor]) -> Codes:
    codes = tensors[blocks].flatten(0, 1).flatten(1)
    return Codes(kind="mxfp4", codes=codes, scales=tensors[scales].flatten(0, 1), group=32)
