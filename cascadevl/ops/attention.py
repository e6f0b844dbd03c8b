"""Attend: the model asks, whoever calls the model decides what attending means.

A decoder layer calls `attend(layer, q_TNH, k_TKH, v_TKH) -> out_TNH` for tokens of one packed
sequence. The same weights thereby serve training (packed samples), generation with a cache
(`engine/simple.py`), paged serving and sharded sequences, without a flag in the model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cascadevl.ops.attention_blocks import attended
from cascadevl.ops.by_hand import by_hand
from cascadevl.ops.native import many_queries


@dataclass(frozen=True, slots=True)
class Layer:
    """What an implementation of `Attend` may need to know about the layer that asks."""

    index: int
    scale: float
    """Factor on the scores, 1/√H unless a family says otherwise."""
    window: int | None = None
    """Keys further back than this are not seen; None sees all."""
    sinks_N: Tensor | None = None
    """A learned score per head that joins the softmax and is dropped again (GPT-OSS)."""
    asked_T: Tensor | None = None
    """Where the queries stand among the keys, in order; None: the queries are the last ones of the keys. Only
    `packed` is asked so, by the last layer."""


Attend = Callable[[Layer, Tensor, Tensor, Tensor], Tensor]

MOSTLY_FULL = 0.8
"""Samples whose tokens fill so much of a rectangle are attended in one."""


def scores_to_output(layer: Layer, q_RNTH: Tensor, k_RKTH: Tensor, v_RKTH: Tensor) -> Tensor:
    """Causal softmax attention of R sequences of equal length; the last query sees every key."""
    if many_queries.serves(q_RNTH, k_RKTH, v_RKTH):
        qkv = q_RNTH, k_RKTH, v_RKTH
        return many_queries.attend(*qkv, layer.scale, causal=True, window=layer.window, sinks_N=layer.sinks_N)
    groups = q_RNTH.shape[1] // k_RKTH.shape[1]
    if groups > 1:
        k_RKTH = k_RKTH.repeat_interleave(groups, dim=1)
        v_RKTH = v_RKTH.repeat_interleave(groups, dim=1)
    queries, keys = q_RNTH.shape[2], k_RKTH.shape[2]
    window = None if layer.window is None or layer.window >= keys else layer.window
    plain = window is None and layer.sinks_N is None
    if plain and queries == 1:
        return F.scaled_dot_product_attention(q_RNTH, k_RKTH, v_RKTH, scale=layer.scale)
    if plain and queries == keys:
        return F.scaled_dot_product_attention(q_RNTH, k_RKTH, v_RKTH, is_causal=True, scale=layer.scale)
    visible = causal_mask(queries, keys, window, q_RNTH.device)
    if layer.sinks_N is None:
        return F.scaled_dot_product_attention(q_RNTH, k_RKTH, v_RKTH, attn_mask=visible, scale=layer.scale)
    scores = (q_RNTH @ k_RKTH.transpose(-1, -2)) * layer.scale
    scores = scores.masked_fill(~visible, float("-inf"))
    sinks = layer.sinks_N.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]
    return weights @ v_RKTH


def causal_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """(queries, keys), True where visible; the queries are the last ones of the keys."""
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)


def packed(lengths: Sequence[int]) -> Attend:
    """Attend for several samples laid end to end: each sees only itself.

    Samples of nearly the same length are brought side by side, padded on the right. Causal attention
    looks left only, so the padding is never seen and needs no mask; its outputs are dropped. Where that
    would be mostly padding, which costs its square, every sample is attended by itself.
    """
    longest, total = max(lengths), sum(lengths)
    where = None if min(lengths) == longest else _places(lengths)
    alike = total >= MOSTLY_FULL * longest * len(lengths)

    def attend(layer: Layer, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        assert k_TKH.shape[0] == total, f"packed for {total} tokens, asked for {k_TKH.shape[0]}"
        if _learned_by_hand(layer, q_TNH, k_TKH, v_TKH):
            if layer.asked_T is not None or not alike:
                return attended(q_TNH, k_TKH, v_TKH, layer.scale, lengths, layer.asked_T)
            q, k, v = (_in_rows(x, where, len(lengths) * longest) for x in (q_TNH, k_TKH, v_TKH))
            out_TNH = attended(q, k, v, layer.scale, [longest] * len(lengths))
            return out_TNH if where is None else out_TNH[where]
        if layer.asked_T is not None:
            whole_TNH = q_TNH.new_zeros(total, *q_TNH.shape[1:]).index_copy(0, layer.asked_T, q_TNH)
            return attend(replace(layer, asked_T=None), whole_TNH, k_TKH, v_TKH)[layer.asked_T]
        if not alike:
            each = zip(*(x.split(list(lengths)) for x in (q_TNH, k_TKH, v_TKH)), strict=True)
            return torch.cat([dense(layer, *qkv) for qkv in each])
        q, k, v = (_side_by_side(x, where, len(lengths), longest) for x in (q_TNH, k_TKH, v_TKH))
        out_TNH = scores_to_output(layer, q, k, v).transpose(1, 2).flatten(0, 1)
        return out_TNH if where is None else out_TNH[where.to(out_TNH.device)]

    return attend


def _learned_by_hand(layer: Layer, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> bool:
    """Whether `attended` may serve."""
    return layer.window is None and layer.sinks_N is None and by_hand(q_TNH, k_TKH, v_TKH)


def side_by_side(x_TNH: Tensor, lengths: Sequence[int]) -> Tensor:
    """(T, N, H) of samples end to end -> (R, N, longest, H), padded with zeros on the right."""
    where = None if min(lengths) == max(lengths) else _places(lengths)
    return _side_by_side(x_TNH, where, len(lengths), max(lengths))


def _places(lengths: Sequence[int]) -> Tensor:
    """Row of each token once the samples lie side by side."""
    longest = max(lengths)
    return torch.cat([torch.arange(n) + row * longest for row, n in enumerate(lengths)])


def _in_rows(x_TNH: Tensor, where: Tensor | None, num: int) -> Tensor:
    if where is None:
        return x_TNH
    return x_TNH.new_zeros(num, *x_TNH.shape[1:]).index_copy(0, where.to(x_TNH.device), x_TNH)


def _side_by_side(x_TNH: Tensor, where: Tensor | None, rows: int, longest: int) -> Tensor:
    return _in_rows(x_TNH, where, rows * longest).view(rows, longest, *x_TNH.shape[1:]).transpose(1, 2)


def dense(layer: Layer, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
    """Attend for one sequence without a cache."""
    if _learned_by_hand(layer, q_TNH, k_TKH, v_TKH) and len(q_TNH) == len(k_TKH):
        return attended(q_TNH, k_TKH, v_TKH, layer.scale, [len(k_TKH)])
    q, k, v = (x.transpose(0, 1)[None] for x in (q_TNH, k_TKH, v_TKH))
    return scores_to_output(layer, q, k, v)[0].transpose(0, 1)
