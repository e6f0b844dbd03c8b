"""Batch: what objectives receive. Samples lie end to end; nothing is padded."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from cascadevl.core.errors import InternalError
from cascadevl.ops.attention import Attend, packed
from cascadevl.ops.rope import v2pe_positions
from cascadevl.preprocessing.processor import ModelInputs

IGNORE = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Several samples packed: tokens (T,), tiles (S, 3, Y, X)."""

    token_ids: Tensor
    targets: Tensor
    """(T,) the token to be said next, IGNORE where nothing is learned; never crosses samples."""
    positions: Tensor
    """(T,) rotary positions, from 0 in every sample; fractional with V2PE."""
    lengths: tuple[int, ...]
    """Tokens of each sample."""
    ids: tuple[str, ...] = ()
    """Where each sample came from, to name it in messages; empty where nobody knows."""
    tiles: Tensor
    glyphs: Tensor | None = None
    """(S, P, K) characters in the patches, where the gym knows them."""
    pointers: Tensor | None = None
    """(2, pairs): a token, and a visual token that shows the character to be said after it."""
    denominator: float | None = None
    """What weighted losses are divided by: the sum of the weights in all batches of a step, on all devices.
    None: the sum of this batch alone."""

    @property
    def attend(self) -> Attend:
        return packed(self.lengths)

    def to(self, device: torch.device | str) -> Self:
        """The same batch with its tensors on a device."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        moved = {name: value.to(device, non_blocking=True) for name, value in values.items() if torch.is_tensor(value)}
        return dataclasses.replace(self, **moved)


def shifted_targets(inputs: ModelInputs) -> Tensor:
    """(T,) the next token where it is learned to be said, else IGNORE."""
    targets = torch.full_like(inputs.token_ids, IGNORE)
    targets[:-1] = torch.where(inputs.trained[1:], inputs.token_ids[1:], IGNORE)
    return targets


def fractional_positions(visual_T: Tensor, deltas: Sequence[float]) -> Tensor:
    """(T,) V2PE positions (InternVL3, arXiv 2504.10479, eq. 1), each picture with a δ of its own.

    A picture is an unbroken run of visual tokens; the text behind it begins at the next whole number.
    """
    ends = ((visual_T[:-1] & ~visual_T[1:]).nonzero().flatten() + 1).tolist()
    if len(visual_T) and bool(visual_T[-1]):
        ends.append(len(visual_T))
    if len(ends) != len(deltas):
        raise InternalError(f"The prompt shows {len(ends)} picture(s), {len(deltas)} δ were drawn.")
    # Each piece ends with a picture; the last one has none, and then δ is of no consequence.
    lengths = [end - start for start, end in itertools.pairwise([0, *ends, len(visual_T)])]
    pieces, start = [], 0.0
    for visual, delta in zip(visual_T.split(lengths), [*deltas, 1.0], strict=True):
        if len(visual):
            pieces.append(v2pe_positions(visual, delta) + start)
            start = float(pieces[-1][-1].ceil()) + 1
    return torch.cat(pieces)


def collate(
    samples: Sequence[ModelInputs],
    glyphs: Sequence[Tensor] | None = None,
    pointers: Sequence[Tensor] | None = None,
    positions: Sequence[Tensor] | None = None,
    ids: Sequence[str] = (),
) -> Batch:
    """Lay samples end to end; `pointers` count within their sample, `positions` are whole numbers unless given."""
    lengths = [len(sample.token_ids) for sample in samples]
    starts = itertools.accumulate([0, *lengths[:-1]])
    return Batch(
        token_ids=torch.cat([sample.token_ids for sample in samples]),
        targets=torch.cat([shifted_targets(sample) for sample in samples]),
        positions=torch.cat(
            list(positions) if positions else [torch.arange(length, dtype=torch.float32) for length in lengths]
        ),
        lengths=tuple(lengths),
        ids=tuple(ids),
        tiles=torch.cat([sample.tiles for sample in samples]),
        glyphs=torch.cat(list(glyphs)) if glyphs else None,
        pointers=torch.cat([p + start for p, start in zip(pointers, starts, strict=True)], dim=1) if pointers else None,
    )
