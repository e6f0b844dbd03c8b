"""What a phase of a model takes at least on this processor.

The longer of two times (the roofline of Williams et al., doi 10.1145/1498765.1498785): bytes that must be moved at
least once over the bandwidth measured for so many bytes, and operations over the rate measured for matrix products,
in the best of the number formats that the model has. Weights and, in decoding, keys and values are counted as moved,
activations are not; attention counts what its mask leaves over.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F

from cascadevl.checkpoints.parts import Parts
from cascadevl.engine.kv_cache import kept_as
from cascadevl.engine.speed import best_s
from cascadevl.models import costs
from cascadevl.models.costs import ATTENTION, Product
from cascadevl.models.quant_linear import QuantLinear, few_bits
from cascadevl.ops.kv_formats import KVFormat, vector_bytes

TRIALS_S = 0.1
LEAST_BYTES, MOST_BYTES = 2**16, 2**28
"""Of which bandwidth is measured; MOST is more than caches hold, and of more it is the same."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Of one phase."""

    flops: int
    num_bytes: int
    flops_per_s: float
    bytes_per_s: float

    @property
    def seconds(self) -> float:
        return max(self.flops / self.flops_per_s, self.num_bytes / self.bytes_per_s)

    @property
    def by(self) -> str:
        """What it is that cannot be faster."""
        return "bytes" if self.num_bytes / self.bytes_per_s > self.flops / self.flops_per_s else "operations"


class Bounds:
    """Of one model on the CPU. Rates are measured when first needed, and kept."""

    def __init__(self, parts: Parts) -> None:
        self.model, self._kv_cache = parts.model, parts.kv_cache
        self._flops_per_s: dict[str, float] = {}
        self._bytes_per_s: dict[int, float] = {}

    def kv_format(self, wanted: str) -> KVFormat:
        """ "auto" settled as the engine does."""
        named: Any = wanted if wanted != "auto" else self._kv_cache
        return kept_as(named, self.model.dtype)

    def prefill(self, batch: int, num_tokens: int) -> Bound:
        """Prompts of so many tokens each."""
        flops = batch * _flops(costs.prefill_products(self.model.config.decoder, num_tokens))
        return self._bound("language_model", flops, self._weight_bytes(batch * num_tokens))

    def decode(self, batch: int, num_seen: int, kv: str) -> Bound:
        """A token for each request, which sees so many, itself included."""
        decoder = self.model.config.decoder
        flops = batch * _flops(costs.decode_products(decoder, num_seen))
        seen = 2 * decoder.num_layers * decoder.num_kv_heads * vector_bytes(self.kv_format(kv), decoder.head_size)
        return self._bound("language_model", flops, self._weight_bytes(batch) + batch * num_seen * seen)

    def tower(self, num_tiles: int) -> Bound:
        """Tiles to visual tokens."""
        config = self.model.config
        flops = _flops(costs.tower_products(config, num_tiles) + costs.projector_products(config, num_tiles))
        return self._bound("vision_model", flops, held_bytes(self.model.vision_model) + held_bytes(self.model.mlp1))

    def _bound(self, part: str, flops: int, num_bytes: int) -> Bound:
        size = max(LEAST_BYTES, min(num_bytes, MOST_BYTES))
        if size not in self._bytes_per_s:
            self._bytes_per_s[size] = read_bytes_per_s(size)
        if part not in self._flops_per_s:
            layers = _quantized(self.model.get_submodule(part))
            self._flops_per_s[part] = product_flops_per_s(self.model.dtype, layers)
        return Bound(flops, num_bytes, self._flops_per_s[part], self._bytes_per_s[size])

    def _weight_bytes(self, rows: int) -> int:
        """Of the decoder's matrices, those that so many tokens meet, each once: of experts not all, perhaps."""
        language, config = self.model.language_model, self.model.config.decoder
        linears = [p for p in costs.prefill_products(config, rows) if p.name not in (*ATTENTION, "head")]
        head = config.vocab_size * config.hidden_size * self.model.dtype.itemsize
        if isinstance(language.lm_head, QuantLinear):
            head = language.lm_head.quantized.num_bytes
        return round(sum(p.n * p.k * p.experts * p.times for p in linears) * self._number_bytes) + head

    @cached_property
    def _number_bytes(self) -> float:
        """Of a number in the matrices of the decoder's layers, scales included."""
        layers = _quantized(self.model.language_model.model)
        numbers = sum(layer.in_features * layer.out_features for layer in layers)
        held = sum(layer.quantized.num_bytes for layer in layers)
        return held / numbers if numbers else self.model.dtype.itemsize


def held_bytes(module: torch.nn.Module) -> int:
    """Of all weights, in the formats they have."""
    few = sum(layer.quantized.num_bytes for layer in _quantized(module))
    return few + sum(parameter.nbytes for parameter in module.parameters())


def _flops(products: Sequence[Product]) -> int:
    return round(sum(product.flops * product.visible for product in products))


def _quantized(module: torch.nn.Module) -> list[QuantLinear]:
    return [layer for layers in few_bits(module).values() for layer in layers]


# Rates


def read_bytes_per_s(num_bytes: int) -> float:
    """Bandwidth where so many bytes are read again and again: of a cache if they fit in one. It is that of a matrix
    times a vector, in the faster of two shapes."""
    best = 0.0
    for width in (256, 1024):
        matrix, vector = torch.ones(max(1, num_bytes // 4 // width), width), torch.ones(width)
        best = max(best, matrix.nbytes / quickest_s(lambda m=matrix, v=vector: torch.mv(m, v)))
    return best


def product_flops_per_s(dtype: torch.dtype, layers: Sequence[QuantLinear] = ()) -> float:
    """The best of matrix products with many rows: in fp32, in `dtype`, and by the kernels for the formats of `layers`,
    whose operations count as if they were of whole numbers."""
    rows, width = 256, 1024
    plain = torch.nn.Linear(width, width, bias=False).requires_grad_(False)
    hidden = torch.ones(rows, width)
    ways = [partial(QuantLinear.of(plain, format), hidden) for format in {layer.format for layer in layers}]
    ways += [partial(F.linear, hidden.to(kind), plain.weight.to(kind)) for kind in {torch.float32, dtype}]
    return 2 * rows * width * width / min(map(quickest_s, ways))


def quickest_s(work: Callable[[], object]) -> float:
    """Of one call: the best of many, which others may interrupt, but not every one."""
    work()  # what it prepares, it prepares once
    return best_s(work, time.perf_counter, TRIALS_S)
