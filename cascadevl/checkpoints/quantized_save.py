"""Weights of few bits become tensors of a folder, in compressed-tensors' form; GPT-OSS's MXFP4 in its own.

What was loaded or rounded here is written to the bit, under the names of the layout asked for. Beside
`quantization_config`, which other engines read, config.json gets a part of ours: `"cascadevl": {"kv_cache": …}`.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cascadevl.checkpoints.layouts import Layout
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.pieces import Piece
from cascadevl.checkpoints.quantized_compressed import write_config, write_tensors
from cascadevl.core.errors import ConfigError
from cascadevl.models.internvl import InternVL
from cascadevl.models.quant_linear import QuantLinear, cut, few_bits, joined
from cascadevl.ops.formats import Format, Quantized

Sources = list[tuple[str, Piece]]
"""Names of ours and their rows, of which a tensor of a file is made."""

OURS = "cascadevl"
"""Our part of config.json."""


def placed(parts: Parts, layout: Layout) -> dict[str, Sources]:
    """Every weight of the layout's files, and what of ours it is made of."""
    with torch.device("meta"):
        whole = InternVL(parts.model.config)  # it has the names, whatever has been rounded
    found: dict[str, Sources] = {}
    for name, _ in whole.named_parameters():
        for piece in layout.pieces(name, parts.model.config, ()):
            found.setdefault(piece.name, []).append((name, piece))
    return found


def whole_parameters(model: nn.Module) -> dict[str, Tensor]:
    """What is not of few bits, biases of such layers among it."""
    biases = {
        f"{name}.bias": module.bias
        for name, module in model.named_modules()
        if isinstance(module, QuantLinear) and module.bias is not None
    }
    return {**dict(model.named_parameters()), **biases}


class FewBits:
    """The weights of few bits of a model, as its files have them."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = few_bits(model)

    def __contains__(self, name: str) -> bool:
        return name in self._layers

    def __bool__(self) -> bool:
        return bool(self._layers)

    def format(self, name: str) -> tuple[Format, bool]:
        """How it is rounded, and whether its inputs are in another order."""
        layer = self._layers[name][0]
        return layer.format, layer.order_D is not None

    def is_stack(self, name: str) -> bool:
        return not name.endswith(".weight")

    def stored(self, stored: str, sources: Sources) -> Iterator[tuple[str, Tensor]]:
        """The tensors of one weight of the files."""
        parts = []
        for name, piece in sorted(sources, key=lambda source: source[1].start):
            if name not in self:
                raise ConfigError(f"The layout joins {name!r}, which is whole, with weights of few bits in {stored!r}.")
            parts.append(self._rows(name, piece))
        known = [part for part in parts if part is not None]
        weight = joined(known) if len(known) == len(parts) else None
        if weight is None:
            raise ConfigError(
                f"In this layout {stored!r} is made of {', '.join(name for name, _ in sources[:3])}, which cannot be "
                "cut so: outputs that share scales would be parted. Choose the other layout, or another format."
            )
        name, piece = sources[0]
        layers = self._layers[name]
        experts = len(layers) if piece.rows is None and self.is_stack(name) else 0
        yield from write_tensors(stored, weight, layers[0].order_D, experts).items()

    def _rows(self, name: str, piece: Piece) -> Quantized | None:
        """A weight, or some rows of it; those of a stack are its experts' in turn."""
        layers = self._layers[name]
        if piece.rows is None:
            return joined([layer.quantized for layer in layers])
        expert, first = divmod(piece.at, layers[0].out_features)
        return cut(layers[expert].quantized, first, piece.rows)


def write_settings(parts: Parts, layout: Layout) -> dict[str, Any]:
    """What config.json says about few bits; nothing for a model that has none."""
    found: dict[str, Any] = {} if parts.kv_cache == "auto" else {OURS: {"kv_cache": parts.kv_cache}}
    few, formats, whole, stacks = FewBits(parts.model), {}, [], []
    if not few:
        return found
    for stored, sources in placed(parts, layout).items():
        name, module = sources[0][0], stored.removesuffix(".weight")
        if name in few:
            formats[module] = few.format(name)
            stacks.append(few.is_stack(name) and sources[0][1].rows is None)
        elif name.endswith(".weight") and isinstance(
            parts.model.get_submodule(name.removesuffix(".weight")), nn.Linear
        ):
            whole.append(module)
    if all(stacks) and {format.kind for format, _ in formats.values()} == {"mxfp4"}:
        return {**found, "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": whole}}
    return {**found, "quantization_config": write_config(formats, whole)}
