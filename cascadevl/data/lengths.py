"""How many tokens a conversation has, known from the sizes of its pictures, none of which is decoded."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from PIL import Image as Pictures

from cascadevl.core.messages import Conversation, Image, Part, Turn, Video
from cascadevl.core.shapes import num_tiles
from cascadevl.preprocessing.processor import Processor
from cascadevl.preprocessing.tiling import Tiling
from cascadevl.preprocessing.video import open_frames

Size = tuple[int, int]


class Length(NamedTuple):
    """What a sample costs, and what is learned from it."""

    num_tokens: int
    num_visual: int
    num_tiles: int
    num_trained: int


class Lengths:
    """Callable on a conversation and the (width, height) of each of its pictures; of videos the header is read.

    The processor itself renders and tokenises, on stand-ins of one pixel and one token: so nothing can differ.
    """

    def __init__(self, processor: Processor) -> None:
        self._spec = processor.spec
        small = dataclasses.replace(
            processor.spec, tile_px=1, visual_tokens_per_tile=1, min_tiles=1, max_tiles=1, frame_max_tiles=1
        )
        self._processor = Processor(small, processor.tokenizer)
        self._dot = Pictures.new("RGB", (1, 1))

    def __call__(self, conversation: Conversation, sizes: Sequence[Size], max_tiles: int | None = None) -> Length:
        pending = iter(sizes)
        standing_in: list[Image | Video] = []
        counts: list[int] = []
        for medium in conversation.media:
            if isinstance(medium, Image):
                shown, limit = [next(pending)], medium.max_tiles or max_tiles or self._spec.max_tiles
                standing_in.append(Image(self._dot))
            else:
                with open_frames(medium, self._spec) as frames:
                    shown, limit = frames.sizes, min(self._spec.frame_max_tiles, max_tiles or self._spec.max_tiles)
                standing_in.append(Video([self._dot] * len(shown)))
            counts += [self._num_tiles(size, limit) for size in shown]
        inputs = self._processor(_with_media(conversation, iter(standing_in)))
        num_visual = sum(counts) * self._spec.visual_tokens_per_tile
        return Length(
            num_tokens=len(inputs.token_ids) - inputs.num_visual_tokens + num_visual,
            num_visual=num_visual,
            num_tiles=sum(counts),
            num_trained=int(inputs.trained.sum()),
        )

    def _num_tiles(self, size: Size, limit: int) -> int:
        spec = self._spec
        tiling = Tiling(tile_px=spec.tile_px, min_tiles=min(spec.min_tiles, limit), max_tiles=limit)
        return num_tiles(tiling.grid(*size), spec.thumbnail)


def _with_media(conversation: Conversation, media: Iterator[Image | Video]) -> Conversation:
    def shown(part: Part) -> Part:
        return next(media) if isinstance(part, Image | Video) else part

    return Conversation(tuple(Turn(turn.role, tuple(map(shown, turn.parts))) for turn in conversation.turns))
