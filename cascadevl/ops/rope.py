"""Rotary position tables: plain, linear, dynamic NTK; fractional positions for V2PE.

RoPE: Su et al., arXiv 2104.09864. Half-rotation layout (first half with second half), as in Llama.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cascadevl.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
    """How positions become angles."""

    theta: float
    kind: Literal["default", "linear", "dynamic"] = "default"
    factor: float = 1.0
    """Linear: positions are divided by it. Dynamic: growth of theta beyond max_position."""
    max_position: int = 32768
    """Positions the model was trained on; dynamic scaling starts behind it."""

    def __post_init__(self) -> None:
        if self.kind not in ("default", "linear", "dynamic"):
            raise ConfigError(f"Rope scaling {self.kind!r} is not supported; supported: default, linear, dynamic.")
        if self.factor < 1 or self.theta <= 0:
            raise ConfigError(f"Rope needs factor >= 1 and theta > 0, got {self.factor} and {self.theta}.")


def rope_table(positions_T: Tensor, rope: Rope, head_size: int) -> tuple[Tensor, Tensor]:
    """cos_TH and sin_TH in fp32 for integer or fractional positions."""
    positions = positions_T.to(torch.float32)
    exponents = torch.arange(0, head_size, 2, dtype=torch.int64, device=positions.device).float() / head_size
    frequencies = 1.0 / (_theta(positions, rope, head_size) ** exponents)
    if rope.kind == "linear":
        frequencies = frequencies / rope.factor
    angles = torch.outer(positions, frequencies)
    angles_TH = torch.cat([angles, angles], dim=-1)
    return angles_TH.cos(), angles_TH.sin()


def _theta(positions_T: Tensor, rope: Rope, head_size: int) -> Tensor | float:
    """Grown beyond max_position where scaling is dynamic (NTK-aware), as in the released decoders.

    A tensor then, not a number: a graph is not broken by it and a GPU not waited for.
    """
    if rope.kind != "dynamic" or not len(positions_T):
        return rope.theta
    length = positions_T.max().double().floor() + 1
    growth = (rope.factor * length / rope.max_position - (rope.factor - 1)).clamp_min(1.0)
    return rope.theta * growth ** (head_size / (head_size - 2))


def rotate(x_TNH: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
    """Turn each head of x by the angles of its position."""
    first, second = x_TNH.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x_TNH * cos_TH[:, None] + turned * sin_TH[:, None]


def v2pe_positions(visual_T: Tensor, delta: float) -> Tensor:
    """Fractional positions (T,), fp32: text advances by 1, visual tokens by delta.

    V2PE, arXiv 2412.09616. After a picture the next text token restarts at the next whole
    number, as the released V2PE code does (the paper's plain recursion agrees whenever
    delta × visual tokens is whole). delta = 1 gives the ordinary positions bit for bit.
    """
    if not 0 < delta <= 1:
        raise ConfigError(f"V2PE needs 0 < delta <= 1, got {delta}.")
    if delta == 1:
        return torch.arange(len(visual_T), dtype=torch.float32, device=visual_T.device)
    positions = torch.empty(len(visual_T), dtype=torch.float32)
    at, run = -1.0, 0  # `at`: position of the last text token; `run`: visual tokens since
    for i, visual in enumerate(visual_T.tolist()):
        if visual:
            run += 1
            positions[i] = at + delta * run
        else:
            at = math.ceil(at + delta * run) + 1.0
            run = 0
            positions[i] = at
    return positions.to(visual_T.device)
