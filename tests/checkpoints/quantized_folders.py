"""Folders with weights of few bits, written from the formats' definitions, and their twins in full precision.

Each packer invents codes, scales and zero points, and gives the file's tensors and the weight that they mean, one
column after the other. Nothing that the reader does is used here.
"""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "model.safetensors"
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

Packer = Callable[[str, int, int, torch.Generator], tuple[dict[str, Tensor], Tensor]]
"""(module's name, outputs, inputs, chance) -> (tensors by name, weight fp32)."""


def draw(chance: torch.Generator, low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=chance)


def draw_scales(chance: torch.Generator, *shape: int) -> Tensor:
    """Numbers that bf16 and fp16 hold."""
    return draw(chance, 128, 256, *shape) / 2**14


def words(codes: Tensor, order: Sequence[int], bits: int = 4) -> Tensor:
    """Along the last axis: the number at place `order[i]` of each few lies in the bits from i · bits on."""
    packed = torch.zeros(*codes.shape[:-1], codes.shape[-1] // len(order), dtype=torch.int64)
    for i, place in enumerate(order):
        packed |= codes[..., place :: len(order)] << i * bits
    return packed.to(torch.int32)


def meaning(q: Tensor, zero: Tensor | int, scales: Tensor, groups: Sequence[int]) -> Tensor:
    """(q - zero) · scale, input by input; `groups` says where an input's zero and scale stand."""
    weight = torch.zeros(q.shape, dtype=torch.float64)
    for d, group in enumerate(groups):
        offset = zero if isinstance(zero, int) else zero[:, group]
        weight[:, d] = (q[:, d] - offset).double() * scales[:, group].double()
    return weight.float()


def under(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{end}": tensor.contiguous() for end, tensor in tensors.items()}


def awq(group: int) -> Packer:
    """AutoAWQ's gemm: (inputs, outputs / 8), eight outputs in the order 0 2 4 6 1 3 5 7."""

    def pack(name: str, outputs: int, width: int, chance: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        size, order = (width if group == -1 else group), (0, 2, 4, 6, 1, 3, 5, 7)
        q, z = draw(chance, 0, 16, outputs, width), draw(chance, 0, 16, outputs, width // size)
        s = draw_scales(chance, outputs, width // size)
        tensors = {"qweight": words(q.T, order), "qzeros": words(z.T, order), "scales": s.T.half()}
        return under(name, tensors), meaning(q, z, s, [d // size for d in range(width)])

    return pack


def gptq(group: int, bits: int = 4, *, version: int = 1, symmetric: bool = False, act_order: bool = False) -> Packer:
    """(inputs / 8, outputs), eight inputs in their order; zero points less one in version 1."""

    def pack(name: str, outputs: int, width: int, chance: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        size, levels, order = (width if group == -1 else group), 2**bits, range(32 // bits)
        groups = [d // size for d in range(width)]
        if act_order:
            random.Random(width).shuffle(groups)
        q, z = draw(chance, 0, levels, outputs, width), draw(chance, 0, levels, outputs, width // size)
        if symmetric:
            z[:] = levels // 2
        s = draw_scales(chance, outputs, width // size) * 16 / levels
        tensors = {
            "qweight": words(q, order, bits).T,
            "qzeros": words((z.T - (1 if version == 1 else 0)) % levels, order, bits),
            "scales": s.T.half(),
            "g_idx": torch.tensor(groups, dtype=torch.int32),
        }
        return under(name, tensors), meaning(q, z, s, groups)

    return pack


def compressed_int4(group: int, *, zeros: bool = False) -> Packer:
    """pack-quantized: (outputs, inputs / 8), numbers raised by 8; zero points packed along the outputs."""

    def pack(name: str, outputs: int, width: int, chance: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        size = width if group == -1 else group
        q, z = draw(chance, 0, 16, outputs, width), draw(chance, 0, 16, outputs, width // size)
        s = draw_scales(chance, outputs, width // size)
        tensors = {
            "weight_packed": words(q, range(8)),
            "weight_scale": s.bfloat16(),
            "weight_shape": torch.tensor([outputs, width]),
        }
        if zeros:
            tensors["weight_zero_point"] = words(z.T, range(8)).T
        return under(name, tensors), meaning(q, z if zeros else 8, s, [d // size for d in range(width)])

    return pack


def compressed_int8(strategy: str) -> Packer:
    """int-quantized: int8, and a scale for each output or for all."""

    def pack(name: str, outputs: int, width: int, chance: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        q = draw(chance, -128, 128, outputs, width)
        s = draw_scales(chance, 1 if strategy == "tensor" else outputs, 1) / 16
        scales = s.view(1) if strategy == "tensor" else s
        tensors = {"weight": q.to(torch.int8), "weight_scale": scales.bfloat16()}
        return under(name, tensors), meaning(q, 0, s.expand(outputs, 1), [0] * width)

    return pack


def fp8(rows: int, columns: int, end: str = "weight_scale_inv") -> Packer:
    """Blocks of rows × columns share a scale, the last ones perhaps smaller; 0: all of them."""

    def pack(name: str, outputs: int, width: int, chance: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        high, wide = rows or outputs, columns or width
        s = draw_scales(chance, -(-outputs // high), -(-width // wide))
        q = (torch.randn(outputs, width, generator=chance) * 100).to(torch.float8_e4m3fn)
        weight = torch.zeros(outputs, width)
        for f in range(0, outputs, high):
            for d in range(0, width, wide):
                block = slice(f, f + high), slice(d, d + wide)
                weight[block] = q.float()[block] * s[f // high, d // wide]
        return under(name, {"weight": q, end: s if rows or columns else s.view(())}), weight

    return pack


def mxfp4(experts: int, outputs: int, width: int, rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """GPT-OSS's blocks and scales, and the weight (experts, inputs, outputs)."""
    blocks = torch.zeros(experts, outputs, width // 32, 16, dtype=torch.uint8)
    scales = torch.zeros(experts, outputs, width // 32, dtype=torch.uint8)
    weight = torch.zeros(experts, width, outputs)
    for e in range(experts):
        for f in range(outputs):
            for g in range(width // 32):
                exponent = rng.randrange(118, 122)
                scales[e, f, g] = exponent
                for b in range(16):
                    pair = [rng.randrange(16), rng.randrange(16)]
                    blocks[e, f, g, b] = pair[0] + 16 * pair[1]
                    for i, code in enumerate(pair):
                        value = E2M1[code % 8] * (-1 if code >= 8 else 1) * 2.0 ** (exponent - 127)
                        weight[e, 32 * g + 2 * b + i, f] = value
    return blocks, scales, weight


def decoder_matrices(tensors: dict[str, Tensor]) -> list[str]:
    """Modules of the decoder's layers that are linear."""
    ends = tuple(f"{part}_proj.weight" for part in ("q", "k", "v", "o", "gate", "up", "down"))
    fused = ("wqkv.weight", "wo.weight", "w1.weight", "w2.weight", "w3.weight")
    return [name.removesuffix(".weight") for name in tensors if ".layers." in name and name.endswith(ends + fused)]


def edit_config(folder: Path, config: dict[str, Any] | None, part: str | None = None) -> None:
    """Write `quantization_config`, at the top or in a part."""
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    (raw if part is None else raw[part])["quantization_config"] = config
    path.write_text(json.dumps(raw))


def write_pair(
    source: Path, quantised: Path, whole: Path, config: dict[str, Any], pack: Packer, part: str | None = None
) -> None:
    """Two folders: one with the decoder's matrices packed, one with what they mean."""
    chance = torch.Generator().manual_seed(0)
    tensors = load_file(source / WEIGHTS)
    packed, meant = dict(tensors), dict(tensors)
    for module in decoder_matrices(tensors):
        outputs, width = packed.pop(f"{module}.weight").shape
        stored, weight = pack(module, outputs, width, chance)
        packed |= stored
        meant[f"{module}.weight"] = weight
    for folder, written in ((quantised, packed), (whole, meant)):
        shutil.copytree(source, folder)
        save_file(written, folder / WEIGHTS, {"format": "pt"})
    edit_config(quantised, config, part)
