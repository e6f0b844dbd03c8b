"""A step's chunks become tensors, pass the decoder, and leave hidden states."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cascadevl.engine import kv_cache
from cascadevl.engine.fused import FusedDecoder
from cascadevl.engine.fused_triton import TritonDecoder
from cascadevl.engine.graphs import SIZES, Graphs, Step, cuda_recorder
from cascadevl.engine.kv_cache import PagedAttend, PagedCache, PageTables, Segment, places_of
from cascadevl.models.internvl import InternVL
from cascadevl.models.linear import by_row
from cascadevl.ops.native.paged_attention import Places
from cascadevl.ops.rope import Rope, rope_table

ROWS = 16
"""Batch-invariant without C: the decoder always computes so many tokens at once, some of them for nothing."""

FEW_TOKENS = 64
"""A step of more is left to the products of a library; in C each token is attended by itself."""


class Piece(NamedTuple):
    """Some tokens of a request: what they are, and where their keys and values go."""

    token_ids: Sequence[int]
    visual_TD: Tensor | None
    """For the `<IMG_CONTEXT>` among them."""
    start: int
    """Of the first token in its request; positions count from there."""
    length: int
    """Of the prompt: rope scaling that depends on a length goes by it, then grows with the answer."""
    pages: Sequence[int]
    """The request's own list: see `PageTables`."""
    adapters: tuple[str, ...] = ()
    """Names of those that change its rows."""

    @property
    def num(self) -> int:
        return len(self.token_ids)


