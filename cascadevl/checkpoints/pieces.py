"""Our tensors and the tensors of files: which rows of the one are which rows of the other.

Layouts join and split tensors: q, k and v lie together or apart, experts alone or stacked. Rows are
counted with every dimension but the last laid flat, so that expert e of (E, F, D) begins at row e·F.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """A tensor of a file, or some of its rows, that are rows of one of our tensors."""

    name: str
    at: int = 0
    """The first of our rows."""
    start: int = 0
    """The first of the file's rows."""
    rows: int | None = None
    """How many; None: both are one and the same tensor."""


def rows_of(tensor: Tensor, first: int, num: int | None) -> Tensor:
    """Rows as a view; with `num` None the whole tensor."""
    if num is None:
        return tensor
    flat = tensor.flatten(0, -2) if tensor.ndim > 1 else tensor
    return flat[first : first + num]


def file_shapes(
    ours: Mapping[str, torch.Size | tuple[int, ...]], pieces: Mapping[str, list[Piece]]
) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that the pieces speak of."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parts in pieces.items():
        shape = tuple(ours[name])
        for piece in parts:
            if piece.rows is None:
                shapes[piece.name] = shape
            else:
                known = shapes.get(piece.name, (0,))[0]
                shapes[piece.name] = (max(known, piece.start + piece.rows), *shape[-1:][: len(shape) - 1])
    return shapes
