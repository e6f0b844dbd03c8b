"""Keys and values in pages, and attending over them: the `Attend` of a step of the engine.

Legend beyond core/shapes.py: P pages, S tokens of a page, R requests of a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cascadevl.core.precision import KVFormat
from cascadevl.models.config import DecoderConfig
from cascadevl.ops.attention import Layer, scores_to_output
from cascadevl.ops.kv_formats import Kept, vector_bytes
from cascadevl.ops.native.paged_attention import Places, paged_attention, serves

FEW_TOKENS = 8
"""Chunks of at most so many tokens are left to the kernel; longer ones are matrix products of their own."""


class PagedCache:
    """Memory for keys and values: of every layer (P, K, S, H) in one of the formats of ops/kv_formats.py."""

    def __init__(
        self, config: DecoderConfig, num_pages: int, page_size: int, format: KVFormat, device: torch.device
    ) -> None:
        shape = (config.num_layers, num_pages, config.num_kv_heads, page_size, config.head_size)
        self.page_size, self.format, self.device = page_size, format, device
        self.keys, self.values = (Kept.empty(format, shape, device) for _ in range(2))

    @staticmethod
    def page_bytes(config: DecoderConfig, page_size: int, format: KVFormat) -> int:
        """Memory of one page through all layers."""
        return 2 * config.num_layers * config.num_kv_heads * page_size * vector_bytes(format, config.head_size)


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
        self.places = places_of(segments, cache.page_size)
        self._placed = self.places.to(cache.device)
        tables_RP, position_T = self.places.tables_RP, self.places.position_T.long()
        page_T = tables_RP[self.places.request_T.long(), position_T // cache.page_size]
        self.page_T = page_T.to(cache.device, torch.int64)
        self.offset_T = (position_T % cache.page_size).to(cache.device)
        short = [invariant or s.num <= FEW_TOKENS for s in segments]
        self.num_short = next((i for i, fits in enumerate(short) if not fits), len(short))
        """Segments at the beginning that the kernel may do; those that decode come first."""

    def __call__(self, layer: Layer, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        keys_PKSB, values_PKSB = self.cache.keys[layer.index], self.cache.values[layer.index]
        keys_PKSB.put((self.page_T, slice(None), self.offset_T), k_TKH)
        values_PKSB.put((self.page_T, slice(None), self.offset_T), v_TKH)
        num_short = self.num_short if serves(q_TNH, keys_PKSB) else 0
        outs, rest = [], self.segments[num_short:]
        if num_short:
            end = rest[0].first if rest else len(q_TNH)
            outs.append(paged_attention(layer, q_TNH[:end], keys_PKSB, values_PKSB, self._placed.part(slice(end))))
        outs += [self._one(layer, q_TNH[s.first : s.first + s.num], keys_PKSB, values_PKSB, s) for s in rest]
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _one(self, layer: Layer, q_TNH: Tensor, keys_PKSB: Kept, values_PKSB: Kept, segment: Segment) -> Tensor:
        end = segment.start + segment.num
        pages = torch.tensor(segment.pages[: -(-end // self.cache.page_size)], device=q_TNH.device)
        k_KTH, v_KTH = (_laid_out(x, pages, q_TNH.dtype)[:, :end] for x in (keys_PKSB, values_PKSB))
        if self.invariant:  # one query at a time: how many come together must not matter
            rows = [
                scores_to_output(layer, q_NH[None, :, None], k_KTH[None, :, : at + 1], v_KTH[None, :, : at + 1])[
                    0, :, 0
                ]
                for at, q_NH in enumerate(q_TNH, start=segment.start)
            ]
            return torch.stack(rows)
        return scores_to_output(layer, q_TNH.transpose(0, 1)[None], k_KTH[None], v_KTH[None])[0].transpose(0, 1)


def _laid_out(kept_PKSB: Kept, pages: Tensor, dtype: torch.dtype) -> Tensor:
    """(K, T, H): the tokens of some pages in a row."""
    return kept_PKSB[pages].floats().to(dtype).transpose(0, 1).flatten(1, 2)


def places_of(segments: Sequence[Segment], page_size: int) -> Places:
    """The tokens of a batch one by one."""
    position_T = torch.tensor([at for s in segments for at in range(s.start, s.start + s.num)], dtype=torch.int32)
    request_T = torch.tensor([row for row, s in enumerate(segments) for _ in range(s.num)], dtype=torch.int32)
    most = max(len(s.pages) for s in segments)
    tables_RP = torch.tensor([[*s.pages, *[0] * (most - len(s.pages))] for s in segments], dtype=torch.int32)
    return Places(tables_RP, request_T, position_T, page_size)


def kept_as(wanted: KVFormat | Literal["auto"], dtype: torch.dtype) -> KVFormat:
    """The format of a cache: "auto" keeps what the model computes."""
    if wanted != "auto":
        return wanted
    names: dict[torch.dtype, KVFormat] = {
        torch.float32: "float32",
        torch.bfloat16: "bfloat16",
        torch.float16: "float16",
    }
    return names[dtype]
