"""Task: something that asks, and that can tell whether an answer is right.

The gym makes tasks, evaluation runs them, reinforcement learning is rewarded by them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cascadevl.core.messages import Conversation

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


class Glyph(NamedTuple):
    """One printed character and its box in image pixels (left, top, right, bottom).

    Coloured shapes are characters too, of Unicode's private use area (gym/scene.py).
    """

    char: str
    left: float
    top: float
    right: float
    bottom: float


class Exchange(NamedTuple):
    """A question, its answer, and where in the first picture the answer is to be seen."""

    question: str
    answer: str
    about: tuple[Glyph, ...] = ()
    """The things that are asked for; empty where the printed characters of the answer tell."""


class Shown(NamedTuple):
    """A picture, and every character printed in it."""

    image: "Picture"
    glyphs: tuple[Glyph, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One question about a picture, about several or about a video, with its reference answer."""

    id: str
    """`family/split/seed/index`: enough to make the sample again."""
    family: str
    image: "Picture"
    question: str
    answer: str
    about: tuple[Glyph, ...] = ()
    """As of an Exchange."""
    more: tuple[Exchange, ...] = ()
    """Further questions about the same picture. Training asks them too; they are not scored."""
    glyphs: tuple[Glyph, ...] = ()
    """Every character printed in the picture, for dense supervision of the vision tower."""
    others: tuple[Shown, ...] = ()
    """The pictures behind the first, in order."""
    is_video: bool = False
    """The pictures are the frames of a video."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the scorer or a report needs besides the answer, such as the font's name."""

    @property
    def shown(self) -> tuple[Shown, ...]:
        """All pictures, in the order in which `prompt` shows them."""
        return (Shown(self.image, self.glyphs), *self.others)


class Task(Protocol):
    """A family of samples. `sample(i)` is a pure function of the task's settings and i."""

    @property
    def name(self) -> str: ...

    def sample(self, index: int) -> Sample: ...

    def samples(self, num: int, start: int = 0) -> Iterator[Sample]: ...

    def prompt(self, sample: Sample) -> Conversation: ...

    def score(self, sample: Sample, answer: str) -> float:
        """1.0 for right, 0.0 for wrong, between them where the task gives part marks."""
        ...