class Runner:
    """The decoder over paged keys and values."""

    def __init__(
        self, model: InternVL, cache: PagedCache, scratch_page: int, *, invariant: bool, graphs: bool = True
    ) -> None:
        self.model, self.cache = model, cache
        self._device = model.device  # asked for at every step, and modules are slow to find it
        self.scratch_page, self.invariant = scratch_page, invariant
        config = model.config.decoder
        self.most_pages = min(len(cache.keys.numbers[0]), -(-config.rope.longest // cache.page_size))
        """Of one request."""
        self._tables = PageTables(self.most_pages)
        self._angles = Angles(config.rope, config.head_size, model.device)
        # Experts multiply as many rows as were sent to them: only a token by itself has no company there.
        self.rows = 1 if config.experts else ROWS
        self.fused: Step | None = FusedDecoder.of(model.language_model, cache)
        self.few_tokens = self.longest_piece = FEW_TOKENS
        on_gpu = None if invariant else TritonDecoder.of(model.language_model, cache)
        if on_gpu is not None:
            self.fused = self._recorded(on_gpu) if graphs else on_gpu
            self.few_tokens, self.longest_piece = SIZES[-1], kv_cache.FEW_TOKENS

    def __call__(self, pieces: Sequence[Piece]) -> Tensor:
        """hidden_TD of all tokens, end to end; their keys and values are then in the pages."""
        if len({bool(piece.adapters) for piece in pieces}) == 1:
            return self._alike(pieces)
        # Those without adapters go by themselves: theirs is the faster way.
        plain, changed = (
            iter(self._alike(part).split([len(piece.token_ids) for piece in part]))
            for part in ([p for p in pieces if not p.adapters], [p for p in pieces if p.adapters])
        )
        return torch.cat([next(changed if piece.adapters else plain) for piece in pieces])

    def _alike(self, pieces: Sequence[Piece]) -> Tensor:
        """All with adapters, or all without."""
        device = self._device
        token_ids = np.array([token for piece in pieces for token in piece.token_ids], np.int64)
        token_ids_T = torch.from_numpy(token_ids).to(device)
        visual = [piece.visual_TD for piece in pieces if piece.visual_TD is not None]
        embed_TD = self.model.language_model.embed(token_ids_T)
        if visual:
            embed_TD = self.model.splice(embed_TD, token_ids_T, torch.cat(visual).to(device))
        lengths_T = None
        if self._angles.by_length:
            lengths = [[max(at, p.length) for at in range(p.start + 1, p.start + p.num + 1)] for p in pieces]
            lengths_T = torch.tensor([length for each in lengths for length in each], device=device)
        few = len(token_ids) <= self.few_tokens
        few = few and (len(token_ids) == len(pieces) or max(piece.num for piece in pieces) <= self.longest_piece)
        if self.fused is not None and not pieces[0].adapters:
            if self.invariant or few:
                return self._placed(self._in_parts, embed_TD, pieces, lengths_T)
            if isinstance(self.fused, FusedDecoder) and self.fused.prefills:
                return self._placed(self.fused.prefill, embed_TD, pieces, lengths_T)
        segments, names_T = list[Segment](), list[tuple[str, ...]]()
        for piece in pieces:
            segments.append(Segment(len(names_T), piece.start, piece.num, piece.pages))
            names_T += [piece.adapters] * piece.num
        if not self.invariant:
            return self._hidden(embed_TD, segments, lengths_T, names_T)
        groups = _groups(segments, self.rows)
        return torch.cat([self._padded(embed_TD, group, lengths_T, names_T) for group in groups])

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Raw scores (T, V) in fp32."""
        head = self.model.language_model.logits
        if not self.invariant:
            return head(hidden_TD)
        padded_TD = F.pad(hidden_TD, (0, 0, 0, -len(hidden_TD) % ROWS))
        return torch.cat([head(rows_TD) for rows_TD in padded_TD.split(ROWS)])[: len(hidden_TD)]

    def _recorded(self, step: Step) -> Graphs:
        """As many pages as a request may have."""
        config = self.model.config.decoder
        return Graphs(
            step, cuda_recorder(), most_tokens=SIZES[-1], scratch_page=self.scratch_page, width=config.hidden_size,
            most_pages=self.most_pages, head_size=config.head_size,
            dtype=self.model.language_model.model.norm.weight.dtype, device=self.model.device,
        )  # fmt: skip

    def _placed(self, step: Step, embed_TD: Tensor, pieces: Sequence[Piece], lengths_T: Tensor | None) -> Tensor:
        places = places_of(pieces, self.cache.page_size, self._tables)
        return step(embed_TD, *self._angles(places, lengths_T), places)

    def _in_parts(self, embed_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor, places: Places) -> Tensor:
        """Some tokens at a time; each row is computed by itself, so that it does not matter which."""
        assert self.fused is not None
        if embed_TD.shape[0] <= self.few_tokens:
            return self.fused(embed_TD, cos_TH, sin_TH, places)
        parts = [slice(first, first + FEW_TOKENS) for first in range(0, len(embed_TD), FEW_TOKENS)]
        return torch.cat([self.fused(embed_TD[p], cos_TH[p], sin_TH[p], places.part(p)) for p in parts])

    def _hidden(
        self,
        embed_TD: Tensor,
        segments: Sequence[Segment],
        lengths_T: Tensor | None,
        names_T: Sequence[tuple[str, ...]],
    ) -> Tensor:
        attend = PagedAttend(self.cache, segments, invariant=self.invariant)
        positions_T = attend.places.position_T.float()
        with by_row(self.model.language_model, names_T):
            return self.model.language_model(embed_TD, positions_T.to(embed_TD.device), attend, lengths_T)

    def _padded(
        self,
        embed_TD: Tensor,
        group: list[Segment],
        lengths_T: Tensor | None,
        names_T: Sequence[tuple[str, ...]],
    ) -> Tensor:
        """Hidden states of one group; tokens of nobody, in a page of nobody, fill it up."""
        first, num = group[0].first, sum(segment.num for segment in group)
        rows = slice(first, first + num)
        spare = self.rows - num
        segments = [replace(segment, first=segment.first - first) for segment in group]
        if spare:
            segments.append(Segment(num, 0, spare, (self.scratch_page,) * -(-spare // self.cache.page_size)))
        padded_TD = F.pad(embed_TD[rows], (0, 0, 0, spare))
        lengths_T = None if lengths_T is None else F.pad(lengths_T[rows], (0, spare), value=1)
        return self._hidden(padded_TD, segments, lengths_T, [*names_T[rows], *[()] * spare])[:num]


class Angles:
    """cos_TH and sin_TH of whole positions, computed once where they depend on nothing else."""

    def __init__(self, rope: Rope, head_size: int, device: torch.device) -> None:
        self.by_length = rope.kind in ("dynamic", "longrope")
        self._rope, self._head_size, self._device = rope, head_size, device
        self._cos_PH = self._sin_PH = torch.empty(0, head_size, device=device)

    def __call__(self, places: Places, lengths_T: Tensor | None) -> tuple[Tensor, Tensor]:
        """`lengths_T`: see `rope_table`."""
        position_T = places.position_T.to(self._device)
        if self.by_length:
            return rope_table(position_T.float(), self._rope, self._head_size, lengths_T)
        end = places.tables_RP.shape[1] * places.page_size  # no position lies behind the pages
        if end > self._cos_PH.shape[0]:
            positions_P = torch.arange(end, device=self._device).float()
            self._cos_PH, self._sin_PH = rope_table(positions_P, self._rope, self._head_size)
        return self._cos_PH.index_select(0, position_T), self._sin_PH.index_select(0, position_T)


def _groups(segments: Sequence[Segment], rows: int) -> list[list[Segment]]:
    """The same tokens in groups of at most `rows`, in order; a segment may be cut."""
    groups: list[list[Segment]] = [[]]
    room = rows
    for segment in segments:
        done = 0
        while done < segment.num:
            if room == 0:
                groups.append([])
                room = rows
            num = min(room, segment.num - done)
            groups[-1].append(Segment(segment.first + done, segment.start + done, num, segment.pages))
            done, room = done + num, room - num
    return groups
