"""A model rounded block after block, each by the inputs that the rounded blocks before it make (arXiv 2210.17323).

`ops/gptq.py` rounds one weight; here it gets its Hessian. As in the paper one pass of the samples through a block
serves all its linears, and a second one makes the inputs of the next block.

Experts are rounded to nearest: each sees few tokens of the samples, and of fewer tokens than inputs a Hessian says
nothing about most directions. So is whatever no sample reached, as the tower where there are no pictures.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascadevl.models.internvl import InternVL
from cascadevl.models.projector import pixel_shuffle
from cascadevl.models.quant_linear import ROUTERS, STACKS, QuantLinear, quantize_linears
from cascadevl.ops.attention import dense
from cascadevl.ops.formats import Format
from cascadevl.ops.gptq import output_errors, quantize_compensated
from cascadevl.ops.quantize import quantize
from cascadevl.ops.rope import rope_table
from cascadevl.preprocessing.processor import ModelInputs

Run = Callable[[nn.Module, int, Tensor], Tensor]
"""(block, number of the sample, its states) -> its states behind the block."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """What rounding a linear did to its outputs over the samples: root mean square, relative to the outputs."""

    name: str
    error_nearest: float
    error: float


@torch.no_grad()
def round_weights(
    model: InternVL, samples: Iterable[ModelInputs], format: Format, *, head: bool = False, vision: bool = False
) -> list[Rounded]:
    """Round, in place, the matrices of all layers, and the output matrix, the tower and the projector if asked.

    The model should be in fp32. States of all samples are kept at once, of one layer.
    """
    samples, decoder, found = list(samples), model.language_model, list[Rounded]()
    if vision:
        found += _round_vision(model, [each.tiles.to(model.device) for each in samples if len(each.tiles)], format)
    tokens = [each.token_ids.to(model.device) for each in samples]
    ropes = [rope_table(model.positions(ids_T), decoder.config.rope, decoder.config.head_size) for ids_T in tokens]
    states = [model.embed(ids_T, each.tiles.to(model.device)) for ids_T, each in zip(tokens, samples, strict=True)]

    def run(block: nn.Module, sample: int, hidden_TD: Tensor) -> Tensor:
        return block(hidden_TD, ropes[sample], dense)

    for index, block in enumerate(decoder.model.layers):
        found += _round_block(block, f"layers.{index}", states, run, format)
    if head and decoder.lm_head is not None:
        seen = _Seen()
        for ids_T, hidden_TD in zip(tokens, states, strict=True):  # no answer is read off a picture
            seen.read(decoder.model.norm(hidden_TD[ids_T != model.config.image_token_id]))
        found.append(_round_linear(decoder, "lm_head", "lm_head", seen, format))
    return found


def _round_vision(model: InternVL, tiles: list[Tensor], format: Format) -> list[Rounded]:
    """The tower's blocks and the projector. The way of compressed tiles, which `forward` never takes, to nearest."""
    tower, config, found = model.vision_model, model.config, list[Rounded]()
    states = [tower.embeddings(tiles_SCYX) for tiles_SCYX in tiles]
    used = config.select_layer % (len(tower.encoder.layers) + 1)
    for index, block in enumerate(tower.encoder.layers):
        reached = states if index < used else []
        found += _round_block(block, f"vision.{index}", reached, lambda block, _, hidden_SPD: block(hidden_SPD), format)
    shuffled = [pixel_shuffle(each[:, 1:], config.downsample_ratio, config.pixel_shuffle) for each in states]
    found += _round_block(model.mlp1, "mlp1", shuffled, lambda mlp, _, shuffled_SLD: mlp(shuffled_SLD), format)
    if model.mlp2 is not None:
        quantize_linears(model.mlp2, lambda _: True, format)
    return found


def _round_block(block: nn.Module, name: str, states: list[Tensor], run: Run, format: Format) -> list[Rounded]:
    """Round the linears of a block, and replace the states in front of it by those behind it."""
    linears = {
        path: child
        for path, child in block.named_modules()
        if isinstance(child, nn.Linear) and not f".{path}".endswith(ROUTERS)
    }
    with _reading(linears) as seen:
        for sample, state in enumerate(states):
            run(block, sample, state)
    found = [_round_linear(block, path, f"{name}.{path}", seen[path], format) for path in linears]
    if any(isinstance(child, STACKS) for child in block.modules()):
        quantize_linears(block, lambda path: path.endswith("experts"), format)
    for sample, state in enumerate(states):
        states[sample] = run(block, sample, state)
    return found


def _round_linear(owner: nn.Module, path: str, name: str, seen: "_Seen", format: Format) -> Rounded:
    linear = owner.get_submodule(path)
    assert isinstance(linear, nn.Linear)
    weight_FD = linear.weight.float()
    hessian_DD = seen.hessian(linear.in_features, weight_FD.device)
    quantized = quantize_compensated(weight_FD, hessian_DD, format)
    owner.set_submodule(path, QuantLinear(quantized, linear.bias))
    outputs = float(((weight_FD @ hessian_DD) * weight_FD).sum())
    errors = (output_errors(weight_FD, each, hessian_DD) for each in (quantize(weight_FD, format), quantized))
    return Rounded(name, *((float(error_F.sum()) / outputs) ** 0.5 if outputs else 0.0 for error_F in errors))


class _Seen:
    """Products of all that was read."""

    def __init__(self) -> None:
        self.sum_DD: Tensor | None = None
        self.num_tokens = 0

    def read(self, x: Tensor) -> None:
        x_TD = x.flatten(0, -2).float()
        self.num_tokens += len(x_TD)
        self.sum_DD = x_TD.T @ x_TD if self.sum_DD is None else self.sum_DD.addmm_(x_TD.T, x_TD)

    def hessian(self, width: int, device: torch.device) -> Tensor:
        """Mean of x xᵀ; zeros of nothing."""
        return torch.zeros(width, width, device=device) if self.sum_DD is None else self.sum_DD / self.num_tokens


@contextmanager
def _reading(linears: dict[str, nn.Linear]) -> Iterator[dict[str, _Seen]]:
    """What the linears read meanwhile; those that are given the same tensor, one after another, share theirs."""
    seen: dict[str, _Seen] = {}
    last: tuple[str, Tensor] | None = None

    def read(path: str, inputs: tuple[Tensor, ...]) -> None:
        nonlocal last
        if last is not None and inputs[0] is last[1]:
            seen[path] = seen[last[0]]
            return
        last = path, inputs[0]
        seen.setdefault(path, _Seen()).read(inputs[0])

    def watch(path: str, linear: nn.Linear) -> torch.utils.hooks.RemovableHandle:
        return linear.register_forward_pre_hook(lambda _, inputs: read(path, inputs))

    handles = [watch(path, linear) for path, linear in linears.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        for path in linears:
            seen.setdefault(path, _Seen())
