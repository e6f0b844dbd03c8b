"""Keys and values in pages, and attending over them: the `Attend` of a step of the engine.

Legend beyond core/shapes.py: P pages, S tokens of a page, R requests of a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cascadevl.models.config import DecoderConfig
from cascadevl.ops.attention import Layer, scores_to_output
from cascadevl.ops.native.paged_attention import paged_attention, serves

FEW_TOKENS = 8
"""Chunks of at most so many tokens are left to the kernel; longer ones are matrix products of their own."""


class PagedCache:
    """Memory for keys and values: of every layer (P, K, S, H)."""

    def __init__(
        self, config: DecoderConfig, num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.num_layers, num_pages, config.num_kv_heads, page_size, config.head_size)
        self.page_size = page_size
        # Memory that is never touched is never taken: what is not written is not read either.
        self.keys, self.values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))

    @staticmethod
    def page_bytes(config: DecoderConfig, page_size: int, dtype: torch.dtype) -> int:
        """Memory of one page through all layers."""
        return 2 * config.num_layers * config.num_kv_heads * page_size * config.head_size * dtype.itemsize


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of one request, where they stand in the batch and in the request."""

    first: int
    """In the batch."""
    start: int
    """In the request."""
    num: int
    pages: tuple[int, ...]


class PagedAttend:
    """Stores the new keys and values of a batch in their pages, then lets every token see its own request."""

    def __init__(self, cache: PagedCache, segments: Sequence[Segment], *, invariant: bool = False) -> None:
        self.cache, self.segments, self.invariant = cache, segments, invariant
        device, size = cache.keys.device, cache.page_size
        position_T = torch.cat([torch.arange(s.start, s.start + s.num) for s in segments])
        request_T = torch.repeat_interleave(torch.arange(len(segments)), torch.tensor([s.num for s in segments]))
        tables_RP = torch.zeros(len(segments), max(len(s.pages) for s in segments), dtype=torch.int32)
        for row, segment in zip(tables_RP, segments, strict=True):
            row[: len(segment.pages)] = torch.tensor(segment.pages, dtype=torch.int32)
        self.page_T = tables_RP[request_T, position_T // size].to(device, torch.int64)
        self.offset_T = (position_T % size).to(device)
        self.tables_RP, self.request_T = tables_RP, request_T.int()
        self.position_T = position_T.int()
        short = [invariant or s.num <= FEW_TOKENS for s in segments]
        self.num_short = next((i for i, fits in enumerate(short) if not fits), len(short))
        """Segments at the beginning that the kernel may do; those that decode come first."""

    def __call__(self, layer: Layer, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        keys_PKSH, values_PKSH = self.cache.keys[layer.index], self.cache.values[layer.index]
        keys_PKSH[self.page_T, :, self.offset_T] = k_TKH
        values_PKSH[self.page_T, :, self.offset_T] = v_TKH
        num_short = self.num_short if serves(q_TNH, keys_PKSH) else 0
        outs, rest = [], self.segments[num_short:]
        if num_short:
            end = rest[0].first if rest else len(q_TNH)
            places = self.tables_RP, self.request_T[:end], self.position_T[:end]
            outs.append(paged_attention(layer, q_TNH[:end], keys_PKSH, values_PKSH, *places))
        outs += [self._one(layer, q_TNH[s.first : s.first + s.num], keys_PKSH, values_PKSH, s) for s in rest]
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _one(self, layer: Layer, q_TNH: Tensor, keys_PKSH: Tensor, values_PKSH: Tensor, segment: Segment) -> Tensor:
        end = segment.start + segment.num
        pages = torch.tensor(segment.pages[: -(-end // self.cache.page_size)], device=q_TNH.device)
        k_KTH, v_KTH = (_laid_out(x, pages)[:, :end] for x in (keys_PKSH, values_PKSH))
        if self.invariant:  # one query at a time: how many come together must not matter
            rows = [
                scores_to_output(layer, q_NH[None, :, None], k_KTH[None, :, : at + 1], v_KTH[None, :, : at + 1])[
                    0, :, 0
                ]
                for at, q_NH in enumerate(q_TNH, start=segment.start)
            ]
            return torch.stack(rows)
        return scores_to_output(layer, q_TNH.transpose(0, 1)[None], k_KTH[None], v_KTH[None])[0].transpose(0, 1)


def _laid_out(cached_PKSH: Tensor, pages: Tensor) -> Tensor:
    """(K, T, H): the tokens of some pages in a row."""
    return cached_PKSH[pages].transpose(0, 1).flatten(1, 2)
