"""Batch: what objectives receive. Samples lie end to end; nothing is padded."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from cascadevl.ops.attention import Attend, packed
from cascadevl.preprocessing.processor import ModelInputs

IGNORE = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Several samples packed: tokens (T,), tiles (S, 3, Y, X)."""

    token_ids: Tensor
    targets: Tensor
    """(T,) the token to be said next, IGNORE where nothing is learned; never crosses samples."""
    positions: Tensor
    """(T,) rotary positions, from 0 in every sample."""
    lengths: tuple[int, ...]
    """Tokens of each sample."""
    tiles: Tensor
    glyphs: Tensor | None = None
    """(S, P, K) characters in the patches, where the gym knows them."""
    pointers: Tensor | None = None
    """(2, pairs): a token, and a visual token that shows the character to be said after it."""

    @property
    def attend(self) -> Attend:
        return packed(self.lengths)


def shifted_targets(inputs: ModelInputs) -> Tensor:
    """(T,) the next token where the assistant says it, else IGNORE."""
    targets = torch.full_like(inputs.token_ids, IGNORE)
    targets[:-1] = torch.where(inputs.trained[1:], inputs.token_ids[1:], IGNORE)
    return targets


def collate(
    samples: list[ModelInputs], glyphs: list[Tensor] | None = None, pointers: list[Tensor] | None = None
) -> Batch:
    """Lay samples end to end; `pointers` count within their sample."""
    lengths = [len(sample.token_ids) for sample in samples]
    starts = itertools.accumulate([0, *lengths[:-1]])
    return Batch(
        token_ids=torch.cat([sample.token_ids for sample in samples]),
        targets=torch.cat([shifted_targets(sample) for sample in samples]),
        positions=torch.cat([torch.arange(length, dtype=torch.float32) for length in lengths]),
        lengths=tuple(lengths),
        tiles=torch.cat([sample.tiles for sample in samples]),
        glyphs=torch.cat(glyphs) if glyphs else None,
        pointers=torch.cat([p + start for p, start in zip(pointers, starts, strict=True)], dim=1) if pointers else None,
    )
