"""compressed-tensors, in and out (vllm-project/compressed-tensors; what llm-compressor and `cascadevl quantize` write).

A group of settings says for which modules it holds, by class, name or pattern, and how their weights are stored:

    pack-quantized          whole numbers of 4 or 8 bits in int32 words, raised by half their range
    int-quantized           int8
    float-quantized         FP8 E4M3
    mxfp4-pack-quantized    two E2M1 in a byte, and exponents

Experts that a model stacks (GPT-OSS) have no names of their own there. Ours are stored as one, `…gate_up_proj_packed`,
`…_scale` and so on, with an axis for the experts in front; MXFP4 as GPT-OSS itself has it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cascadevl.checkpoints.quantized_bits import pack, unpack
from cascadevl.checkpoints.quantized_matrix import MIDDLE, Codes, Rounded
from cascadevl.checkpoints.quantized_methods import (
    FLOATS,
    NIBBLES,
    Config,
    Form,
    Stored,
    Tensors,
    check,
    fp8_matrix,
    group_of_each,
    group_size,
    read_mxfp4,
    refuse_unless,
    without_middle,
)
from cascadevl.checkpoints.weights import read_raw
from cascadevl.core.errors import CheckpointError
from cascadevl.ops.formats import Format, Kind, Quantized, split_nibbles

STORAGE = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mxfp4-pack-quantized")

_EXTRAS = ("shape", "zero_point", "g_idx")
FORMS = (
    Form(main=".weight_packed", others=(".weight_scale",), optional=tuple(f".weight_{end}" for end in _EXTRAS)),
    Form(main=".weight_scale", others=(".weight",), optional=(".weight_zero_point",), unless=".weight_packed"),
    Form(main="_proj_packed", others=("_proj_scale",), optional=("_proj_zero_point",), weight="_proj"),
    Form(main="_proj_scale", others=("_proj",), weight="_proj", unless="_proj_packed"),
)
"""Of modules, packed and plain, and of stacked experts."""


def read(config: Config, stored: Stored) -> dict[str, Rounded]:
    """Every weight of few bits, by the settings of the group that names its module."""
    refuse_unless(config, "format", (*STORAGE, "mixed-precision"), "pack-quantized")
    if (config.get("sparsity_config") or {}).get("format", "dense") != "dense" or config.get("transform_config"):
        raise CheckpointError("quantization_config speaks of sparse or rotated weights, which are not read.")
    found = read_mxfp4(config, stored)
    for form in FORMS:
        for weight, tensors in form.all(stored):
            roles = {end.removeprefix(form.weight).removeprefix("_") or "weight": at for end, at in tensors.items()}
            group = _group(config, weight.removesuffix(".weight"))
            refuse_unless(group, "format", (*STORAGE, None), None)
            found[weight] = _rounded(roles, group["weights"])
    return found


def _group(config: Config, module: str) -> Mapping[str, Any]:
    """The settings of a module: a group that names it before one that names its class."""
    groups = list((config.get("config_groups") or {}).values())
    if not groups or any(not isinstance(group, Mapping) or not group.get("weights") for group in groups):
        raise CheckpointError("quantization_config.config_groups must say for every group how its weights are stored.")
    for group in groups:
        if any(names(target, module) for target in group.get("targets", ())):
            return group
    for group in groups:
        if "Linear" in group.get("targets", ()):
            return group
    raise CheckpointError(f"{module!r} is of few bits, and no group of quantization_config speaks of it.")


def names(target: str, module: str) -> bool:
    """Whether an entry of a list of modules speaks of this one: a pattern, a name, or a part of one."""
    if target.startswith("re:"):
        try:
            return re.match(target.removeprefix("re:"), module) is not None
        except re.error as error:
            raise CheckpointError(f"quantization_config has the pattern {target!r}: {error}.") from error
    return f".{target}." in f".{module}."


def _rounded(tensors: Tensors, args: Mapping[str, Any]) -> Rounded:
    name, entry = tensors["packed" if "packed" in tensors else "weight"]
    *lead, width = entry.shape
    if len(lead) not in (1, 2):
        raise CheckpointError(
            f"The tensor {name!r} in {entry.file} has the shape {list(entry.shape)}, not of a matrix."
        )
    bits = refuse_unless(args, "num_bits", (4, 8), 8)
    if refuse_unless(args, "type", ("int", "float"), "int") == "float":
        if bits == 8:
            return _stacked(_fp8(tensors, args), lead)
        width *= 2
        check(tensors, "packed", (torch.uint8,), (*lead, width // 2))
        check(tensors, "scale", (torch.uint8,), (*lead, width // 32))
        return _stacked(Rounded(shape=(math.prod(lead), width), tensors=tensors, decode=_decode_mxfp4), lead)
    if "packed" in tensors:
        check(tensors, "packed", (torch.int32,), entry.shape)
        width = _width(tensors, width * 32 // bits)
    else:
        check(tensors, "weight", (torch.int8,), entry.shape)
    group = _shared(args, width)
    num_groups = -(-width // group)
    one = [(), (1,)] if args.get("strategy") == "tensor" else []
    flat = [tuple(lead)] if num_groups == 1 else []
    check(tensors, "scale", FLOATS, (*lead, num_groups), *flat, *one)
    if "g_idx" in tensors:
        check(tensors, "g_idx", (torch.int32, torch.int64), (width,))
    if "zero_point" in tensors:
        words = (-(-math.prod(lead) * bits // 32), num_groups)
        check(tensors, "zero_point", (torch.int8, torch.int32), words, (*lead, num_groups), *flat, *one)
    elif not args.get("symmetric", True):
        raise CheckpointError(f"{name!r} in {entry.file} has no zero points, and quantization_config says it has.")
    decode = partial(_decode_int, bits, group, width, bool(args.get("symmetric", True)))
    return _stacked(Rounded(shape=(math.prod(lead), width), tensors=tensors, decode=decode), lead)


def _stacked(rounded: Rounded, lead: Sequence[int]) -> Rounded:
    """Experts lie on top of each other; in full they would be stacked inputs first."""
    if len(lead) == 1:
        return rounded
    return Rounded(shape=(lead[0], rounded.shape[1], lead[1]), tensors=rounded.tensors, decode=rounded.decode)


def _width(tensors: Tensors, filled: int) -> int:
    """Inputs without those that fill up the last word."""
    if "shape" not in tensors:
        return filled
    check(tensors, "shape", (torch.int32, torch.int64), (2,))
    return int(read_raw(tensors["shape"][1])[1])


def _shared(args: Mapping[str, Any], width: int) -> int:
    """Inputs that share a scale."""
    strategy = args.get("strategy") or ("group" if args.get("group_size") else "tensor")
    refuse_unless({"strategy": strategy}, "strategy", ("tensor", "channel", "group"), None)
    return group_size(args, width) if strategy == "group" else width


def _fp8(tensors: Tensors, args: Mapping[str, Any]) -> Rounded:
    strategy = refuse_unless(args, "strategy", ("tensor", "channel", "block"), "tensor")
    if len(tensors["weight"][1].shape) == 2:
        return fp8_matrix(tensors, "scale", "weight", args.get("block_structure", ()) if strategy == "block" else None)
    entry = tensors["weight"][1]
    *lead, width = entry.shape
    refuse_unless({"strategy": strategy}, "strategy", ("channel",), None)
    check(tensors, "weight", (torch.float8_e4m3fn,), entry.shape)
    check(tensors, "scale", FLOATS, (*lead, 1))
    return Rounded(shape=(math.prod(lead), width), tensors=tensors, decode=_decode_fp8_stack)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.flatten(0, 1) if tensor.ndim == 3 else tensor


def _decode_fp8_stack(tensors: dict[str, Tensor]) -> Codes:
    codes = _rows(tensors["weight"])
    return Codes(kind="fp8", codes=codes, scales=_rows(tensors["scale"]), group=codes.shape[1])


def _decode_mxfp4(tensors: dict[str, Tensor]) -> Codes:
    return Codes(kind="mxfp4", codes=_rows(tensors["packed"]), scales=_rows(tensors["scale"]), group=32)


def _decode_int(bits: int, group: int, width: int, symmetric: bool, tensors: dict[str, Tensor]) -> Codes:
    kind = NIBBLES[bits]
    if "packed" in tensors:
        codes = unpack(_rows(tensors["packed"]), bits)[:, :width]
    else:
        codes = _raised(_rows(tensors["weight"]), kind)
    num_groups = -(-width // group)
    scales = tensors["scale"].reshape(-1, num_groups).expand(len(codes), -1).contiguous()
    zeros = tensors.get("zero_point")
    if zeros is not None:
        if zeros.dtype == torch.int32:
            zeros = unpack(zeros.T, bits).T[: len(codes)]
        else:
            zeros = _raised(zeros.to(torch.int8), kind)
        zeros = zeros.reshape(-1, num_groups).expand(len(codes), -1).contiguous()
        zeros = without_middle(kind, zeros) if symmetric else zeros
    groups_D = group_of_each(tensors.get("g_idx"), num_groups)
    return Codes(kind=kind, codes=codes.contiguous(), scales=scales, zeros=zeros, group=group, groups_D=groups_D)


def _raised(numbers: Tensor, kind: Kind) -> Tensor:
    """int8 with zero in the middle -> the codes, uint8."""
    return (numbers.to(torch.int16) + MIDDLE[kind]).to(torch.uint8)


def write_tensors(weight: str, quantized: Quantized, order_D: Tensor | None, experts: int = 0) -> dict[str, Tensor]:
    """The tensors of a weight under its name in full; `experts` of them are one on top of the other."""

    def stacked(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (experts, -1)) if experts else rows

    kind, scales = quantized.format.kind, stacked(quantized.scales)
    if kind in ("int8", "fp8"):
        return {weight: stacked(quantized.quants), f"{weight}_scale": scales}
    if kind == "mxfp4" and experts:
        return {f"{weight}_blocks": stacked(quantized.quants).unflatten(-1, (-1, 16)), f"{weight}_scales": scales}
    if kind == "mxfp4":
        return {f"{weight}_packed": quantized.quants, f"{weight}_scale": scales}
    codes = split_nibbles(quantized.quants)
    named = {f"{weight}_scale": scales}
    if order_D is not None:
        codes = codes[:, order_D.argsort()]
        named[f"{weight}_g_idx"] = (order_D.argsort() // quantized.format.group).int()
    named[f"{weight}_packed"] = stacked(pack(codes, 4))
    if not experts:
        named[f"{weight}_shape"] = torch.tensor(quantized.shape)
    if quantized.zeros is not None:
        named[f"{weight}_zero_point"] = pack(quantized.zeros.T.contiguous(), 4).T.contiguous()
    return named


def write_config(formats: Mapping[str, tuple[Format, bool]], whole: Sequence[str]) -> dict[str, Any]:
    """`quantization_config` for modules with their formats (and whether their inputs are in another order), and
    the linears that stay whole."""
    kinds = list(dict.fromkeys(formats.values()))
    groups = {}
    for number, kind in enumerate(kinds):
        targets = ["Linear"] if len(kinds) == 1 else [name for name, other in formats.items() if other == kind]
        groups[f"group_{number}"] = _scheme(*kind, targets)
    storage = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": storage.pop() if len(storage) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(whole),
        "kv_cache_scheme": None,
    }


def _scheme(format: Format, reordered: bool, targets: list[str]) -> dict[str, Any]:
    storage, more = {
        "int8": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
        "int4": ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": format.group}),
        "mxfp4": ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}),
        "fp8": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    }[format.kind]
    if format.kind == "int8" and format.group:
        more = {**more, "strategy": "group", "group_size": format.group}
    if format.outputs > 1:
        more = {**more, "strategy": "block", "block_structure": [format.outputs, format.group]}
    if reordered:
        more = {**more, "actorder": "group"}
    if format.kind == "mxfp4":
        more = {**more, "scale_dtype": "torch.uint8"}
    # Our kernels round the activations of int8 weights for each token, and so says the file.
    per_token = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {
        "targets": targets,
        "weights": {**more, "symmetric": not format.zeros, "dynamic": False},
        "input_activations": per_token if format.kind == "int8" else None,
        "output_activations": None,
        "format": storage,
    }
