"""Short videos: a shape moves, another comes and goes, or what is written changes."""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from cascadevl.core.task import Sample, Shown
from cascadevl.gym import assets, scene
from cascadevl.gym.assets import Split
from cascadevl.gym.family import Asked, Drawn, Family, Phrasings
from cascadevl.gym.page import Page, palette
from cascadevl.gym.scene import Thing
from cascadevl.gym.text import MIN_HEIGHT, amount
from cascadevl.scoring.text import exact

PHRASINGS = {
    "direction": Phrasings(
        trained=(
            "In which direction does the {thing} move?", "Which way does the {thing} move?",
            "Where does the {thing} move?", "Which way does the {thing} go?", "Where does the {thing} go?",
            "What is the direction of the {thing}?", "Does the {thing} move left, right, up or down?",
            "In what direction is the {thing} moving?", "Name the direction in which the {thing} moves.",
            "Tell me where the {thing} moves.",
        ),
        held_out=("Tell me which way the {thing} goes.", "In what direction does the {thing} go?"),
    ),
    "moves": Phrasings(
        trained=(
            "What moves?", "Which shape moves?", "What is moving?", "What moves in the video?",
            "Which shape is moving?", "Which of the shapes moves?", "Name the shape that moves.",
            "Which shape does not stand still?", "Tell me which shape moves.", "What is in motion?",
        ),
        held_out=("Tell me what is moving.", "Which one of the shapes is in motion?"),
    ),
    "num_frames": Phrasings(
        trained=(
            "How many frames show the {thing}?", "In how many frames is the {thing}?",
            "In how many frames do you see the {thing}?", "Count the frames that show the {thing}.",
            "How many frames have the {thing}?", "What is the number of frames with the {thing}?",
            "How many of the frames show the {thing}?", "For how many frames is the {thing} there?",
            "Tell me how many frames show the {thing}.", "Tell me the number of frames with the {thing}.",
        ),
        held_out=("Tell me in how many frames the {thing} is.", "The number of frames that show the {thing} is?"),
    ),
    "appears": Phrasings(
        trained=(
            "In which frame does the {thing} appear?", "When does the {thing} appear?",
            "Which frame shows the {thing} first?", "In which frame is the {thing} for the first time?",
            "What is the first frame with the {thing}?", "In which frame do you first see the {thing}?",
            "Name the first frame that shows the {thing}.", "When do you first see the {thing}?",
            "Find the frame where the {thing} appears.", "Tell me when the {thing} appears.",
        ),
        held_out=("Tell me in which frame the {thing} appears.", "Which frame is the first with the {thing}?"),
    ),
    "end": Phrasings(
        trained=(
            "What is the {which} {noun}?", "Which {noun} is {which}?", "Read the {which} {noun}.",
            "What {noun} is shown {which}?", "Which {noun} comes {which}?", "What is the {noun} that comes {which}?",
            "Name the {which} {noun}.", "What is the {which} {noun} of the video?", "Give the {which} {noun}.",
            "Tell me the {which} {noun}.",
        ),
        held_out=("Tell me which {noun} comes {which}.", "Which {noun} does the video show {which}?"),
    ),
    "frame": Phrasings(
        trained=(
            "What does frame {number} say?", "What is written in frame {number}?", "Read frame {number}.",
            "What is the text of frame {number}?", "Which {noun} is in frame {number}?",
            "What does it say in frame {number}?", "Which {noun} does frame {number} show?",
            "What {noun} do you see in frame {number}?", "Give the {noun} of frame {number}.",
            "Tell me the {noun} in frame {number}.",
        ),
        held_out=("Tell me what frame {number} says.", "Copy the {noun} of frame {number}."),
    ),
    "when": Phrasings(
        trained=(
            "Which frame says {text}?", "In which frame is {text} written?", "Which frame shows {text}?",
            "In which frame do you read {text}?", "When does it say {text}?", "Find the frame that says {text}.",
            "What is the number of the frame that says {text}?", "When is {text} shown?",
            "Which of the frames says {text}?", "Tell me when it says {text}.",
        ),
        held_out=("Tell me which frame says {text}.", "In which of the frames is {text} written?"),
    ),
}  # fmt: skip

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
FAR = 30.0
"""Page units that a shape moves at least, from the first frame to the last."""


