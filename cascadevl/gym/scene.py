"""Scenes of coloured shapes.

A few pairs of colour and shape are never drawn in training; test pictures are made around one of them.
"""

import itertools
import math
import random
from typing import NamedTuple

from PIL import Image, ImageDraw

from cascadevl.core.boxes import Box
from cascadevl.core.task import Glyph
from cascadevl.gym import assets
from cascadevl.gym.assets import Split
from cascadevl.gym.page import Colour, Page, Palette

COLOURS: dict[str, Colour] = {
    "red": (214, 32, 40), "orange": (245, 130, 25), "yellow": (242, 205, 20), "green": (30, 150, 60),
    "blue": (30, 85, 210), "purple": (125, 45, 165), "pink": (245, 135, 180), "black": (20, 20, 20),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
GRIDS = ((2, 2), (2, 2), (3, 2), (2, 1), (2, 3), (1, 1), (3, 1), (1, 2))

Pair = tuple[str, str]

FIRST_MARK = 0xE000
"""Marks stand for shapes as characters stand for letters: private use characters, one for each pair."""
MARKS: dict[Pair, str] = {
    pair: chr(FIRST_MARK + number) for number, pair in enumerate(itertools.product(COLOURS, SHAPES))
}


class Thing(NamedTuple):
    """One shape: its centre and half its side in page units."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float

    def called(self, rng: random.Random, others: list["Thing"]) -> str:
        """A name that fits no other: "red circle", or "circle" where that is enough."""
        alone = all(other.shape != self.shape for other in others)
        return self.shape if alone and rng.random() < 0.6 else f"{self.colour} {self.shape}"


def pairs(split: Split) -> list[Pair]:
    """The (colour, shape) pairs of this split; test pictures mix them with the trained ones."""
    every = itertools.product(COLOURS, SHAPES)
    return [pair for pair in every if assets.held_out(" ".join(pair)) == (split == "test")]


def mixed(rng: random.Random, split: Split, num: int) -> list[Pair]:
    """Different pairs; in test pictures the first is a held-out one."""
    if split == "train":
        return rng.sample(pairs("train"), num)
    first = rng.choice(pairs("test"))
    return [first, *rng.sample([pair for pair in pairs("train") if pair != first], num - 1)]


def blank_page(rng: random.Random, grid: tuple[int, int] | None = None) -> Page:
    """White or nearly white, for a grid of tiles or any."""
    level = rng.choice((255, 255, rng.randint(215, 255)))
    paper = (level, min(255, level + rng.randint(-8, 8)), min(255, level + rng.randint(-8, 8)))
    colours = Palette(paper=paper, ink=(0, 0, 0), accent=(120, 120, 120))
    return Page.blank(rng, grid or rng.choice(GRIDS), colours, plain=rng.random() < 0.7)


def scatter(rng: random.Random, page: Page, kinds: list[Pair]) -> list[Thing]:
    """Places shapes without overlap; leaves out what finds no room."""
    things: list[Thing] = []
    largest = min(30.0, math.sqrt(page.width * page.height / max(1, len(kinds))) / 3.2)
    for colour, shape in kinds:
        for _ in range(60):
            radius = rng.uniform(10.0, max(10.0, largest))
            x = rng.uniform(radius + 2, page.width - radius - 2)
            y = rng.uniform(radius + 2, page.height - radius - 2)
            apart = (1.2 * (radius + thing.radius) + 2 < math.hypot(x - thing.x, y - thing.y) for thing in things)
            if all(apart):
                things.append(Thing(colour, shape, x, y, radius))
                break
    return things


def pairs_of(things: list[Thing]) -> tuple[Pair, ...]:
    return tuple((thing.colour, thing.shape) for thing in things)


def paint(rng: random.Random, page: Page, thing: Thing) -> Box:
    """Draws a shape with smooth edges and returns its box in pixels."""
    side = max(4, round(2 * thing.radius * page.scale))
    left, top = round((thing.x - thing.radius) * page.scale), round((thing.y - thing.radius) * page.scale)
    colour = tuple(min(255, max(0, part + rng.randint(-12, 12))) for part in COLOURS[thing.colour])
    mask = _mask(thing.shape, 2 * side).reduce(2)
    page.image.paste(colour, (left, top), mask)
    across, upper, past, lower = mask.getbbox() or (0, 0, side, side)
    box = Box(left + across, top + upper, left + past, top + lower)
    page.glyphs.append(Glyph(MARKS[thing.colour, thing.shape], box.left, box.top, box.right, box.bottom))
    return box


def _mask(shape: str, side: int) -> Image.Image:
    mask = Image.new("L", (side, side))
    draw, end = ImageDraw.Draw(mask), side - 1
    match shape:
        case "circle":
            draw.ellipse((0, 0, end, end), 255)
        case "square":
            inset = side * 0.08
            draw.rectangle((inset, inset, end - inset, end - inset), 255)
        case "triangle":
            draw.polygon(((end / 2, side * 0.05), (end, side * 0.92), (0, side * 0.92)), 255)
        case "diamond":
            draw.polygon(((end / 2, 0), (end * 0.88, end / 2), (end / 2, end), (end * 0.12, end / 2)), 255)
        case "cross":
            third = side * 0.34
            draw.rectangle((third, 0, end - third, end), 255)
            draw.rectangle((0, third, end, end - third), 255)
        case _:
            points = []
            for corner in range(10):
                reach = end / 2 * (1.0 if corner % 2 == 0 else 0.42)
                angle = math.pi * (corner / 5 - 0.5)
                points.append((end / 2 + reach * math.cos(angle), end / 2 + reach * math.sin(angle)))
            draw.polygon(points, 255)
    return mask
