"""Locating a shape or a printed word; the answer is a box."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cascadevl.core.boxes import Box, format_boxes
from cascadevl.core.errors import ConfigError
from cascadevl.core.shapes import Grid
from cascadevl.core.task import Glyph, Sample
from cascadevl.gym import assets, scene
from cascadevl.gym.family import Asked, Drawn, Family, Phrasings
from cascadevl.gym.page import Page, palette
from cascadevl.scoring.boxes import grounded

LOCATE = Phrasings(
    trained=(
        "Locate the {thing}.", "Where is the {thing}?", "Find the {thing}.", "Give the box of the {thing}.",
        "Draw a box around the {thing}.", "Point out the {thing}.", "Show me the {thing}.",
        "What is the bounding box of the {thing}?",
        "Give the position of the {thing}.", "What is the {thing}'s position?", "Can you detect the {thing}?",
        "Tell me where the {thing} is.", "Give me the {thing}'s box.", "Detect where the {thing} is.",
    ),
    held_out=("Detect the {thing}.", "Give me the {thing}'s position."),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Locate(Family):
    """Where a shape or a printed word is, as a box in the official form."""

    max_tiles: int = 6
    """Of the picture without its thumbnail; a picture of one tile has none and is the easiest."""

    name: ClassVar[str] = "locate"
    phrasings: ClassVar[Mapping[str, Phrasings]] = {"locate": LOCATE}

    def __post_init__(self) -> None:
        if self.max_tiles < 1:
            raise ConfigError(f"max_tiles is {self.max_tiles}: a picture has at least 1 tile.")

    def drawn(self, rng: random.Random) -> Drawn:
        return self._shape(rng) if rng.random() < 0.5 else self._word(rng)

    def _shape(self, rng: random.Random) -> Drawn:
        page = scene.blank_page(rng, self._grid(rng))
        things = scene.scatter(rng, page, scene.mixed(rng, self.split, rng.randint(1, 5)))
        boxes = [scene.paint(rng, page, thing) for thing in things]
        called = [thing.called(rng, [other for other in things if other is not thing]) for thing in things]
        at = rng.randrange(len(things))
        facts = {"font": "", "box": boxes[at], "pairs": scene.pairs_of(things)}
        asked = [_asked(name, box, page) for name, box in zip(called, boxes, strict=True)]
        first = asked.pop(at)
        return Drawn(image=page.worn(rng), asked=first, more=asked, glyphs=page.glyphs, facts=facts)

    def _word(self, rng: random.Random) -> Drawn:
        face = rng.choice(assets.faces(self.split))
        page = Page.blank(rng, self._grid(rng), palette(rng), plain=rng.random() < 0.7)
        height = rng.triangular(14, 32, 18)
        style = rng.choice((str.upper, str.lower, str.capitalize))
        found: dict[str, Box] = {}
        top = rng.uniform(3, 20)
        while top + height + 2 < page.height:
            word = style(rng.choice(assets.words(self.split)))
            spare = page.width - 6 - page.text_width(word, face, height)
            if spare > 0 and word not in found:
                left, upper, right, lower = page.text(3 + spare * rng.random(), top, word, face=face, height=height)
                found[word] = Box(left, upper, right, lower)
                top += height * rng.uniform(1.3, 3.5)
            height = max(14.0, height * 0.97)
        word = rng.choice(list(found))
        asked = {name: _asked(f"word {name}", box, page) for name, box in found.items()}
        first = asked.pop(word)
        facts = {"font": face, "box": found[word], "words": tuple(found)}
        more = list(asked.values())
        return Drawn(image=page.worn(rng), asked=first, more=more, glyphs=page.glyphs, facts=facts)

    def _grid(self, rng: random.Random) -> Grid:
        return rng.choice([grid for grid in scene.GRIDS if grid[0] * grid[1] <= self.max_tiles])

    def score(self, sample: Sample, answer: str) -> float:
        """1.0 where the first box covers the thing with an intersection over union of at least 0.5."""
        return float(grounded(answer, sample.facts["box"], *sample.image.size))


def _asked(thing: str, box: Box, page: Page) -> Asked:
    place = Glyph("", box.left, box.top, box.right, box.bottom)
    return Asked("locate", format_boxes([box], *page.image.size), {"thing": thing}, (place,))
