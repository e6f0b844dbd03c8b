"""Saying what a picture shows: drawings of everyday things, with the names that Unicode gives them.

Six studios drew the things, some of them several times. Of each thing, one studio is held out: test pictures show
its drawing, training pictures those of the others, so that what is measured is to know a cat by sight and not one
drawing of it.
"""

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from PIL import Image

from cascadevl.core.task import Sample
from cascadevl.gym.assets import FOLDER, Split
from cascadevl.gym.family import Asked, Drawn, Family, Phrasings
from cascadevl.gym.page import Page, Palette, palette
from cascadevl.scoring.text import exact

PHRASINGS = {
    "what": Phrasings(
        trained=(
            "What is shown?", "What is this?", "What is in the picture?", "What does the picture show?",
            "What do you see?", "What is in the image?", "What does the image show?", "Name what you see.",
            "What can be seen here?", "Describe the image.", "Describe the picture.", "Tell me what is shown.",
        ),
        held_out=("Tell me what this is.", "What can you see in the image?", "Name what the picture shows."),
    ),
    "side": Phrasings(
        trained=(
            "What is on the {side}?", "What do you see on the {side}?", "What is shown on the {side}?",
            "Which thing is on the {side}?", "Name the thing on the {side}.", "What is the thing on the {side}?",
            "What is in the {side} half?", "What stands on the {side}?", "Describe what is on the {side}.",
            "Tell me what is on the {side}.",
        ),
        held_out=("Tell me what you see on the {side}.", "Which thing can be seen on the {side}?"),
    ),
    "either": Phrasings(
        trained=(
            "Which is shown: {one} or {other}?", "Is it {one} or {other}?", "Which do you see: {one} or {other}?",
            "What is shown, {one} or {other}?", "Does the picture show {one} or {other}?",
            "What is it, {one} or {other}?", "Which of the two is it: {one} or {other}?", "Is this {one} or {other}?",
            "Do you see {one} or {other}?", "Tell me which it is: {one} or {other}.",
        ),
        held_out=("Tell me if it is {one} or {other}.", "Which can be seen here: {one} or {other}?"),
    ),
}  # fmt: skip

STUDIOS = {
    "google": ("noto", "noto-v1"),
    "microsoft": ("fluent-emoji-flat", "fluent-emoji", "fluent-emoji-high-contrast"),
    "twitter": ("twemoji",),
    "emojione": ("emojione", "emojione-monotone"),
    "mozilla": ("fxemoji",),
    "streamline": ("streamline-emojis",),
}
"""The sets of drawings of each studio. The first of the first four draw every name, and are those held out."""
HELD_OUT = ("google", "microsoft", "twitter", "emojione")
SIDE_PX, COLUMNS = 64, 16
"""Of the sheets, as tests/golden/make_pictures.py lays them out."""


@cache
def names() -> tuple[str, ...]:
    return tuple((FOLDER / "pictures" / "names.txt").read_text("utf-8").splitlines())


@cache
def sets(name: str, split: Split) -> tuple[str, ...]:
    """The sets with a drawing of a thing that this split shows."""
    held_out = HELD_OUT[zlib.crc32(f"gym drawing {name}".encode()) % len(HELD_OUT)]
    if split == "test":
        return STUDIOS[held_out][:1]
    others = [drawings for studio, theirs in STUDIOS.items() if studio != held_out for drawings in theirs]
    return tuple(drawings for drawings in others if drawing(drawings, name).getbbox())


def drawing(drawings: str, name: str) -> Image.Image:
    """One drawing of a set, transparent around it; all of it where the set lacks the thing."""
    row, column = divmod(names().index(name), COLUMNS)
    left, top = column * SIDE_PX, row * SIDE_PX
    return _sheet(drawings).crop((left, top, left + SIDE_PX, top + SIDE_PX))


@cache
def _sheet(drawings: str) -> Image.Image:
    with Image.open(FOLDER / "pictures" / f"{drawings}.webp") as sheet:
        return sheet.convert("RGBA")


@dataclass(frozen=True, kw_only=True, slots=True)
class Captions(Family):
    """One thing, or two side by side."""

    name: ClassVar[str] = "captions"
    phrasings: ClassVar[Mapping[str, Phrasings]] = PHRASINGS

    def drawn(self, rng: random.Random) -> Drawn:
        single = rng.random() < 0.65
        page = Page.blank(
            rng, (1, 1) if single or rng.random() < 0.4 else (2, 1), _light(rng), plain=rng.random() < 0.6
        )
        one, other = rng.sample(names(), 2)
        if single:
            _paste(rng, page, one, self.split, 0.0, page.width)
            either = rng.sample([one, other], 2)
            asked = [Asked("what", one), Asked("either", one, {"one": either[0], "other": either[1]})]
            if rng.random() < 0.25:
                asked.reverse()
        else:
            _paste(rng, page, one, self.split, 0.0, page.width / 2)
            _paste(rng, page, other, self.split, page.width / 2, page.width)
            asked = rng.sample([Asked("side", one, {"side": "left"}), Asked("side", other, {"side": "right"})], 2)
        facts = {"font": "", "names": (one,) if single else (one, other)}
        return Drawn(image=page.worn(rng), asked=asked[0], more=asked[1:], facts=facts)

    def score(self, sample: Sample, answer: str) -> float:
        """1.0 for the name; case, an article and a full stop do not count."""
        said = answer.strip().lower().removesuffix(".")
        for article in ("a ", "an ", "the "):
            said = said.removeprefix(article)
        return float(exact(said, sample.answer))


def _paste(rng: random.Random, page: Page, name: str, split: Split, left: float, right: float) -> None:
    """Between two edges, at a size of its own and a little turned."""
    picture = drawing(rng.choice(sets(name, split)), name)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = rng.uniform(0.6, 0.95) * min(right - left, page.height)
    side_px = round(side * page.scale)
    picture = picture.resize((side_px, side_px), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        picture = picture.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC)
    x, y = rng.uniform(left, right - side), rng.uniform(0, page.height - side)
    page.image.paste(picture, (round(x * page.scale), round(y * page.scale)), picture)


def _light(rng: random.Random) -> Palette:
    """Many drawings have dark outlines: no dark paper."""
    while True:
        colours = palette(rng)
        if sum(colours.paper) > 450:
            return colours
