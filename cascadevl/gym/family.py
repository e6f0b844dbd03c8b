"""What all families share: sample ids, seeds, and questions in trained and held-out words."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from PIL.Image import Image as Picture

from cascadevl.core.messages import Conversation, Text, Turn, Video
from cascadevl.core.task import Exchange, Glyph, Sample, Shown
from cascadevl.gym.assets import Split
from cascadevl.scoring.text import exact

MORE_QUESTIONS = 4
"""At most so many further questions about a picture."""


class Phrasings(NamedTuple):
    """Ways of asking one kind of question, as format strings."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...]


class Asked(NamedTuple):
    """What is asked, before it is put into words."""

    kind: str
    """Key into the family's `phrasings`."""
    answer: str
    blanks: Mapping[str, str] = MappingProxyType({})
    """What fills the {blanks} of the phrasing."""
    about: tuple[Glyph, ...] = ()
    """The things in the picture that are asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A picture, or several, what is asked about them, and what else could be."""

    image: Picture
    asked: Asked
    more: Sequence[Asked] = ()
    glyphs: list[Glyph] = field(default_factory=list)
    others: Sequence[Shown] = ()
    """The pictures behind the first."""
    is_video: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A core.task.Task whose subclasses say what they are called, what they ask and how they draw."""

    split: Split = "train"
    """Test pictures use fonts, words and half of the time phrasings that no training picture has."""
    seed: int = 0

    name: ClassVar[str]
    phrasings: ClassVar[Mapping[str, Phrasings]]

    def drawn(self, rng: random.Random) -> Drawn:
        """One picture; all chance must come from `rng`."""
        raise NotImplementedError

    def sample(self, index: int) -> Sample:
        sample_id = f"{self.name}/{self.split}/{self.seed}/{index}"
        rng = random.Random(sample_id)
        drawn = self.drawn(rng)
        held_out = self.split == "test" and rng.random() < 0.5

        def ask(asked: Asked) -> Exchange:
            ways = self.phrasings[asked.kind]
            phrasing = rng.choice(ways.held_out if held_out else ways.trained)
            return Exchange(phrasing.format(**asked.blanks), asked.answer, asked.about)

        first = ask(drawn.asked)
        more = rng.sample(drawn.more, min(MORE_QUESTIONS, len(drawn.more)))
        return Sample(
            id=sample_id,
            family=self.name,
            image=drawn.image,
            question=first.question,
            answer=first.answer,
            about=first.about,
            more=tuple(ask(asked) for asked in more),
            glyphs=tuple(drawn.glyphs),
            others=tuple(drawn.others),
            is_video=drawn.is_video,
            facts={"phrasing": "held_out" if held_out else "trained", "kind": drawn.asked.kind, **drawn.facts},
        )

    def samples(self, num: int, start: int = 0) -> Iterator[Sample]:
        return map(self.sample, range(start, start + num))

    def prompt(self, sample: Sample) -> Conversation:
        pictures = tuple(shown.image for shown in sample.shown)
        if sample.is_video:
            return Conversation((Turn("user", (Video(pictures), Text(sample.question))),))
        return Conversation.ask(sample.question, images=pictures)

    def score(self, sample: Sample, answer: str) -> float:
        """1.0 for the same text, case included; line breaks count as spaces."""
        return float(exact(answer, sample.answer))
