"""nano's data: samples of the gym, rendered while it trains, as packs with what a picture shows besides the answer.

Where every character stands is known of a rendered picture: the tower is told which ones its patches show, and heads
of the decoder where to look for what they say next.
"""

import bisect
import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from cascadevl.core.messages import Conversation, Text, Turn
from cascadevl.core.task import Exchange, Sample, Task
from cascadevl.data.batch import Batch, collate
from cascadevl.data.packing import pack
from cascadevl.gym import TASKS
from cascadevl.gym.glyph_targets import glyph_targets
from cascadevl.gym.pointers import answer_tokens, box_edges, covered
from cascadevl.preprocessing.processor import ModelInputs, Processor
from cascadevl.recipes.nano import VISION


def make_task(name: str, *, split: str = "train", seed: int = 0) -> Task:
    """A family by name, with settings: "line:difficulty=easy"."""
    family, _, settings = name.partition(":")
    changes = dict(item.split("=") for item in settings.split(",") if item)
    typed = {key: int(value) if value.isdigit() else value for key, value in changes.items()}
    return TASKS[family](split=split, seed=seed, **typed)


def taught(task: Task, sample: Sample) -> Conversation:
    """The question, its reference answer, and what else the sample knows about the picture.

    Encoding the picture is the dear part: five questions cost less than two pictures.
    """
    turns = [*task.prompt(sample).turns, Turn("assistant", (Text(sample.answer),))]
    for question, answer, _ in sample.more:
        turns += [Turn("user", (Text(question),)), Turn("assistant", (Text(answer),))]
    return Conversation(tuple(turns))


@dataclass(slots=True)
class GymBatches:
    """Packs of rendered samples without end. Sample i is a function of (seed, i): `position` is all its state."""

    mixture: Mapping[str, float]
    processor: Processor
    max_tokens: int
    max_tiles: int
    seed: int = 0
    position: int = 0
    """Samples given out in packs so far."""

    def __iter__(self) -> Iterator[Batch]:
        tasks = {name: make_task(name, seed=self.seed) for name in self.mixture}
        names, bounds = list(self.mixture), list(itertools.accumulate(self.mixture.values()))

        def draw(index: int) -> tuple[ModelInputs, Sample]:
            at = random.Random(f"{self.seed}/{index}").random() * bounds[-1]
            task = tasks[names[bisect.bisect(bounds, at)]]
            sample = task.sample(index)
            return self.processor(taught(task, sample)), sample

        samples = (draw(index) for index in itertools.count(self.position))
        for packed in pack(samples, max_tokens=self.max_tokens, max_tiles=self.max_tiles):
            self.position += len(packed)
            yield collate(
                [inputs for inputs, _ in packed],
                [self._glyphs(*item) for item in packed],
                [self._pointers(*item) for item in packed],
            )

    def _glyphs(self, inputs: ModelInputs, sample: Sample) -> torch.Tensor:
        spec = self.processor.spec
        targets = [
            glyph_targets(shown.glyphs, size, grid, spec.tile_px, VISION.patch_px, spec.thumbnail)
            for shown, size, grid in zip(sample.shown, inputs.sizes, inputs.grids, strict=True)
        ]
        return torch.from_numpy(np.concatenate(targets))

    def _pointers(self, inputs: ModelInputs, sample: Sample) -> torch.Tensor:
        """(2, pairs) of token and visual token, for answers that stand in one picture and just once."""
        spec, tokenizer = self.processor.spec, self.processor.tokenizer
        said = inputs.trained.nonzero().flatten().tolist()
        exchanges = (Exchange(sample.question, sample.answer, sample.about), *sample.more)
        answers = [_PIECES.findall(exchange.answer) for exchange in exchanges]
        if len(said) != sum(sum(map(_num_tokens, answer)) + 1 for answer in answers):  # with each answer's end
            return torch.empty(2, 0, dtype=torch.int64)
        places = (inputs.token_ids == tokenizer.id(spec.image_context)).nonzero().flatten()
        side = math.isqrt(spec.visual_tokens_per_tile)
        pairs, tokens = [], iter(said)
        for exchange, pieces in zip(exchanges, answers, strict=True):
            looks = self._looks(exchange, pieces, inputs, sample, side)
            for piece, look in zip(pieces, looks, strict=True):
                for _ in range(_num_tokens(piece)):
                    token = next(tokens) - 1  # the one that says it
                    pairs += [(token, int(places[at])) for at in look]
            next(tokens)
        return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T

    def _looks(
        self, exchange: Exchange, pieces: list[str], inputs: ModelInputs, sample: Sample, side: int
    ) -> list[list[int]]:
        """Visual tokens to look at for each piece of an answer: its character, an edge of its box, or what is asked."""
        thumbnail, size, grid = self.processor.spec.thumbnail, inputs.sizes[0], inputs.grids[0]
        seen = [at for place in exchange.about for at in covered(place, size, grid, side)]
        if exchange.about and pieces[0] == "<box>":
            edges = box_edges(exchange.about[0], size, grid, side, thumbnail)
            passed = itertools.accumulate(piece == "," for piece in pieces)
            return [edges[at] if piece.isdigit() else seen for piece, at in zip(pieces, passed, strict=True)]
        found = answer_tokens(exchange.answer, sample.shown, inputs.sizes, inputs.grids, side, thumbnail)
        return [shown or seen for shown in found]


_PIECES = re.compile("</?box>|.", re.DOTALL)
"""What an answer is said in: characters, of one or more bytes, and the tags of boxes, which are tokens."""


def _num_tokens(piece: str) -> int:
    return 1 if len(piece) > 1 else len(piece.encode())
