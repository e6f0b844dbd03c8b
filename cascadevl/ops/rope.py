"""Rotary position tables: plain, linear, dynamic NTK, YaRN, LongRoPE; fractional positions for V2PE.

RoPE: Su et al., arXiv 2104.09864. YaRN: arXiv 2309.00071. LongRoPE: arXiv 2402.13753.
Half-rotation layout (first half with second half), as in Llama.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from cascadevl.core.errors import ConfigError
from cascadevl.ops.by_hand import Rotate, by_hand

Kind = Literal["default", "linear", "dynamic", "yarn", "longrope"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
    """How positions become angles."""

    theta: float
    kind: Kind = "default"
    factor: float = 1.0
    """Linear: positions are divided by it. Dynamic: growth of theta beyond max_position. YaRN: slow
    frequencies are divided by it."""
    max_position: int = 32768
    """Positions that the config speaks of; dynamic scaling starts behind it."""
    trained_position: int = 0
    """YaRN and LongRoPE: positions before the scaling (`original_max_position_embeddings`)."""
    attention_factor: float = 1.0
    """YaRN and LongRoPE: what cos and sin are multiplied by."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    """YaRN: turns within trained_position from which a frequency is kept, and up to which it is divided."""
    truncate: bool = True
    """YaRN: the borders between them are whole frequencies."""
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    """LongRoPE: a divisor of each frequency, up to trained_position and beyond it."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"Rope scaling {self.kind!r} is not supported; supported: {', '.join(get_args(Kind))}.")
        if self.factor < 1 or self.theta <= 0:
            raise ConfigError(f"Rope needs factor >= 1 and theta > 0, got {self.factor} and {self.theta}.")
        if self.kind in ("yarn", "longrope") and self.trained_position < 1:
            raise ConfigError(f"Rope scaling {self.kind!r} needs original_max_position_embeddings.")
        if self.kind == "longrope" and not (self.short_factors and self.long_factors):
            raise ConfigError("Rope scaling 'longrope' needs short_factor and long_factor.")

    @property
    def longest(self) -> int:
        """Positions that the scaling is made for."""
        grows = self.kind in ("linear", "dynamic")
        return int(self.max_position * self.factor) if grows else self.max_position


def rope_table(
    positions_T: Tensor, rope: Rope, head_size: int, lengths_T: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """cos_TH and sin_TH in fp32 for integer or fractional positions.

    `lengths_T` is the length of each token's sample, which dynamic scaling and LongRoPE depend on. Without it
    samples are taken to be whole, and to begin where positions stop growing.
    """
    positions = positions_T.to(torch.float32)
    exponents = torch.arange(0, head_size, 2, dtype=torch.int64, device=positions.device).float() / head_size
    lengths = None
    if rope.kind in ("dynamic", "longrope"):
        lengths = (_lengths(positions) if lengths_T is None else lengths_T.double())[:, None]
    angles = positions[:, None] * _frequencies(lengths, rope, exponents)
    angles_TH = torch.cat([angles, angles], dim=-1)
    return angles_TH.cos() * rope.attention_factor, angles_TH.sin() * rope.attention_factor


def _frequencies(lengths_T1: Tensor | None, rope: Rope, exponents: Tensor) -> Tensor:
    """(1, H/2), or (T, H/2) where they depend on the length of a token's sample."""
    size = 2 * len(exponents)
    if rope.kind == "dynamic":
        assert lengths_T1 is not None
        # NTK-aware: theta grows behind max_position, as in the released decoders.
        growth = (rope.factor * lengths_T1 / rope.max_position - (rope.factor - 1)).clamp_min(1.0)
        theta = rope.theta * growth ** (size / (size - 2))
        return 1.0 / theta.float() ** exponents
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        frequencies = frequencies / rope.factor
    if rope.kind == "yarn":
        kept = _yarn_kept(rope, size).to(exponents.device)
        frequencies = frequencies / rope.factor * (1 - kept) + frequencies * kept
    if rope.kind == "longrope":
        assert lengths_T1 is not None
        short, long = (torch.tensor(f, device=exponents.device) for f in (rope.short_factors, rope.long_factors))
        if len(short) != len(exponents) or len(long) != len(exponents):
            raise ConfigError(
                f"LongRoPE has {len(short)} short and {len(long)} long factors for {len(exponents)} frequencies."
            )
        return frequencies / torch.where(lengths_T1 > rope.trained_position, long, short)
    return frequencies[None]


def _lengths(positions_T: Tensor) -> Tensor:
    """(T,), double: positions in the sample of each token, up to the last token that is here.

    Tensors throughout: a graph is not broken by it and a GPU not waited for.
    """
    sample_T = torch.zeros_like(positions_T, dtype=torch.int64)
    sample_T[1:] = (positions_T[1:] <= positions_T[:-1]).cumsum(0)
    last = torch.zeros_like(positions_T).scatter_reduce(0, sample_T, positions_T, "amax")
    return last[sample_T].double().floor() + 1


def _yarn_kept(rope: Rope, size: int) -> Tensor:
    """Share of each frequency that is left as it is: YaRN, arXiv 2309.00071, §3.2."""

    def frequency_with(turns: float) -> float:
        return size * math.log(rope.trained_position / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = frequency_with(rope.beta_fast), frequency_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = (torch.arange(size // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    return 1 - ramp.clamp(0, 1)


def rotate(x_TNH: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
    """Turn each head of x by the angles of its position."""
    if by_hand(x_TNH, cos_TH, sin_TH):
        return Rotate.apply(x_TNH, cos_TH, sin_TH)  # type: ignore[return-value]
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
