"""AWQ: inputs that are large get finer weights (arXiv 2306.00978, §3.2).

Each input d of a linear is multiplied by s_d = mean|x_d|^α in the weight, and divided by it in whatever makes that
input: a norm, or the linear in front. In full precision nothing changes; rounded, the columns that matter most lose
least. α is looked for on a grid, by the error of the layers' own outputs, and 0 (no scaling) is among its values.

From the paper differs: its code measures attention as a whole where we measure each linear; values and `o_proj` are
scaled under grouped queries too, with one scale for the query heads that share a value; weights are not clipped.
Experts and whatever follows a GELU are left as they are.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascadevl.models.decoder import MLP, Block, Decoder
from cascadevl.models.internvl import InternVL
from cascadevl.models.vision import Block as VisionBlock
from cascadevl.ops.formats import Format
from cascadevl.ops.quantize import dequantize, quantize
from cascadevl.preprocessing.processor import ModelInputs

GRID = 20
"""Values of α from 0 to under 1."""

MAX_ROWS = 512
"""Activations that the error of a layer is measured on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """Linears that read the same inputs, and what makes these."""

    name: str
    before: nn.Module
    """A norm, or a linear whose outputs are these inputs."""
    linears: tuple[nn.Linear, ...]
    head_size: int = 0
    """If `before` makes values: how many of them lie together, …"""
    repeats: int = 1
    """… and by how many heads they are read."""

    def narrow(self, mean_D: Tensor) -> Tensor:
        """From the inputs of the linears to the outputs of `before`."""
        if self.repeats == 1:
            return mean_D
        return mean_D.unflatten(0, (-1, self.repeats, self.head_size)).mean(1).flatten()

    def widen(self, scale_D: Tensor) -> Tensor:
        """And back."""
        if self.repeats == 1:
            return scale_D
        return scale_D.unflatten(0, (-1, self.head_size)).repeat_interleave(self.repeats, 0).flatten()


@dataclass(frozen=True, slots=True)
class Scaled:
    """What the search found for a fold. Errors are those of the outputs, relative to them, root mean square."""

    name: str
    alpha: float
    error_plain: float
    error: float


@dataclass(slots=True)
class _Seen:
    """The inputs of a fold: the mean of their magnitudes, and some of them whole."""

    sum_D: Tensor | float = 0.0
    num: int = 0
    rows: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def scale_weights(
    model: InternVL,
    samples: Iterable[ModelInputs],
    format: Format,
    *,
    head: bool = False,
    vision: bool = False,
    rows_per_sample: int = 16,
    seed: int = 0,
) -> list[Scaled]:
    """Scale, in place, the weights that will be rounded to `format`. The model should be in fp32.

    Every sample is read once. `rows_per_sample` of its tokens are kept for the search.
    """
    folds = decoder_folds(model.language_model, head) + (vision_folds(model) if vision else [])
    generator = torch.Generator().manual_seed(seed)
    with _watching(folds, rows_per_sample, generator) as seen:
        for sample in samples:
            model(sample.token_ids.to(model.device), sample.tiles.to(model.device))
    return [_scale(fold, seen[fold.name], format) for fold in folds if seen[fold.name].num]


def decoder_folds(decoder: Decoder, head: bool) -> list[Fold]:
    folds = []
    for index, block in enumerate(decoder.model.layers):
        assert isinstance(block, Block)
        attention, mlp, name = block.self_attn, block.mlp, f"layers.{index}"
        values, queries = attention.v_proj.out_features, attention.o_proj.in_features
        reads = (attention.q_proj, attention.k_proj, attention.v_proj)
        folds.append(Fold(name=f"{name}.qkv", before=block.input_layernorm, linears=reads))
        folds.append(
            Fold(
                name=f"{name}.o_proj",
                before=attention.v_proj,
                linears=(attention.o_proj,),
                head_size=attention.head_size,
                repeats=queries // values,
            )
        )
        if isinstance(mlp, MLP):
            reads = (mlp.gate_proj, mlp.up_proj)
            folds.append(Fold(name=f"{name}.gate_up", before=block.post_attention_layernorm, linears=reads))
            folds.append(Fold(name=f"{name}.down_proj", before=mlp.up_proj, linears=(mlp.down_proj,)))
    if head and decoder.lm_head is not None:
        folds.append(Fold(name="lm_head", before=decoder.model.norm, linears=(decoder.lm_head,)))
    return folds