class Actor(NamedTuple):
    """A shape and where it stands in each frame; None where it is not to be seen."""

    colour: str
    shape: str
    radius: float
    places: list[tuple[float, float] | None]

    def at(self, frame: int) -> Thing | None:
        place = self.places[frame]
        return Thing(self.colour, self.shape, *place, self.radius) if place else None

    @property
    def present(self) -> list[int]:
        return [frame for frame, place in enumerate(self.places) if place]


@dataclass(frozen=True, kw_only=True, slots=True)
class Clips(Family):
    """Three to six frames of one tile each."""

    name: ClassVar[str] = "clips"
    phrasings: ClassVar[Mapping[str, Phrasings]] = PHRASINGS

    def drawn(self, rng: random.Random) -> Drawn:
        make = rng.choice((_moving, _moving, _written))
        return make(rng, self.split)

    def score(self, sample: Sample, answer: str) -> float:
        """1.0 for the same text; of numbers, places and things, case and a full stop do not count."""
        if sample.facts["kind"] in ("end", "frame"):
            return float(exact(answer, sample.answer))
        return float(exact(answer.strip().removesuffix("."), sample.answer, fold_case=True))


def _moving(rng: random.Random, split: Split) -> Drawn:
    page, num = scene.blank_page(rng, (1, 1)), rng.randint(3, 6)
    pairs = scene.mixed(rng, split, rng.choice((1, 2, 2, 3)))
    rng.shuffle(pairs)
    direction, mover = _mover(rng, page, pairs[0], num)
    actors = [mover]
    for pair in pairs[1:]:
        if other := _bystander(rng, page, pair, actors, num):
            actors.append(other)
    pages = [page.copy() for _ in range(num)]
    tint = rng.random()
    for frame, copy in enumerate(pages):
        for actor in actors:
            if thing := actor.at(frame):
                scene.paint(random.Random(tint), copy, thing)
    kinds = [(actor.colour, actor.shape) for actor in actors]
    asked = _ask_moving(rng, actors, direction)
    return _drawn(rng, pages, asked, {"font": "", "pairs": tuple(kinds)})


def _mover(rng: random.Random, page: Page, pair: scene.Pair, num: int) -> tuple[str, Actor]:
    """Steps of one length in one of four directions."""
    direction = rng.choice(list(DIRECTIONS))
    across, down = DIRECTIONS[direction]
    radius = rng.uniform(9, 20)
    low, high = radius + 2, [side - radius - 2 for side in (page.width, page.height)]
    room = (high[0] if across else high[1]) - low
    way = rng.uniform(FAR, room)
    start = low + rng.uniform(0, room - way) + (way if across + down < 0 else 0.0)
    beside = rng.uniform(low, high[1] if across else high[0])
    places = []
    for frame in range(num):
        along = start + (across + down) * way * frame / (num - 1)
        places.append((along, beside) if across else (beside, along))
    return direction, Actor(*pair, radius, places)


def _bystander(rng: random.Random, page: Page, pair: scene.Pair, actors: list[Actor], num: int) -> Actor | None:
    """Stands still, in all frames or in some that follow each other; None where there is no room."""
    taken = [(place, actor.radius) for actor in actors for place in actor.places if place]
    for _ in range(40):
        radius = rng.uniform(8, 18)
        x, y = (rng.uniform(radius + 2, side - radius - 2) for side in (page.width, page.height))
        if all(math.dist(place, (x, y)) > 1.2 * (radius + other) + 2 for place, other in taken):
            first = rng.randrange(num) if rng.random() < 0.5 else 0
            past = rng.randint(first + 1, num) if rng.random() < 0.5 else num
            return Actor(*pair, radius, [(x, y) if first <= frame < past else None for frame in range(num)])
    return None


