"""Keys and values in pages, and attending over them: the `Attend` of a step of the engine.

Legend beyond core/shapes.py: P pages, S tokens of a page, R requests of a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
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
    pages: Sequence[int]


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


class Placed(Protocol):
    """Tokens [start, start + num) of a request: a `Segment`, or a piece of a step."""

    @property
    def start(self) -> int: ...
    @property
    def num(self) -> int: ...
    @property
    def pages(self) -> Sequence[int]: ...


class PageTables:
    """The page tables of the last step, of which few rows change: a page more now and then, a request gone.

    A row is known by the list of pages that its request has: lists that only grow while it runs.
    """

    def __init__(self, widest: int = 0) -> None:
        """`widest`: pages that a request may have at most; 0: no room is kept for more than there are."""
        self._widest = widest
        self._tables_RP = np.zeros((0, 0), np.int32)
        self._rows: list[Sequence[int]] = []
        self._filled: list[int] = []

    def of(self, wanted: Sequence[Sequence[int]]) -> np.ndarray:
        """(R, P) until the next call; behind the last page of a row anything may stand."""
        most = max(map(len, wanted))
        if len(wanted) > len(self._tables_RP) or most > self._tables_RP.shape[1]:
            # More than is needed, so that growing does not mean a new table for every page.
            width = max(most, min(2 * most, self._widest))
            self._tables_RP = np.zeros((len(wanted), width), np.int32)
            self._rows, self._filled = [], []
        for row, pages in enumerate(wanted):
            if row == len(self._rows):
                self._rows.append(())
                self._filled.append(0)
            filled = self._filled[row] if self._rows[row] is pages else 0
            if filled < len(pages):
                self._tables_RP[row, filled : len(pages)] = pages[filled:]
            self._rows[row], self._filled[row] = pages, len(pages)
        return self._tables_RP[: len(wanted)]


def places_of(segments: Sequence[Placed], page_size: int, tables: PageTables | None = None) -> Places:
    """The tokens of a batch one by one. `tables`: those of the step before."""
    tables_RP = (tables or PageTables()).of([s.pages for s in segments])
    num_R = [s.num for s in segments]
    request_T = np.arange(len(segments), dtype=np.int32)
    position_T = np.array([s.start for s in segments], np.int32)
    if any(num != 1 for num in num_R):
        first_R = np.cumsum(num_R) - num_R
        request_T = request_T.repeat(num_R)
        position_T = (position_T - first_R)[request_T] + np.arange(len(request_T))
    position_T = position_T.astype(np.int32, copy=False)
    return Places(*(torch.from_numpy(x) for x in (tables_RP, request_T, position_T)), page_size=page_size)


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
