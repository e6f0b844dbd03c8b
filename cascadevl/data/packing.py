"""Samples within a token and a tile budget: in order of arrival, or best fit over some open packs.

InternVL 2.5 (arXiv 2412.05271, §4.2): *select* the next sample, *search* an open pack that has room for its
tokens and its tiles, *pack* it there, *maintain* the packs: give out what is full, and the fullest when there are
too many. The released code takes the first pack with room, most tiles first; we take the one that is left with
the least room, which fills packs of text as well. Nothing is padded.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cascadevl.core.errors import ConfigError
from cascadevl.core.messages import Conversation
from cascadevl.preprocessing.processor import ModelInputs

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Pack(Generic[T]):
    """Samples that will be one batch."""

    items: list[T] = field(default_factory=list)
    num_tokens: int = 0
    num_tiles: int = 0


@dataclass(slots=True)
class Packer(Generic[T]):
    """A bounded number of open packs. What is given out depends on the sizes and their order alone."""

    max_tokens: int
    max_tiles: int
    max_open: int = 8
    packs: list[Pack[T]] = field(default_factory=list)

    def fits(self, num_tokens: int, num_tiles: int) -> bool:
        """Whether an empty pack would hold it."""
        return num_tokens <= self.max_tokens and num_tiles <= self.max_tiles

    def add(self, item: T, num_tokens: int, num_tiles: int) -> Pack[T] | None:
        """Put a sample where it leaves the least room; returns the pack that is ready now, if one is."""
        assert self.fits(num_tokens, num_tiles), f"no pack holds {num_tokens} tokens and {num_tiles} tiles"
        room = self.max_tokens - num_tokens, self.max_tiles - num_tiles
        fitting = [pack for pack in self.packs if pack.num_tokens <= room[0] and pack.num_tiles <= room[1]]
        best = max(fitting, key=self._fullness) if fitting else Pack()
        if not fitting:
            self.packs.append(best)
        best.items.append(item)
        best.num_tokens += num_tokens
        best.num_tiles += num_tiles
        if best.num_tokens == self.max_tokens or best.num_tiles == self.max_tiles:
            self.packs.remove(best)
            return best
        return self.take() if len(self.packs) > self.max_open else None

    def take(self) -> Pack[T] | None:
        """The fullest pack, ready or not; None when all are given out."""
        if not self.packs:
            return None
        fullest = max(self.packs, key=self._fullness)
        self.packs.remove(fullest)
        return fullest

    def _fullness(self, pack: Pack[T]) -> float:
        return max(pack.num_tokens / self.max_tokens, pack.num_tiles / self.max_tiles)


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


def shortened(conversation: Conversation) -> Conversation | None:
    """Without its last question and answer, or without the last part of a document; None when nothing can go.

    Whole pieces go: no picture is torn from its place and no answer ends in the middle.
    """
    turns = conversation.turns
    if conversation.is_document:
        parts = turns[0].parts[:-1]
        return Conversation((dataclasses.replace(turns[0], parts=parts),)) if parts else None
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    return Conversation(turns[: answers[-2] + 1]) if len(answers) > 1 else None
