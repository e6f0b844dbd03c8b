"""Samples in, lists of samples within a token and a tile budget out."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from cascadevl.core.errors import ConfigError
from cascadevl.preprocessing.processor import ModelInputs

T = TypeVar("T")


def pack(
    samples: Iterable[tuple[ModelInputs, T]], *, max_tokens: int, max_tiles: int
) -> Iterator[list[tuple[ModelInputs, T]]]:
    """Fill packs in the order of arrival; a pack is given out when the next sample would not fit.

    Each sample travels with whatever belongs to it. One that fits no empty pack is refused.
    """
    pending: list[tuple[ModelInputs, T]] = []
    tokens = tiles = 0
    for inputs, extra in samples:
        num_tokens, num_tiles = len(inputs.token_ids), len(inputs.tiles)
        if num_tokens > max_tokens or num_tiles > max_tiles:
            raise ConfigError(
                f"A sample of {num_tokens} tokens and {num_tiles} tiles exceeds the budget of a pack "
                f"({max_tokens} tokens, {max_tiles} tiles)."
            )
        if pending and (tokens + num_tokens > max_tokens or tiles + num_tiles > max_tiles):
            yield pending
            pending, tokens, tiles = [], 0, 0
        pending.append((inputs, extra))
        tokens, tiles = tokens + num_tokens, tiles + num_tiles
    if pending:
        yield pending
