"""Coloured shapes: how many, of which colour and shape, and how they stand to each other."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from cascadevl.core.task import Sample
from cascadevl.gym import scene
from cascadevl.gym.assets import Split
from cascadevl.gym.family import Asked, Drawn, Family, Phrasings
from cascadevl.gym.page import Page
from cascadevl.gym.scene import Pair, Thing
from cascadevl.scoring.text import exact

SIDES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
ENDS = {"left-most": (-1, 0), "right-most": (1, 0), "top": (0, -1), "bottom": (0, 1)}

APART = 16.0
"""Page units by which one centre must lie further out than another before we ask about it."""

COUNT = Phrasings(
    trained=(
        "How many {things} are there?", "How many {things} do you see?", "Count the {things}.",
        "What is the number of {things}?", "How many {things} are in the image?", "How many {things}?",
        "How many {things} can you find?", "Count all {things} in the picture.",
        "Tell me how many {things} there are.", "Tell me the number of {things}.", "What number of {things} is there?",
        "Say how many {things} the image shows.",
    ),
    held_out=("Tell me how many {things} the picture shows.", "The number of {things} is?"),
)  # fmt: skip
COLOUR = Phrasings(
    trained=(
        "What color is the {thing}?", "What colour is the {thing}?", "Which color does the {thing} have?",
        "The {thing} has which color?", "What is the color of the {thing}?",
        "Name the color of the {thing}.", "Color of the {thing}?", "What is the colour of the {thing}?",
        "Tell me the color of the {thing}.", "What is the {thing}'s color?", "In what color do you see the {thing}?",
        "Which color is the {thing} drawn in?",
    ),
    held_out=("In which color is the {thing} drawn?", "Tell me the {thing}'s color."),
)  # fmt: skip
SHAPE = Phrasings(
    trained=(
        "What shape is {place}?", "Which shape is {place}?", "What is {place}?", "Which figure is {place}?",
        "What kind of shape is {place}?", "Name the shape that is {place}.", "Say which shape is {place}.",
        "What is the shape that is {place}?",
        "Tell me what shape is {place}.", "Which of the shapes is {place}?", "Tell me which figure is {place}.",
        "Which one is {place}?",
    ),
    held_out=("Tell me which shape is {place}.", "Which one of the shapes is {place}?"),
)  # fmt: skip
RELATION = Phrasings(
    trained=(
        "Is the {first} {side} the {second}?", "Is the {first} {side} the {second}? Yes or no?",
        "Does the {first} lie {side} the {second}?", "Is it true that the {first} is {side} the {second}?",
        "Do you see the {first} {side} the {second}?", "The {first} is {side} the {second}: yes or no?",
        "Can you find the {first} {side} the {second}?", "Is the {first} placed {side} the {second}?",
        "Does the {first} appear {side} the {second}?", "Would you find the {first} {side} the {second}?",
        "Can you say that the {first} is {side} the {second}?", "Do you say the {first} stands {side} the {second}?",
    ),
    held_out=(
        "Does the {first} stand {side} the {second}?", "Would you say the {first} is {side} the {second}?",
    ),
)  # fmt: skip


class _Question(NamedTuple):
    """As `Asked`, before the things are painted."""

    kind: str
    answer: str
    blanks: Mapping[str, str]
    things: tuple[Thing, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes(Family):
    """Counting, colour, shape and relation."""

    name: ClassVar[str] = "shapes"
    phrasings: ClassVar[Mapping[str, Phrasings]] = {
        "count": COUNT,
        "colour": COLOUR,
        "shape": SHAPE,
        "relation": RELATION,
    }

    def drawn(self, rng: random.Random) -> Drawn:
        page = scene.blank_page(rng)
        kind = rng.choices(list(self.phrasings), (35, 20, 20, 25))[0]
        while True:
            if kind == "count":
                things, asked = _counted(rng, page, self.split)
            else:
                things = scene.scatter(rng, page, scene.mixed(rng, self.split, rng.randint(2, 5)))
                ask = {"colour": _ask_colour, "shape": _ask_shape, "relation": _ask_relation}[kind]
                asked = ask(rng, things) if len(things) > 1 else None
            if asked:
                break
        asks = (_ask_count, _ask_colour, _ask_shape, _ask_relation) if len(things) > 1 else ()
        more = [ask(rng, things) for ask in asks]
        for thing in things:
            scene.paint(rng, page, thing)
        painted = dict(zip(things, page.glyphs, strict=True))

        def placed(one: _Question) -> Asked:
            return Asked(*one[:3], tuple(painted[thing] for thing in one.things))

        facts = {"font": "", "pairs": scene.pairs_of(things)}
        others = [placed(one) for one in more if one and one != asked]
        image = page.worn(rng)
        return Drawn(image=image, asked=placed(asked), more=others, glyphs=page.glyphs, facts=facts)

    def score(self, sample: Sample, answer: str) -> float:
        """1.0 for the same word or digit, whatever its case and with or without a full stop."""
        return float(exact(answer.strip().removesuffix("."), sample.answer, fold_case=True))


def _counted(rng: random.Random, page: Page, split: Split) -> tuple[list[Thing], _Question | None]:
    """A picture with a chosen number of what is asked for, among others."""
    wanted = scene.mixed(rng, split, 1)[0]
    matches, plural = _kind_of_things(rng, wanted)
    known = [*scene.pairs("train"), wanted]
    right, wrong = [pair for pair in known if matches(pair)], [pair for pair in known if not matches(pair)]
    num_right = rng.randint(0 if wrong else 1, 6)
    chosen = [wanted] * min(1, num_right) + rng.choices(right, k=max(0, num_right - 1))
    if wrong:
        chosen += rng.choices(wrong, k=rng.randint(1 if num_right == 0 else 0, max(1, 8 - num_right)))
    things = scene.scatter(rng, page, chosen)
    return things, _count(things, matches, plural) if len(things) == len(chosen) else None


def _ask_count(rng: random.Random, things: list[Thing]) -> _Question:
    thing = rng.choice(things)
    return _count(things, *_kind_of_things(rng, (thing.colour, thing.shape)))


def _kind_of_things(rng: random.Random, pair: Pair) -> tuple[Callable[[Pair], bool], str]:
    """All pairs that are alike in something, and what they are called."""
    colour, shape = pair
    return {
        "pair": (lambda other: other == pair, f"{colour} {_plural(shape)}"),
        "shape": (lambda other: other[1] == shape, _plural(shape)),
        "colour": (lambda other: other[0] == colour, f"{colour} shapes"),
        "all": (lambda other: True, "shapes"),
    }[rng.choices(("pair", "shape", "colour", "all"), (45, 25, 15, 15))[0]]


def _count(things: list[Thing], matches: Callable[[Pair], bool], plural: str) -> _Question:
    meant = tuple(thing for thing in things if matches((thing.colour, thing.shape)))
    return _Question("count", str(len(meant)), {"things": plural}, meant)


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else f"{shape}s"


def _ask_colour(rng: random.Random, things: list[Thing]) -> _Question | None:
    single = [thing for thing in things if [other.shape for other in things].count(thing.shape) == 1]
    ends = [(end, thing) for end, side in ENDS.items() if (thing := _outermost(things, side))]
    if single and (not ends or rng.random() < 0.6):
        thing = rng.choice(single)
        return _Question("colour", thing.colour, {"thing": thing.shape}, (thing,))
    if not ends:
        return None
    end, thing = rng.choice(ends)
    return _Question("colour", thing.colour, {"thing": f"{end} shape"}, (thing,))


def _ask_shape(rng: random.Random, things: list[Thing]) -> _Question | None:
    """By colour, by the end at which it stands, or by its neighbour."""
    places: list[tuple[Thing, str]] = []
    for thing in things:
        others = [other for other in things if other is not thing]
        if all(other.colour != thing.colour for other in others):
            places.append((thing, thing.colour))
        for side, direction in SIDES.items():
            beyond = [other for other in others if _ahead(other, thing, direction) > 0]
            if len(beyond) == 1 and _ahead(beyond[0], thing, direction) > APART:
                places.append((beyond[0], f"{side} the {thing.called(rng, others)}"))
    for end, direction in ENDS.items():
        if thing := _outermost(things, direction):
            places.append((thing, f"{'furthest ' if '-' in end else 'at the '}{end.split('-')[0]}"))
    if not places:
        return None
    thing, place = rng.choice(places)
    return _Question("shape", thing.shape, {"place": place}, (thing,))


def _ask_relation(rng: random.Random, things: list[Thing]) -> _Question | None:
    """Yes as often as no: the answer is chosen first."""
    first, second = rng.sample(things, 2)
    true = [side for side, direction in SIDES.items() if _ahead(first, second, direction) > APART]
    if not true:
        return None
    answer, side = rng.choice(("yes", "no")), rng.choice(true)
    if answer == "no":
        side = next(other for other in SIDES if SIDES[other] == (-SIDES[side][0], -SIDES[side][1]))
    names = [thing.called(rng, [other for other in things if other is not thing]) for thing in (first, second)]
    return _Question("relation", answer, {"first": names[0], "side": side, "second": names[1]}, (first, second))


def _ahead(thing: Thing, other: Thing, direction: tuple[int, int]) -> float:
    return (thing.x - other.x) * direction[0] + (thing.y - other.y) * direction[1]


def _outermost(things: list[Thing], direction: tuple[int, int]) -> Thing | None:
    ranked = sorted(things, key=lambda thing: thing.x * direction[0] + thing.y * direction[1])
    return ranked[-1] if _ahead(ranked[-1], ranked[-2], direction) > APART else None
