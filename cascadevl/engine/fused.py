"""The decoder as one call of C: for steps of few tokens on a CPU, where a framework's calls would take longest."""

import ctypes
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from cascadevl.engine.kv_cache import PagedCache
from cascadevl.models.decoder import MLP, Block, Decoder
from cascadevl.models.linear import AdaptedLinear
from cascadevl.models.quant_linear import QuantLinear
from cascadevl.ops.native.library import library, pointer, use_huge_pages
from cascadevl.ops.native.linear import PLAIN_KIND, Weight
from cascadevl.ops.native.many_queries import LONGEST_HEAD
from cascadevl.ops.native.paged_attention import KINDS, CCached, Places


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input_norm", "post_norm", "q_norm", "k_norm", "sinks")),
        *((name, ctypes.POINTER(Weight)) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("keys", CCached),
        ("values", CCached),
        ("window", ctypes.c_int32),
    )


class _Stack(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int32) for n in ("num_layers", "width", "num_heads", "num_kv_heads", "head_size", "mlp_size")),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("norm", ctypes.c_void_p),
        ("layers", ctypes.POINTER(_Layer)),
    )


class FusedDecoder:
    """Reads the weights where the model has them: one whose layers are replaced needs a new one."""

    def __init__(self, decoder: Decoder, cache: PagedCache) -> None:
        """Only where `can_serve`."""
        config = decoder.config
        self._kept: list[Any] = [decoder, cache]
        """What C has the addresses of."""
        layers = (_Layer * config.num_layers)(*(self._layer(block, cache) for block in decoder.model.layers))  # type: ignore[arg-type]
        self._stack = _Stack(
            config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads, config.head_size,
            config.mlp_size, config.norm_eps, decoder.model.layers[0].self_attn.layer.scale,  # type: ignore[union-attr]
            pointer(decoder.model.norm.weight), layers,
        )  # fmt: skip
        use_huge_pages(_weights(decoder))

    @classmethod
    def of(cls, decoder: Decoder, cache: PagedCache) -> Self | None:
        """None where the model, its cache or this machine needs more than decoder.c knows."""
        config = decoder.config
        fits = (
            config.experts is None
            and config.head_size % (16 if cache.format == "int4" else 8) == 0
            and cache.format in KINDS
            and decoder.model.norm.weight.device.type == cache.device.type == "cpu"
            and all(p.dtype == torch.float32 and p.is_contiguous() for p in decoder.model.layers.parameters())
            and library() is not None
        )
        return cls(decoder, cache) if fits and all(map(_is_known, decoder.model.layers)) else None

    @property
    def prefills(self) -> bool:
        """Whether many tokens are computed here too; of weights in full 1.1 to 1.3 times as fast as by the library's
        calls on AMD's Zen 4."""
        return self._stack.head_size <= LONGEST_HEAD

    def __call__(self, embed_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor, places: Places) -> Tensor:
        """hidden_TD after the last norm; keys and values are then in the pages."""
        return self._run("decode", embed_TD, cos_TH, sin_TH, places)

    def prefill(self, embed_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor, places: Places) -> Tensor:
        """The same for many tokens: those of a prompt are attended together, whose sums have another order."""
        return self._run("prefill", embed_TD, cos_TH, sin_TH, places)

    def _run(self, name: str, embed_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor, places: Places) -> Tensor:
        loaded = library()
        assert loaded is not None
        hidden_TD = embed_TD.clone(memory_format=torch.contiguous_format)
        cos_TH, sin_TH = cos_TH.contiguous(), sin_TH.contiguous()
        structs = ctypes.byref(self._stack), ctypes.byref(places.for_c())
        if not getattr(loaded.c, name)(*structs, *map(pointer, (hidden_TD, cos_TH, sin_TH))):
            raise MemoryError(f"No memory for a step of {len(embed_TD)} tokens.")
        return hidden_TD

    def _layer(self, block: Block, cache: PagedCache) -> _Layer:
        attention = block.self_attn
        index = attention.layer.index
        norms = (
            block.input_layernorm.weight,
            block.post_attention_layernorm.weight,
            attention.q_norm.weight if attention.q_norm is not None else None,
            attention.k_norm.weight if attention.k_norm is not None else None,
            attention.sinks,
        )
        linears = _linears(block)
        kept = cache.keys[index], cache.values[index]
        self._kept += [norms, kept]
        return _Layer(
            *map(pointer, norms),
            *(ctypes.pointer(self._weight(linear)) for linear in linears),
            *map(CCached.of, kept),
            attention.layer.window or 0,
        )

    def _weight(self, linear: nn.Module) -> Weight:
        packed = linear.packed if isinstance(linear, QuantLinear) else None
        if packed is not None:
            self._kept.append(packed)
            return packed.weight
        assert isinstance(linear, nn.Linear)
        self._kept.append((linear.weight, linear.bias))
        return Weight(
            PLAIN_KIND,
            linear.out_features,
            linear.in_features,
            0,
            pointer(linear.weight),
            None,
            None,
            pointer(linear.bias),
        )


def _weights(decoder: Decoder) -> Iterator[Tensor]:
    """Of few bits, the output matrix among them; what is in fp32 may be a file that is mapped."""
    for module in decoder.modules():
        if isinstance(module, QuantLinear) and module.packed is not None:
            packed = module.packed
            yield from (x for x in (packed.quants, packed.scales, packed.zeros) if x is not None)


def _linears(block: Block) -> tuple[nn.Module, ...]:
    """In the order of decoder.c."""
    attention, mlp = block.self_attn, block.mlp
    assert isinstance(mlp, MLP)
    of_attention = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    return *of_attention, mlp.gate_proj, mlp.up_proj, mlp.down_proj


def _is_known(block: nn.Module) -> bool:
    """Linears as decoder.c reads them; those with the same inputs want them quantised alike."""
    assert isinstance(block, Block)
    if not isinstance(block.mlp, MLP):
        return False
    q, k, v, o, gate, up, down = map(_format, _linears(block))
    return None not in (q, o, down) and q == k == v == gate == up


def _format(linear: nn.Module) -> object:
    """None: not for C."""
    if isinstance(linear, QuantLinear):
        return linear.format if linear.packed is not None else None
    return "plain" if type(linear) in (nn.Linear, AdaptedLinear) else None
