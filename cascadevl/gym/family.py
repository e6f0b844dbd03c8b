"""What all families share: sample ids, seeds, and questions in trained and held-out words."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from PIL.Image import Image as Picture

from cascadevl.core.messages import Conversation
from cascadevl.core.task import Glyph, Sample
from cascadevl.gym.assets import Split
from cascadevl.scoring.text import exact


class Phrasings(NamedTuple):
    """Ways of asking one kind of question, as format strings."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A picture and what is asked about it, before the question is put into words."""

    image: Picture
    kind: str
    """Key into the family's `phrasings`."""
    answer: str
    blanks: Mapping[str, str] = field(default_factory=dict)
    """What fills the {blanks} of the phrasing."""
    glyphs: list[Glyph] = field(default_factory=list)
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
        ways = self.phrasings[drawn.kind]
        phrasing = rng.choice(ways.held_out if held_out else ways.trained)
        return Sample(
            id=sample_id,
            family=self.name,
            image=drawn.image,
            question=phrasing.format(**drawn.blanks),
            answer=drawn.answer,
            glyphs=tuple(drawn.glyphs),
            facts={"phrasing": "held_out" if held_out else "trained", "kind": drawn.kind, **drawn.facts},
        )

    def samples(self, num: int, start: int = 0) -> Iterator[Sample]:
        return map(self.sample, range(start, start + num))

    def prompt(self, sample: Sample) -> Conversation:
        return Conversation.ask(sample.question, images=(sample.image,))

    def score(self, sample: Sample, answer: str) -> float:
        """1.0 for the same text, case included; line breaks count as spaces."""
        return float(exact(answer, sample.answer))
