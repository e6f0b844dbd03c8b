"""Conversation -> ModelInputs: the only way in, for answering, training, serving and judging."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL.Image import Image as Picture
from torch import Tensor

from cascadevl.core.config import fits
from cascadevl.core.errors import ConfigError, MessageError
from cascadevl.core.messages import Conversation, Image, Text, Turn, Video
from cascadevl.core.shapes import Grid, num_tiles
from cascadevl.preprocessing.image import MediaLimits, open_image
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.template import Span, find_template, render
from cascadevl.preprocessing.tiling import Tiled, Tiling
from cascadevl.preprocessing.tokenizer import MARK_RANGE, TextTokenizer
from cascadevl.preprocessing.video import open_frames

CHARACTERS_PER_TOKEN = 32
"""More than any text has on the average: one that is longer is too long, and need not be tokenised to be refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInputs:
    """What a model reads of one conversation; tensors are on the CPU."""

    token_ids: Tensor
    """(T,) int64, `<IMG_CONTEXT>` once per visual token."""
    tiles: Tensor
    """(S, 3, tile_px, tile_px) uint8: all tiles of all pictures in order, thumbnails last of each."""
    grids: list[Grid]
    """(columns, rows) of each picture; a frame of a video is a picture."""
    sizes: list[tuple[int, int]]
    """(width, height) in pixels of each picture, upright."""
    trained: Tensor
    """(T,) bool: tokens the assistant says; of a document all but those of pictures."""
    num_visual_tokens: int
    spec_hash: str
    frames: list[bool] = field(default_factory=list)
    """Of each picture, whether it is a frame of a video."""


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
        seed: int = 0,
    ) -> ModelInputs:
        """Render, open and cut up, tokenise. `max_tiles` replaces the spec's limit for all pictures.

        Frames of videos keep the spec's own limit. `seed` is that of the frame rule `rand`. Raises MessageError
        for what cannot be rendered or is too long, MediaError for a picture or video that cannot be used.
        """
        conversation = Conversation.parse(messages)
        self.check_text(*(turn.text for turn in conversation.turns))
        with ExitStack() as opened:
            shown = [self._open(medium, max_tiles, seed, opened) for medium in conversation.media]
            spans, mark = self._rendered(conversation, [len(each.sizes) for each in shown if each.is_video])
            grids = [grid for each in shown for grid in each.grids]
            tokens = [num_tiles(grid, self.spec.thumbnail) * self.spec.visual_tokens_per_tile for grid in grids]
            token_ids, trained = self._tokenise(spans, tokens, mark)
            self._check_length(len(token_ids), sum(tokens), shown)
            tiles = [torch.from_numpy(tiles) for each in shown for tiles in each.tiles()]
        side = self.spec.tile_px
        return ModelInputs(
            token_ids=torch.tensor(token_ids, dtype=torch.int64),
            tiles=torch.cat(tiles) if tiles else torch.empty(0, 3, side, side, dtype=torch.uint8),
            grids=grids,
            sizes=[size for each in shown for size in each.sizes],
            trained=torch.tensor(trained, dtype=torch.bool),
            num_visual_tokens=sum(tokens),
            spec_hash=self.spec.hash,
            frames=[each.is_video for each in shown for _ in each.sizes],
        )

    def check_text(self, *texts: str) -> None:
        """Raise MessageError for texts that are too long for the model whatever their tokens are: each has one."""
        num_characters = sum(map(len, texts))
        if self.max_tokens is not None and max(len(texts), num_characters / CHARACTERS_PER_TOKEN) > self.max_tokens:
            raise MessageError(
                f"{len(texts):,} text(s) of {num_characters:,} characters are too long: the model takes "
                f"{self.max_tokens} tokens. Send less."
            )

    def tiling(self, medium: Image | Video, max_tiles: int | None = None) -> Tiling:
        """How a picture, or each frame of a video, is cut up; `max_tiles` as in a call. Raises MessageError."""
        if isinstance(medium, Image):
            return self._tiling_for(medium.max_tiles or max_tiles)
        limit = self.spec.frame_max_tiles
        return self._tiling_for(min(limit, max_tiles or limit))

    def _open(self, medium: Image | Video, max_tiles: int | None, seed: int, opened: ExitStack) -> "_Shown | Tiled":
        if isinstance(medium.source, Tiled):
            return medium.source
        if isinstance(medium, Image):
            picture = open_image(medium.source, self.limits)
            return _Shown([picture], [picture.size], self.tiling(medium, max_tiles), is_video=False)
        frames = opened.enter_context(open_frames(medium, self.spec, self.limits, seed))
        return _Shown(frames, frames.sizes, self.tiling(medium, max_tiles), is_video=True)

    def _rendered(self, conversation: Conversation, num_frames: list[int]) -> tuple[list[Span], str]:
        """The prompt with every picture and frame as one placeholder, and the mark in it."""
        disarm = self._disarmer(conversation)
        labels = [[self.spec.frame_label.replace("{n}", str(n)) for n in range(1, count + 1)] for count in num_frames]
        if self.spec.jinja is not None and "video" not in self.spec.jinja:
            conversation, labels = _as_pictures(conversation, labels), []
        spans = render(conversation, self.spec, disarm)
        return self._with_frames(spans, labels) if labels else spans, disarm.mark

    def _with_frames(self, spans: list[Span], labels: list[list[str]]) -> list[Span]:
        """Each video becomes a line per frame, as transformers' processor does it too."""
        lines = [
            self.spec.image_separator.join(f"{label}{self.spec.image_context}" for label in each) for each in labels
        ]
        num_places = sum(span.text.count(self.spec.video) for span in spans)
        if num_places != len(lines):
            raise MessageError(
                f"The chat template placed {num_places} video(s), the conversation has {len(lines)}: "
                "its template does not show every video."
            )
        pending = iter(lines)
        return [
            Span(re.sub(re.escape(self.spec.video), lambda _: next(pending), span.text), span.trained) for span in spans
        ]

    def _check_length(self, num_tokens: int, num_visual: int, shown: Sequence["_Shown | Tiled"]) -> None:
        if self.max_tokens is None or num_tokens <= self.max_tokens:
            return
        num_frames = sum(len(each.sizes) for each in shown if each.is_video)
        frames = f" and {num_frames} frame(s)" if num_frames else ""
        raise MessageError(
            f"The prompt has {num_tokens} tokens, {num_visual} of them for "
            f"{sum(not each.is_video for each in shown)} picture(s){frames}; the model takes {self.max_tokens}. "
            f"Send fewer pictures{' or frames (num_frames)' if frames else ''}, lower max_tiles, or shorten the text."
        )

    def _tiling_for(self, max_tiles: int | None) -> Tiling:
        if max_tiles is None:
            return self._tiling
        if not fits(int, max_tiles):
            raise MessageError(f"max_tiles must be a whole number, got {max_tiles!r}.")
        if max_tiles < 1:
            raise ConfigError(f"max_tiles must be at least 1, got {max_tiles}.")
        return dataclasses.replace(self._tiling, max_tiles=max_tiles, min_tiles=min(self.spec.min_tiles, max_tiles))

    def _disarmer(self, conversation: Conversation) -> "_Disarmer":
        said = set(self.spec.system or "").union(*(turn.text for turn in conversation.turns))
        mark = next((chr(code) for code in MARK_RANGE if chr(code) not in said), None)
        if mark is None:
            raise MessageError(
                "The messages use all private-use characters of plane 15; one must be left to mark text."
            )
        return _Disarmer(self.tokenizer, mark, self.spec.video)

    def _tokenise(self, spans: list[Span], visual_tokens: list[int], mark: str) -> tuple[list[int], list[bool]]:
        """Ids and which of them are trained; each placeholder grows to its picture's tokens."""
        spec, tokenizer = self.spec, self.tokenizer
        token_ids = [*self._bos, *tokenizer.opening(spans[0].text if spans else "")]
        trained = [False] * len(token_ids)
        pending = iter(visual_tokens)
        num_places, inside = 0, False
        for span in _joined(spans):
            for piece in tokenizer.split(span.text):
                if piece == spec.image_context:
                    num_places += 1
                    ids = [self._start_id, *[self._context_id] * next(pending, 0), self._end_id]
                elif piece in tokenizer.controls:
                    ids = [tokenizer.controls[piece]]
                else:
                    ids = tokenizer.encode(piece.replace(mark, ""), inside=inside)
                inside = piece not in tokenizer.controls
                token_ids += ids
                trained += [span.trained and piece != spec.image_context] * len(ids)
        if num_places != len(visual_tokens):
            raise MessageError(
                f"The chat template placed {num_places} picture(s), the conversation has {len(visual_tokens)}: "
                "its template does not show every picture."
            )
        return token_ids, trained


