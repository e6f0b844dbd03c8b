"""Several small pictures in one question: which says or shows something, what one of them says, how many do."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from cascadevl.core.task import Sample, Shown
from cascadevl.gym import scene
from cascadevl.gym.family import Asked, Drawn, Family, Phrasings
from cascadevl.gym.scene import Pair
from cascadevl.gym.text import Line
from cascadevl.scoring.text import exact

PHRASINGS = {
    "says": Phrasings(
        trained=(
            "What does the {which} picture say?", "What does the {which} image say?", "Read the {which} picture.",
            "What is written in the {which} picture?", "Read the text of the {which} image.",
            "What is the text of picture {number}?", "What does picture {number} say?",
            "What is written in image {number}?", "Which text does the {which} picture show?",
            "Tell me the text of the {which} image.",
        ),
        held_out=("Tell me what the {which} picture says.", "Copy the text of image {number}."),
    ),
    "which_says": Phrasings(
        trained=(
            "Which picture says {text}?", "Which image says {text}?", "In which picture is {text} written?",
            "Which picture shows the text {text}?", "Where is {text} written?", "Find the picture that says {text}.",
            "Which one says {text}?", "In which image do you read {text}?", "Tell me which picture says {text}.",
            "Which of the pictures says {text}?",
        ),
        held_out=("In which of the images is {text} written?", "Tell me which one reads {text}."),
    ),
    "shows": Phrasings(
        trained=(
            "What does the {which} picture show?", "What is in the {which} picture?", "What is in the {which} image?",
            "What does picture {number} show?", "What do you see in the {which} image?",
            "What is shown in image {number}?", "Which shape does the {which} picture show?",
            "Name the shape in the {which} picture.", "What is in picture {number}?",
            "Tell me what is in the {which} image.",
        ),
        held_out=("Tell me what the {which} picture shows.", "What do you see in picture {number}?"),
    ),
    "which_shows": Phrasings(
        trained=(
            "Which picture shows the {thing}?", "In which picture is the {thing}?", "In which image is the {thing}?",
            "Which image has the {thing}?", "Which picture has the {thing}?", "Which one shows the {thing}?",
            "Find the picture with the {thing}.", "In which of the pictures do you see the {thing}?",
            "Tell me which picture has the {thing}.", "Which of the images shows the {thing}?",
        ),
        held_out=("Tell me in which image the {thing} is.", "Which of the pictures has the {thing} in it?"),
    ),
    "count": Phrasings(
        trained=(
            "How many pictures show a {thing}?", "How many images show a {thing}?",
            "In how many pictures is a {thing}?", "Count the pictures with a {thing}.",
            "What is the number of pictures that show a {thing}?", "How many of the pictures have a {thing}?",
            "How many pictures have a {thing}?", "In how many images do you see a {thing}?",
            "Tell me how many pictures show a {thing}.", "Tell me the number of images with a {thing}.",
        ),
        held_out=("Tell me how many of the images have a {thing}.", "The number of pictures with a {thing} is?"),
    ),
    "same": Phrasings(
        trained=(
            "Do the {which} and the {other} picture show the same shape?",
            "Is the shape in the {which} and the {other} picture the same?",
            "Do the {which} and the {other} image have the same shape?",
            "Is the same shape in the {which} and in the {other} image?",
            "Are the shapes of the {which} and the {other} picture the same?",
            "The {which} and the {other} picture show the same shape: yes or no?",
            "Does the {which} picture have the shape of the {other} one?",
            "Is it true that the {which} and the {other} picture show the same shape?",
            "Do you see the same shape in the {which} and the {other} picture?",
            "Is the shape of the {which} image that of the {other} image?",
        ),
        held_out=(
            "Would you say the {which} and the {other} image show the same shape?",
            "Does the {which} picture show the same shape as the {other} one?",
        ),
    ),
}  # fmt: skip

ORDINALS = ("first", "second", "third", "fourth")


class Seen(NamedTuple):
    """What one of the pictures holds: a text, or shapes."""

    text: str = ""
    pairs: tuple[Pair, ...] = ()

    @property
    def names(self) -> set[str]:
        """Everything its shapes are rightly called."""
        return {name for colour, shape in self.pairs for name in (shape, f"{colour} {shape}")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Several(Family):
    """Two to four pictures of one or two tiles, each with a line of text or with a shape or two."""

    name: ClassVar[str] = "several"
    phrasings: ClassVar[Mapping[str, Phrasings]] = PHRASINGS

    def drawn(self, rng: random.Random) -> Drawn:
        while True:
            num = rng.randint(2, 4)
            num_texts = rng.choice((0, num, rng.randint(0, num)))
            texts = [_text(rng, self) for _ in range(num_texts)]
            things = [_things(rng, pairs) for pairs in _pairs(rng, self, num - num_texts)]
            pictures = rng.sample([*texts, *things], num)
            seen = [what for what, _, _ in pictures]
            asked = _askable(rng, seen)
            if asked and len({what.text for what in seen if what.text}) == num_texts:
                break
        first, *others = [shown for _, shown, _ in pictures]
        fonts = [font for _, _, font in pictures if font]
        facts = {
            "font": fonts[0] if fonts else "",
            "words": tuple(word for what in seen for word in what.text.split()),
            "pairs": tuple(pair for what in seen for pair in what.pairs),
        }
        return Drawn(
            image=first.image, glyphs=list(first.glyphs), others=others, asked=asked[0], more=asked[1:], facts=facts
        )

    def score(self, sample: Sample, answer: str) -> float:
        """1.0 for the same text; of places and things, case, a full stop and "the" do not count."""
        if sample.facts["kind"] == "says":
            return float(exact(answer, sample.answer))
        return float(exact(answer.strip().lower().removesuffix(".").removeprefix("the "), sample.answer))


def _text(rng: random.Random, family: Several) -> tuple[Seen, Shown, str]:
    easy = rng.random() < 0.5
    tiles = 1 if easy or rng.random() < 0.6 else 2
    drawn = Line(split=family.split, max_tiles=tiles, difficulty="easy" if easy else "full").drawn(rng)
    return Seen(text=drawn.asked.answer), Shown(drawn.image, tuple(drawn.glyphs)), drawn.facts["font"]


def _pairs(rng: random.Random, family: Several, num: int) -> list[tuple[Pair, ...]]:
    """Of each picture; now and then several pictures show the same."""
    if not num:
        return []
    pool = scene.mixed(rng, family.split, rng.randint(1, 2 * num))
    # Held-out pairs come first: they are drawn where there are any.
    firsts = [pool[0], *rng.choices(pool, k=num - 1)]
    return [(pair, *rng.sample(pool, min(1, len(pool) - 1) * (rng.random() < 0.3))) for pair in firsts]


def _things(rng: random.Random, pairs: tuple[Pair, ...]) -> tuple[Seen, Shown, str]:
    page = scene.blank_page(rng, (1, 1))
    things = scene.scatter(rng, page, list(pairs))
    for thing in things:
        scene.paint(rng, page, thing)
    return Seen(pairs=scene.pairs_of(things)), Shown(page.worn(rng)), ""


def _askable(rng: random.Random, seen: list[Seen]) -> list[Asked]:
    """What has one right answer, in random order; yes is the answer as often as no."""
    asked: list[Asked] = []
    names = Counter(name for what in seen for name in what.names)
    for number, what in enumerate(seen):
        blanks = {"which": _which(rng, number, len(seen)), "number": str(number + 1)}
        if what.text:
            asked.append(Asked("says", what.text, blanks))
            quoted = rng.choice((what.text, f'"{what.text}"'))
            asked.append(Asked("which_says", ORDINALS[number], {"text": quoted}))
        elif len(what.pairs) == 1:
            asked.append(Asked("shows", " ".join(what.pairs[0]), blanks))
        single = sorted(name for name in what.names if names[name] == 1)
        if single:
            asked.append(Asked("which_shows", ORDINALS[number], {"thing": rng.choice(single)}))
    if names:
        name = rng.choice(sorted(names))
        asked.append(Asked("count", str(names[name]), {"thing": name}))
        if same := _ask_same(rng, seen):
            asked.append(same)
    rng.shuffle(asked)
    return asked


def _ask_same(rng: random.Random, seen: list[Seen]) -> Asked | None:
    alone = [(number, what.pairs[0][1]) for number, what in enumerate(seen) if len(what.pairs) == 1]
    couples = [(one, other) for one in alone for other in alone if one[0] < other[0]]
    wanted = rng.choice((True, False))
    fitting = [(one, other) for one, other in couples if (one[1] == other[1]) == wanted]
    if not fitting:
        return None
    (one, _), (other, _) = rng.choice(fitting)
    blanks = {"which": ORDINALS[one], "other": ORDINALS[other]}
    return Asked("same", "yes" if wanted else "no", blanks)


def _which(rng: random.Random, number: int, num: int) -> str:
    return "last" if number == num - 1 and rng.random() < 0.3 else ORDINALS[number]
