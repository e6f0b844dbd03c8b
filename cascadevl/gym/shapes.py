"""Coloured shapes: how many, which, where they stand to each other, and finding one (or a word) by its box.

A few pairs of colour and shape are never drawn in training; test questions are about pictures with one of them.
"""

import itertools
import math
import random
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image, ImageDraw

from cascadevl.core.boxes import Box, format_boxes
from cascadevl.core.task import Sample
from cascadevl.gym import assets
from cascadevl.gym.assets import Split
from cascadevl.gym.family import Drawn, Family, Phrasings
from cascadevl.gym.page import Colour, Page, Palette, palette
from cascadevl.scoring.boxes import grounded
from cascadevl.scoring.text import exact

COLOURS: dict[str, Colour] = {
    "red": (214, 32, 40), "orange": (245, 130, 25), "yellow": (242, 205, 20), "green": (30, 150, 60),
    "blue": (30, 85, 210), "purple": (125, 45, 165), "pink": (245, 135, 180), "black": (20, 20, 20),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
SIDES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
ENDS = {"left-most": (-1, 0), "right-most": (1, 0), "top": (0, -1), "bottom": (0, 1)}
GRIDS = ((2, 2), (2, 2), (3, 2), (2, 1), (2, 3), (1, 1), (3, 1), (1, 2))

APART = 16.0
"""Page units by which one centre must lie further out than another before we ask about it."""

COUNT = Phrasings(
    trained=(
        "How many {things} are there?", "How many {things} do you see?", "Count the {things}.",
        "What is the number of {things}?", "How many {things} are in the image?", "How many {things}?",
        "How many {things} can you find?", "Count all {things} in the picture.",
    ),
    held_out=("Tell me how many {things} the picture shows.", "The number of {things} is?"),
)  # fmt: skip
COLOUR = Phrasings(
    trained=(
        "What color is the {thing}?", "What colour is the {thing}?", "Which color does the {thing} have?",
        "The {thing} has which color?", "What is the color of the {thing}?", "Name the color of the {thing}.",
        "Color of the {thing}?", "What is the colour of the {thing}?",
    ),
    held_out=("In which color is the {thing} drawn?", "Tell me the {thing}'s color."),
)  # fmt: skip
SHAPE = Phrasings(
    trained=(
        "What shape is {place}?", "Which shape is {place}?", "What is {place}?", "Which figure is {place}?",
        "What kind of shape is {place}?", "Name the shape that is {place}.", "Say which shape is {place}.",
        "What is the shape that is {place}?",
    ),
    held_out=("Tell me which shape is {place}.", "Which one of the shapes is {place}?"),
)  # fmt: skip
RELATION = Phrasings(
    trained=(
        "Is the {first} {side} the {second}?", "Is the {first} {side} the {second}? Yes or no?",
        "Does the {first} lie {side} the {second}?", "Is it true that the {first} is {side} the {second}?",
        "Do you see the {first} {side} the {second}?", "The {first} is {side} the {second}: yes or no?",
        "Can you find the {first} {side} the {second}?", "Is the {first} placed {side} the {second}?",
    ),
    held_out=("Does the {first} stand {side} the {second}?", "Would you say the {first} is {side} the {second}?"),
)  # fmt: skip
LOCATE = Phrasings(
    trained=(
        "Locate the {thing}.", "Where is the {thing}?", "Find the {thing}.", "Give the box of the {thing}.",
        "Draw a box around the {thing}.", "Point out the {thing}.", "Show me the {thing}.",
        "What is the bounding box of the {thing}?",
    ),
    held_out=("Detect the {thing}.", "Give me the {thing}'s position."),
)  # fmt: skip


class Thing(NamedTuple):
    """One shape: its centre and half its side in page units."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float

    def called(self, others: list["Thing"]) -> str:
        """The shortest name that fits no other: "circle", or "red circle"."""
        return self.shape if all(other.shape != self.shape for other in others) else f"{self.colour} {self.shape}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes(Family):
    """Counting, colour, shape and relation."""

    name = "shapes"
    phrasings = {"count": COUNT, "colour": COLOUR, "shape": SHAPE, "relation": RELATION}

    def drawn(self, rng: random.Random) -> Drawn:
        page = _page(rng)
        kind = rng.choices(list(self.phrasings), (35, 20, 20, 25))[0]
        asked = None
        while asked is None:
            if kind == "count":
                things, asked = _counted(rng, page, self.split)
            else:
                things = _scatter(rng, page, _mixed(rng, self.split, rng.randint(2, 5)))
                ask = {"colour": _ask_colour, "shape": _ask_shape, "relation": _ask_relation}[kind]
                asked = ask(rng, things) if len(things) > 1 else None
        answer, blanks = asked
        for thing in things:
            _paint(rng, page, thing)
        facts = {"font": "", "pairs": _pairs_of(things)}
        return Drawn(image=page.worn(rng), kind=kind, answer=answer, blanks=blanks, facts=facts)

    def score(self, sample: Sample, answer: str) -> float:
        """1.0 for the same word or digit, whatever its case and with or without a full stop."""
        return float(exact(answer.strip().removesuffix("."), sample.answer, fold_case=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Locate(Family):
    """Where a shape or a printed word is, as a box in the official form."""

    name = "locate"
    phrasings = {"locate": LOCATE}

    def drawn(self, rng: random.Random) -> Drawn:
        return self._shape(rng) if rng.random() < 0.5 else self._word(rng)

    def _shape(self, rng: random.Random) -> Drawn:
        page = _page(rng)
        things = _scatter(rng, page, _mixed(rng, self.split, rng.randint(1, 5)))
        boxes = [_paint(rng, page, thing) for thing in things]
        called = [thing.called([other for other in things if other is not thing]) for thing in things]
        at = rng.randrange(len(things))
        facts = {"font": "", "box": boxes[at], "pairs": _pairs_of(things)}
        answer = format_boxes([boxes[at]], *page.image.size)
        return Drawn(image=page.worn(rng), kind="locate", answer=answer, blanks={"thing": called[at]}, facts=facts)

    def _word(self, rng: random.Random) -> Drawn:
        face = rng.choice(assets.faces(self.split))
        page = Page.blank(rng, rng.choice(GRIDS), palette(rng), plain=rng.random() < 0.7)
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
        return Drawn(
            image=page.worn(rng), kind="locate", answer=format_boxes([found[word]], *page.image.size),
            blanks={"thing": f"word {word}"}, glyphs=page.glyphs,
            facts={"font": face, "box": found[word], "words": tuple(found)},
        )  # fmt: skip

    def score(self, sample: Sample, answer: str) -> float:
        """1.0 where the first box covers the thing with an intersection over union of at least 0.5."""
        return float(grounded(answer, sample.facts["box"], *sample.image.size))


def pairs(split: Split) -> list[tuple[str, str]]:
    """The (colour, shape) pairs that only this split is sure to show."""
    every = itertools.product(COLOURS, SHAPES)
    return [pair for pair in every if assets.held_out(" ".join(pair)) == (split == "test")]


def _mixed(rng: random.Random, split: Split, num: int) -> list[tuple[str, str]]:
    """Different pairs; in test pictures the first is a held-out one."""
    if split == "train":
        return rng.sample(pairs("train"), num)
    first = rng.choice(pairs("test"))
    return [first, *rng.sample([pair for pair in pairs("train") if pair != first], num - 1)]


def _counted(
    rng: random.Random, page: Page, split: Split
) -> tuple[list[Thing], tuple[str, dict[str, str]] | None]:  # fmt: skip
    """A picture with a chosen number of what is asked for, among others."""
    colour, shape = wanted = _mixed(rng, split, 1)[0]
    matches, plural = {
        "pair": (lambda pair: pair == wanted, f"{colour} {_plural(shape)}"),
        "shape": (lambda pair: pair[1] == shape, _plural(shape)),
        "colour": (lambda pair: pair[0] == colour, f"{colour} shapes"),
        "all": (lambda pair: True, "shapes"),
    }[rng.choices(("pair", "shape", "colour", "all"), (45, 25, 15, 15))[0]]
    known = [*pairs("train"), wanted]
    right, wrong = [pair for pair in known if matches(pair)], [pair for pair in known if not matches(pair)]
    num_right = rng.randint(0 if wrong else 1, 6)
    chosen = [wanted] * min(1, num_right) + rng.choices(right, k=max(0, num_right - 1))
    if wrong:
        chosen += rng.choices(wrong, k=rng.randint(1 if num_right == 0 else 0, max(1, 8 - num_right)))
    things = _scatter(rng, page, chosen)
    answer = sum(matches((thing.colour, thing.shape)) for thing in things)
    return things, (str(answer), {"things": plural}) if len(things) == len(chosen) else None


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else f"{shape}s"


def _ask_colour(rng: random.Random, things: list[Thing]) -> tuple[str, dict[str, str]] | None:
    single = [thing for thing in things if [other.shape for other in things].count(thing.shape) == 1]
    ends = [(end, thing) for end, side in ENDS.items() if (thing := _outermost(things, side))]
    if single and (not ends or rng.random() < 0.6):
        thing = rng.choice(single)
        return thing.colour, {"thing": thing.shape}
    if not ends:
        return None
    end, thing = rng.choice(ends)
    return thing.colour, {"thing": f"{end} shape"}


def _ask_shape(rng: random.Random, things: list[Thing]) -> tuple[str, dict[str, str]] | None:
    """By colour, by the end at which it stands, or by its neighbour."""
    places: list[tuple[str, str]] = []
    for thing in things:
        others = [other for other in things if other is not thing]
        if all(other.colour != thing.colour for other in others):
            places.append((thing.shape, thing.colour))
        for side, direction in SIDES.items():
            beyond = [other for other in others if _ahead(other, thing, direction) > 0]
            if len(beyond) == 1 and _ahead(beyond[0], thing, direction) > APART:
                places.append((beyond[0].shape, f"{side} the {thing.called(others)}"))
    for end, direction in ENDS.items():
        if thing := _outermost(things, direction):
            places.append((thing.shape, f"{'furthest ' if '-' in end else 'at the '}{end.split('-')[0]}"))
    if not places:
        return None
    shape, place = rng.choice(places)
    return shape, {"place": place}


def _ask_relation(rng: random.Random, things: list[Thing]) -> tuple[str, dict[str, str]] | None:
    """Yes as often as no: the answer is chosen first."""
    first, second = rng.sample(things, 2)
    true = [side for side, direction in SIDES.items() if _ahead(first, second, direction) > APART]
    if not true:
        return None
    answer, side = rng.choice(("yes", "no")), rng.choice(true)
    if answer == "no":
        side = next(other for other in SIDES if SIDES[other] == (-SIDES[side][0], -SIDES[side][1]))
    names = [thing.called([other for other in things if other is not thing]) for thing in (first, second)]
    return answer, {"first": names[0], "side": side, "second": names[1]}


def _ahead(thing: Thing, other: Thing, direction: tuple[int, int]) -> float:
    return (thing.x - other.x) * direction[0] + (thing.y - other.y) * direction[1]


def _outermost(things: list[Thing], direction: tuple[int, int]) -> Thing | None:
    ranked = sorted(things, key=lambda thing: thing.x * direction[0] + thing.y * direction[1])
    return ranked[-1] if _ahead(ranked[-1], ranked[-2], direction) > APART else None


def _page(rng: random.Random) -> Page:
    level = rng.choice((255, 255, rng.randint(215, 255)))
    paper = (level, min(255, level + rng.randint(-8, 8)), min(255, level + rng.randint(-8, 8)))
    colours = Palette(paper=paper, ink=(0, 0, 0), accent=(120, 120, 120))
    return Page.blank(rng, rng.choice(GRIDS), colours, plain=rng.random() < 0.7)


def _scatter(rng: random.Random, page: Page, kinds: list[tuple[str, str]]) -> list[Thing]:
    """Places shapes without overlap; leaves out what finds no room."""
    things: list[Thing] = []
    largest = min(30.0, math.sqrt(page.width * page.height / max(1, len(kinds))) / 3.2)
    for colour, shape in kinds:
        for _ in range(60):
            radius = rng.uniform(10.0, max(10.0, largest))
            x = rng.uniform(radius + 2, page.width - radius - 2)
            y = rng.uniform(radius + 2, page.height - radius - 2)
            if all(math.hypot(x - thing.x, y - thing.y) > 1.2 * (radius + thing.radius) + 2 for thing in things):
                things.append(Thing(colour, shape, x, y, radius))
                break
    return things


def _pairs_of(things: list[Thing]) -> tuple[tuple[str, str], ...]:
    return tuple((thing.colour, thing.shape) for thing in things)


def _paint(rng: random.Random, page: Page, thing: Thing) -> Box:
    """Draws a shape with smooth edges and returns its box in pixels."""
    side = max(4, round(2 * thing.radius * page.scale))
    left, top = round((thing.x - thing.radius) * page.scale), round((thing.y - thing.radius) * page.scale)
    colour = tuple(min(255, max(0, part + rng.randint(-12, 12))) for part in COLOURS[thing.colour])
    mask = _mask(thing.shape, 2 * side).reduce(2)
    page.image.paste(colour, (left, top), mask)
    across, upper, past, lower = mask.getbbox() or (0, 0, side, side)
    return Box(left + across, top + upper, left + past, top + lower)


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