def _ask_moving(rng: random.Random, actors: list[Actor], direction: str) -> list[Asked]:
    things = [Thing(actor.colour, actor.shape, 0, 0, actor.radius) for actor in actors]
    names = [thing.called(rng, [other for other in things if other is not thing]) for thing in things]
    asked = [Asked("direction", direction, {"thing": names[0]})]
    if len(actors) > 1:
        asked.append(Asked("moves", f"{things[0].colour} {things[0].shape}"))
    for actor, name in zip(actors, names, strict=True):
        if actor is not actors[0] or len(actors) == 1:
            asked.append(Asked("num_frames", str(len(actor.present)), {"thing": name}))
        if actor.present[0]:
            asked.append(Asked("appears", str(actor.present[0] + 1), {"thing": name}))
    return asked


def _written(rng: random.Random, split: Split) -> Drawn:
    noun, write = rng.choice(_WRITERS)
    face = rng.choice(assets.faces(split))
    page = Page.blank(rng, (1, 1), palette(rng), plain=rng.random() < 0.7)
    num = rng.randint(3, 6)
    while True:
        height = rng.uniform(MIN_HEIGHT, 30)
        texts = [write(rng, split) for _ in range(rng.randint(2, min(4, num)))]
        room = page.width - 8 - max(page.text_width(text, face, height) for text in texts)
        if room > 0 and len(set(texts)) == len(texts):
            break
    changes = sorted(rng.sample(range(1, num), len(texts) - 1))
    said = [texts[sum(change <= frame for change in changes)] for frame in range(num)]
    left, top = 4 + room * rng.random(), rng.uniform(3, page.height - height - 4)
    pages = [page.copy() for _ in said]
    for copy, text in zip(pages, said, strict=True):
        copy.text(left, top, text, face=face, height=height)
    return _drawn(rng, pages, _ask_written(rng, said, noun), {"font": face, "words": tuple(texts)})


def _number(rng: random.Random, split: Split) -> str:
    return str(rng.randint(0, 10 ** rng.randint(1, 5)))


def _word(rng: random.Random, split: Split) -> str:
    return rng.choice((str.upper, str.lower, str.capitalize))(rng.choice(assets.words(split)))


_WRITERS: tuple[tuple[str, Callable[[random.Random, Split], str]], ...] = (
    ("number", _number),
    ("word", _word),
    ("amount", lambda rng, split: amount(rng)),
)


def _ask_written(rng: random.Random, said: list[str], noun: str) -> list[Asked]:
    asked = [Asked("end", said[at], {"which": which, "noun": noun}) for which, at in (("first", 0), ("last", -1))]
    frames = rng.sample(range(len(said)), 2)
    asked += [Asked("frame", said[at], {"number": str(at + 1), "noun": noun}) for at in frames]
    once = [at for at, text in enumerate(said) if said.count(text) == 1]
    if once:
        at = rng.choice(once)
        asked.append(Asked("when", str(at + 1), {"text": rng.choice((said[at], f'"{said[at]}"'))}))
    text = rng.choice(said)
    asked.append(Asked("num_frames", str(said.count(text)), {"thing": f"{noun} {text}"}))
    return asked


def _drawn(rng: random.Random, pages: list[Page], asked: list[Asked], facts: dict[str, object]) -> Drawn:
    """All frames are worn alike, as those of one film are."""
    wear = rng.random()
    frames = [Shown(page.worn(random.Random(wear)), tuple(page.glyphs)) for page in pages]
    rng.shuffle(asked)
    return Drawn(
        image=frames[0].image, glyphs=list(frames[0].glyphs), others=frames[1:], is_video=True,
        asked=asked[0], more=asked[1:], facts=facts,
    )  # fmt: skip