@dataclass(frozen=True, slots=True)
class _Shown:
    """One picture, or the frames of one video, and how each is cut up."""

    pictures: Iterable[Picture]
    sizes: Sequence[tuple[int, int]]
    tiling: Tiling
    is_video: bool

    @property
    def grids(self) -> list[Grid]:
        return [self.tiling.grid(*size) for size in self.sizes]

    def tiles(self) -> Iterator[np.ndarray]:
        """One after the other: of a video, one frame is in memory at a time."""
        return (self.tiling.cut(picture)[1] for picture in self.pictures)


def _as_pictures(conversation: Conversation, labels: list[list[str]]) -> Conversation:
    """For a template that knows no videos: every frame a picture with its label as text before it."""
    pending = iter(labels)

    def shown(part: Any) -> list[Any]:
        if not isinstance(part, Video):
            return [part]
        return [piece for label in next(pending) for piece in (Text(label), Image(part.source))]

    turns = [
        Turn(turn.role, tuple(piece for part in turn.parts for piece in shown(part))) for turn in conversation.turns
    ]
    return Conversation(tuple(turns))


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
    video: str
    """Not a control token everywhere, but a place for frames all the same."""

    def __call__(self, text: str) -> str:
        return self.tokenizer.disarm(text, self.mark).replace(self.video, self.video[0] + self.mark + self.video[1:])
