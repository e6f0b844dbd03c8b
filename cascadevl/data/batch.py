"""Batch: what objectives receive. Samples lie end to end; nothing is padded."""

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

    @property
    def attend(self) -> Attend:
        return packed(self.lengths)


def shifted_targets(inputs: ModelInputs) -> Tensor:
    """(T,) the next token where the assistant says it, else IGNORE."""
    targets = torch.full_like(inputs.token_ids, IGNORE)
    targets[:-1] = torch.where(inputs.trained[1:], inputs.token_ids[1:], IGNORE)
    return targets


def collate(samples: list[ModelInputs], glyphs: list[Tensor] | None = None) -> Batch:
    """Lay samples end to end."""
    return Batch(
        token_ids=torch.cat([sample.token_ids for sample in samples]),
        targets=torch.cat([shifted_targets(sample) for sample in samples]),
        positions=torch.cat([torch.arange(len(sample.token_ids), dtype=torch.float32) for sample in samples]),
        lengths=tuple(len(sample.token_ids) for sample in samples),
        tiles=torch.cat([sample.tiles for sample in samples]),
        glyphs=torch.cat(glyphs) if glyphs else None,
    )
