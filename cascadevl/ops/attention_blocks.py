"""Causal attention of samples end to end, with its gradient by hand, in plain matrix products for CPUs.

As FlashAttention (arXiv 2205.14135) it goes block by block of queries and leaves out the keys that no query of a block
sees; unlike it, a block has all of its keys at once, and short samples keep their softmax for the gradient: on one
core this takes two thirds to nine tenths of the time of torch's fused kernel. Heads that share keys share a product.
Legend: B sequences times key heads, M queries times the heads that share a key head.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK = 64
"""Queries of a block."""

KEPT = 640
"""Keys up to which the softmax of a sequence is kept for the gradient, and not computed again: half as many values for
a token and head at most."""

SCORES = 2**19
"""Of a step of the loop at most: 2 MiB stay near a core."""


def attended(
    q_TNH: Tensor,
    k_TKH: Tensor,
    v_TKH: Tensor,
    scale: float,
    lengths: Sequence[int],
    asked_T: Tensor | None = None,
) -> Tensor:
    """What queries of samples end to end see of their own sample up to themselves, as many rows as queries.

    `asked_T` says where in the pack the queries stand, in order; without it there is one for each key.
    """
    asked = None
    if asked_T is not None:
        ends = torch.tensor(lengths).cumsum(0)
        counts = torch.searchsorted(asked_T, ends).diff(prepend=ends.new_zeros(1)).tolist()
        asked = [
            (each - (end - n)).tolist()
            for each, end, n in zip(asked_T.split(counts), ends.tolist(), lengths, strict=True)
        ]
    return Attended.apply(q_TNH, k_TKH, v_TKH, scale, runs(lengths, q_TNH.shape[1], asked))


class Run(NamedTuple):
    """Sequences of one length, end to end."""

    samples: int
    queries: int
    """Of each."""
    keys: int
    """Of each."""
    first_query: int
    """Of the first, in the pack."""
    first_key: int
    places: tuple[int, ...] | None = None
    """Where the queries stand among the keys; None: there is one for each key. One sequence only."""


def runs(lengths: Sequence[int], heads: int, asked: Sequence[Sequence[int]] | None = None) -> list[Run]:
    """Neighbours of equal length go together as far as scores allow. `asked` are the queries of each sample."""
    found: list[Run] = []
    first_query = first_key = 0
    for number, length in enumerate(lengths):
        places = None if asked is None or len(asked[number]) == length else tuple(asked[number])
        queries = length if places is None else len(places)
        last = found[-1] if found else Run(0, 0, 0, 0, 0)
        scores = heads * length * min(length, BLOCK) * (last.samples + 1)
        whole = queries == last.queries == last.keys == length
        if whole and last.first_key + last.samples * length == first_key and scores <= SCORES:
            found[-1] = last._replace(samples=last.samples + 1)
        elif queries:
            found.append(Run(1, queries, length, first_query, first_key, places))
        first_query, first_key = first_query + queries, first_key + length
    return found


class Attended(torch.autograd.Function):
    """(queries, N, H), (T, K, H), (T, K, H) -> (queries, N, H) of runs of sequences."""

    @staticmethod
    def forward(ctx: Any, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, scale: float, pack: list[Run]) -> Tensor:
        out_TNH = torch.empty(q_TNH.shape, dtype=q_TNH.dtype)
        kept: list[Tensor] = []
        for run in pack:
            q_BMH, k_BTH, v_BTH = _sides(run, q_TNH, k_TKH, v_TKH, scale)
            out_BMH = torch.empty_like(q_BMH)
            for rows, keys, weights in _blocks(run, q_BMH, k_BTH):
                torch.bmm(weights, v_BTH[:, :keys], out=out_BMH[:, rows])
                if run.keys <= KEPT:
                    kept.append(weights)
            _put(run, out_BMH, out_TNH, k_TKH.shape[1])
        ctx.save_for_backward(q_TNH, k_TKH, v_TKH, *kept)
        ctx.settings = scale, pack
        return out_TNH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_out_TNH: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q_TNH, k_TKH, v_TKH, *kept = ctx.saved_tensors
        scale, pack = ctx.settings
        to_q_TNH, to_k_TKH, to_v_TKH = (torch.zeros(x.shape, dtype=x.dtype) for x in (q_TNH, k_TKH, v_TKH))
        num_kept = 0
        for run in pack:
            q_BMH, k_BTH, v_BTH = _sides(run, q_TNH, k_TKH, v_TKH, scale)
            to_out_BMH = _of_queries(run, to_out_TNH, k_TKH.shape[1])
            to_q_BMH, to_k_BTH, to_v_BTH = (torch.zeros(x.shape, dtype=x.dtype) for x in (q_BMH, k_BTH, v_BTH))
            here = kept[num_kept:] if run.keys <= KEPT else None
            for rows, keys, weights in _blocks(run, q_BMH, k_BTH, here):
                num_kept += here is not None
                to_out = to_out_BMH[:, rows]
                to_v, to_k = to_v_BTH[:, :keys], to_k_BTH[:, :keys]
                torch.baddbmm(to_v, weights.mT, to_out, out=to_v)
                to_weights = torch.bmm(to_out, v_BTH[:, :keys].mT)
                to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
                torch.baddbmm(to_k, to_scores.mT, q_BMH[:, rows], out=to_k)
                torch.bmm(to_scores, k_BTH[:, :keys], out=to_q_BMH[:, rows])
            _put(run, to_q_BMH.mul_(scale), to_q_TNH, k_TKH.shape[1])
            for side, out in ((to_k_BTH, to_k_TKH), (to_v_BTH, to_v_TKH)):
                whole = out[run.first_key : run.first_key + run.samples * run.keys]
                shape = (run.samples, -1, run.keys, out.shape[-1])
                whole.view(run.samples, run.keys, *out.shape[1:]).copy_(side.view(shape).transpose(1, 2))
        return to_q_TNH, to_k_TKH, to_v_TKH, None, None


def _of_queries(run: Run, x_TNH: Tensor, key_heads: int) -> Tensor:
    """(B, M, H) of a run, in memory of its own."""
    _, heads, size = x_TNH.shape
    x = x_TNH[run.first_query : run.first_query + run.samples * run.queries]
    x = x.view(run.samples, run.queries, key_heads, heads // key_heads, size).transpose(1, 2)
    return x.reshape(run.samples * key_heads, -1, size)


def _put(run: Run, x_BMH: Tensor, out_TNH: Tensor, key_heads: int) -> None:
    """What `_of_queries` takes, back in its place."""
    _, heads, size = out_TNH.shape
    out = out_TNH[run.first_query : run.first_query + run.samples * run.queries]
    out = out.view(run.samples, run.queries, key_heads, heads // key_heads, size)
    out.copy_(x_BMH.view(run.samples, key_heads, run.queries, -1, size).transpose(1, 2))


def _sides(run: Run, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """(B, M, H) of queries, scaled; (B, T, H) of keys and values."""
    k_BTH, v_BTH = (
        x[run.first_key : run.first_key + run.samples * run.keys]
        .view(run.samples, run.keys, *x.shape[1:])
        .transpose(1, 2)
        .reshape(-1, run.keys, x.shape[-1])
        for x in (k_TKH, v_TKH)
    )
    return _of_queries(run, q_TNH, k_TKH.shape[1]) * scale, k_BTH, v_BTH


def _blocks(
    run: Run, q_BMH: Tensor, k_BTH: Tensor, kept: Sequence[Tensor] | None = None
) -> Iterator[tuple[slice, int, Tensor]]:
    """Rows of each block, how many keys it sees, and its softmax (B, rows, keys), which may have been kept."""
    group = q_BMH.shape[1] // run.queries
    places = torch.arange(run.queries) if run.places is None else torch.tensor(run.places)
    for number, seen in enumerate(places.split(BLOCK)):
        first, keys = int(seen[0]) + 1, int(seen[-1]) + 1
        rows = slice(number * BLOCK * group, (number * BLOCK + len(seen)) * group)
        if kept is not None:
            yield rows, keys, kept[number]
            continue
        scores = torch.bmm(q_BMH[:, rows], k_BTH[:, :keys].mT)
        later = torch.arange(first, keys) > seen[:, None]
        scores.view(len(scores), len(seen), group, keys)[..., first:].masked_fill_(later[:, None], float("-inf"))
        yield rows, keys, torch.softmax(scores, -1, out=scores)
