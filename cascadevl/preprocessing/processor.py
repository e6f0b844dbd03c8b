"""Conversation -> ModelInputs: the only way in, for answering, training, serving and judging."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cascadevl.core.config import fits
from cascadevl.core.errors import MessageError
from cascadevl.core.messages import Conversation
from cascadevl.core.shapes import Grid, num_tiles
from cascadevl.preprocessing.image import MediaLimits, open_image
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.template import Span, find_template, render
from cascadevl.preprocessing.tiling import Tiling
from cascadevl.preprocessing.tokenizer import MARK_RANGE, TextTokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInputs:
    """What a model reads of one conversation; tensors are on the CPU."""

    token_ids: Tensor
    """(T,) int64, `<IMG_CONTEXT>` once per visual token."""
    tiles: Tensor
    """(S, 3, tile_px, tile_px) uint8: all tiles of all pictures in order, thumbnails last of each."""
    grids: list[Grid]
    """(columns, rows) of each picture."""
    sizes: list[tuple[int, int]]
    """(width, height) in pixels of each picture, upright."""
    trained: Tensor
    """(T,) bool: tokens the assistant says."""
    num_visual_tokens: int
    spec_hash: str


class Processor:
    """A spec and a tokenizer, callable on conversations."""

    def __init__(
        self,
        spec: Spec,
        tokenizer: TextTokenizer,
        *,
        max_tokens: int | None = None,
        limits: MediaLimits | None = None,
    ) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        """Longest prompt the model takes; None sets no bound."""
        self.limits = limits or MediaLimits()
        self._start_id, self._context_id, self._end_id = map(
            tokenizer.id, (spec.image_start, spec.image_context, spec.image_end)
        )
        if spec.jinja is None:
            find_template(spec.template)
        self._bos = [tokenizer.id(spec.bos)] if spec.bos else []
        self._tiling = Tiling(
            tile_px=spec.tile_px,
            min_tiles=spec.min_tiles,
            max_tiles=spec.max_tiles,
            thumbnail=spec.thumbnail,
            resize=spec.resize,
        )

    def __call__(
        self,
        messages: Conversation | Sequence[Mapping[str, Any]] | str,
        *,
        max_tiles: int | None = None,
    ) -> ModelInputs:
        """Render, open and cut up, tokenise. `max_tiles` replaces the spec's limit for all pictures.

        Raises MessageError for what cannot be rendered or is too long, MediaError for a picture
        that cannot be used.
        """
        conversation = Conversation.parse(messages)
        disarm = self._disarmer(conversation)
        spans = render(conversation, self.spec, disarm)
        pictures = [open_image(image.source, self.limits) for image in conversation.images]
        tilings = [self._tiling_for(image.max_tiles or max_tiles) for image in conversation.images]
        grids = [tiling.grid(*picture.size) for tiling, picture in zip(tilings, pictures, strict=True)]
        tokens = [num_tiles(grid, self.spec.thumbnail) * self.spec.visual_tokens_per_tile for grid in grids]
        token_ids, trained = self._tokenise(spans, tokens, disarm.mark)
        if self.max_tokens is not None and len(token_ids) > self.max_tokens:
            raise MessageError(
                f"The prompt has {len(token_ids)} tokens, {sum(tokens)} of them for {len(pictures)} picture(s); "
                f"the model takes {self.max_tokens}. Send fewer pictures, lower max_tiles, or shorten the text."
            )
        side = self.spec.tile_px
        tiles = [tiling(picture)[1] for tiling, picture in zip(tilings, pictures, strict=True)]
        return ModelInputs(
            token_ids=torch.tensor(token_ids, dtype=torch.int64),
            tiles=torch.cat(tiles) if tiles else torch.empty(0, 3, side, side, dtype=torch.uint8),
            grids=grids,
            sizes=[picture.size for picture in pictures],
            trained=torch.tensor(trained, dtype=torch.bool),
            num_visual_tokens=sum(tokens),
            spec_hash=self.spec.hash,
        )

    def _tiling_for(self, max_tiles: int | None) -> Tiling:
        if max_tiles is None:
            return self._tiling
        if not fits(int, max_tiles):
            raise MessageError(f"max_tiles must be a whole number, got {max_tiles!r}.")
        return dataclasses.replace(self._tiling, max_tiles=max_tiles, min_tiles=min(self.spec.min_tiles, max_tiles))

    def _disarmer(self, conversation: Conversation) -> "_Disarmer":
        said = set(self.spec.system or "").union(*(turn.text for turn in conversation.turns))
        mark = next((chr(code) for code in MARK_RANGE if chr(code) not in said), None)
        if mark is None:
            raise MessageError(
                "The messages use all private-use characters of plane 15; one must be left to mark text."
            )
        return _Disarmer(self.tokenizer, mark)

    def _tokenise(self, spans: list[Span], visual_tokens: list[int], mark: str) -> tuple[list[int], list[bool]]:
        """Ids and which of them are trained; each placeholder grows to its picture's tokens."""
        spec, tokenizer = self.spec, self.tokenizer
        token_ids, trained = list(self._bos), [False] * len(self._bos)
        pending = iter(visual_tokens)
        num_places = 0
        for span in _joined(spans):
            for piece in tokenizer.split(span.text):
                if piece == spec.image_context:
                    num_places += 1
                    ids = [self._start_id, *[self._context_id] * next(pending, 0), self._end_id]
                elif piece in tokenizer.controls:
                    ids = [tokenizer.controls[piece]]
                else:
                    ids = tokenizer.encode(piece.replace(mark, ""))
                token_ids += ids
                trained += [span.trained] * len(ids)
        if num_places != len(visual_tokens):
            raise MessageError(
                f"The chat template placed {num_places} picture(s), the conversation has {len(visual_tokens)}: "
                "its template does not show every picture."
            )
        return token_ids, trained


def _joined(spans: list[Span]) -> list[Span]:
    """Neighbours of the same kind as one: tokens may cross where the released code lets them."""
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].trained == span.trained:
            joined[-1] = Span(joined[-1].text + span.text, span.trained)
        else:
            joined.append(span)
    return joined


@dataclass(frozen=True, slots=True)
class _Disarmer:
    """Makes control tokens in what people write plain text, until `mark` is taken out again."""

    tokenizer: TextTokenizer
    mark: str

    def __call__(self, text: str) -> str:
        return self.tokenizer.disarm(text, self.mark)
