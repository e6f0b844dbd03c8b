"""The decoder for steps of few tokens on a GPU: its matrix products, and one Triton kernel between each two.

Not yet run on a GPU. Nothing in it waits for the GPU or depends on a number there, so that `graphs.py` can record it.
"""

from dataclasses import replace
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from cascadevl.engine.kv_cache import PagedCache
from cascadevl.models.decoder import MLP, Block, Decoder
from cascadevl.models.linear import AdaptedLinear
from cascadevl.models.quant_linear import QuantLinear
from cascadevl.ops.native.paged_attention import Places
from cascadevl.ops.triton import available
from cascadevl.ops.triton.fused import norm, place, swiglu
from cascadevl.ops.triton.paged_attention import KINDS, TYPES, paged_attention


class TritonDecoder:
    """Called as `FusedDecoder` is; reads the weights where the model has them."""

    def __init__(self, decoder: Decoder, cache: PagedCache) -> None:
        """Only where `of` finds that it fits, or under Triton's interpreter."""
        self.decoder, self.cache = decoder, cache

    @classmethod
    def of(cls, decoder: Decoder, cache: PagedCache) -> Self | None:
        """None where the model, its cache or this machine needs more than the kernels know."""
        config, weight_D = decoder.config, decoder.model.norm.weight
        fits = (
            weight_D.device.type == cache.device.type == "cuda"
            and weight_D.dtype in TYPES
            and config.experts is None
            and config.head_size % 2 == 0
            and cache.format in KINDS
            and all(map(_is_known, decoder.model.layers))
            and available()
        )
        return cls(decoder, cache) if fits else None

    def __call__(self, embed_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor, places: Places) -> Tensor:
        """hidden_TD after the last norm; keys and values are then in the pages."""
        device, eps = embed_TD.device, self.decoder.config.norm_eps
        where = places.to(device)
        tensors = where.tables_RP.contiguous(), where.request_T, where.position_T
        rope = cos_TH.to(embed_TD).contiguous(), sin_TH.to(embed_TD).contiguous()
        blocks = [block for block in self.decoder.model.layers if isinstance(block, Block)]
        norms = [*(block.input_layernorm.weight for block in blocks[1:]), self.decoder.model.norm.weight]
        hidden_TD = embed_TD.clone()  # of all layers so far: every norm below adds to it what the last one gave
        normed_TD = norm(hidden_TD, blocks[0].input_layernorm.weight, eps)
        for block, next_norm in zip(blocks, norms, strict=True):
            assert isinstance(block.mlp, MLP)
            attended_TD = self._attention(block, normed_TD, rope, tensors)
            normed_TD = norm(hidden_TD, block.post_attention_layernorm.weight, eps, attended_TD)
            opened_TF = swiglu(linear(block.mlp.gate_proj, normed_TD), linear(block.mlp.up_proj, normed_TD))
            normed_TD = norm(hidden_TD, next_norm, eps, linear(block.mlp.down_proj, opened_TF))
        return normed_TD

    def _attention(
        self, block: Block, normed_TD: Tensor, rope: tuple[Tensor, Tensor], where: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        attention = block.self_attn
        index, size = attention.layer.index, attention.head_size
        q_TNH, k_TKH, v_TKH = (
            linear(projection, normed_TD).unflatten(-1, (-1, size))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q_norm = None if attention.q_norm is None else attention.q_norm.weight
        k_norm = None if attention.k_norm is None else attention.k_norm.weight
        kept = self.cache.keys[index], self.cache.values[index]
        q_TNH = place((q_TNH, k_TKH, v_TKH), (q_norm, k_norm), self.decoder.config.norm_eps, rope, kept, *where)
        layer = replace(attention.layer, sinks_N=attention.sinks)
        return linear(attention.o_proj, paged_attention(layer, q_TNH, *kept, *where).flatten(1))


def linear(module: nn.Module, x_TD: Tensor) -> Tensor:
    """Without the changes of adapters: those who want some do not come here."""
    return F.linear(x_TD, module.weight, module.bias) if isinstance(module, nn.Linear) else module(x_TD)


def _is_known(block: nn.Module) -> bool:
    assert isinstance(block, Block)
    if not isinstance(block.mlp, MLP):
        return False
    attention, mlp = block.self_attn, block.mlp
    linears = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    return all(type(x) in (nn.Linear, AdaptedLinear, QuantLinear) for x in (*linears, *mlp.children()))