def vision_folds(model: InternVL) -> list[Fold]:
    folds = []
    for index, block in enumerate(model.vision_model.encoder.layers):
        assert isinstance(block, VisionBlock)
        folds.append(Fold(name=f"vision.{index}.qkv", before=block.norm1, linears=(block.attn.qkv,)))
        folds.append(Fold(name=f"vision.{index}.fc1", before=block.norm2, linears=(block.mlp.fc1,)))
    return folds


@contextmanager
def _watching(folds: list[Fold], num_rows: int, generator: torch.Generator) -> Iterator[dict[str, _Seen]]:
    seen = {fold.name: _Seen() for fold in folds}

    def watch(fold: Fold) -> torch.utils.hooks.RemovableHandle:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x_TD, mine = inputs[0].flatten(0, -2).float(), seen[fold.name]
            mine.sum_D = mine.sum_D + x_TD.abs().sum(0)
            mine.num += len(x_TD)
            if sum(map(len, mine.rows)) < MAX_ROWS:
                chosen = torch.randperm(len(x_TD), generator=generator)[:num_rows]
                mine.rows.append(x_TD[chosen.to(x_TD.device)])

        return fold.linears[0].register_forward_pre_hook(look)

    handles = [watch(fold) for fold in folds]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _scale(fold: Fold, seen: _Seen, format: Format) -> Scaled:
    """Find the best α, and fold its scales in."""
    assert isinstance(seen.sum_D, Tensor)
    x_TD, mean_D = torch.cat(seen.rows), fold.narrow(seen.sum_D / seen.num)
    outputs = sum(float(F.linear(x_TD, linear.weight.float()).square().sum()) for linear in fold.linears)
    errors = {}
    for step in range(GRID):
        scale_D = fold.widen(scales(mean_D, step / GRID))
        errors[step / GRID] = sum(output_error(linear.weight, x_TD, scale_D, format) for linear in fold.linears)
    alpha = min(errors, key=lambda alpha: errors[alpha])
    apply(fold, scales(mean_D, alpha))
    relative = [(errors[a] / outputs) ** 0.5 if outputs else 0.0 for a in (0.0, alpha)]
    return Scaled(fold.name, alpha, *relative)


def scales(mean_D: Tensor, alpha: float) -> Tensor:
    """mean|x|^α, brought to lie around one."""
    # Inputs that are never there would be divided by nothing.
    scale_D = mean_D.clamp(min=1e-4 * float(mean_D.max()) or 1.0) ** alpha
    return scale_D / (scale_D.max() * scale_D.min()).sqrt()


def output_error(weight_FD: Tensor, x_TD: Tensor, scale_D: Tensor, format: Format) -> float:
    """‖(Q(W·s)/s - W) x‖², eq. 4 of the paper."""
    weight_FD = weight_FD.float()
    rounded_FD = dequantize(quantize(weight_FD * scale_D, format)) / scale_D
    return float(F.linear(x_TD, rounded_FD - weight_FD).square().sum())


def apply(fold: Fold, scale_D: Tensor) -> None:
    """Multiply the inputs of the weights, divide what makes them: in full precision nothing changes."""
    for linear in fold.linears:
        linear.weight.mul_(fold.widen(scale_D).to(linear.weight.dtype))
    weight, bias = fold.before.weight, getattr(fold.before, "bias", None)
    assert isinstance(weight, Tensor)
    weight.div_(scale_D.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1)))
    if bias is not None:
        bias.div_(scale_D.to(bias.dtype))
