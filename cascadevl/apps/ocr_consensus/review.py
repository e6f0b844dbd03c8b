"""CE-OCR: what the readers doubt is shown to an expert, with all they read (https://arxiv.org/abs/2504.11101).

The paper shows whole pages. Here an expert sees the doubtful lines alone where the readers tell their places: a line
costs a fraction of a page, and no part of the page that was read well can be made up anew.
"""

from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from cascadevl.apps.ocr_consensus.lines import PixelBox
from cascadevl.apps.ocr_consensus.readers import Reading
from cascadevl.apps.ocr_consensus.transcript import SHOWN, Transcript, union
from cascadevl.scoring.consensus import LineQuality

WHOLE = 0.6
"""Share of doubtful lines from which on the whole page is shown at once."""
MARGIN = 0.35
"""Around a line, in its height: letters that a box cuts off are lost."""


class Expert(Protocol):
    """A reader who is shown what the others read."""

    @property
    def name(self) -> str: ...

    def review(self, image: Image.Image, candidates: list[str], consensus: str) -> Reading:
        """Of a page or a line."""
        ...


@dataclass(frozen=True, slots=True)
class Review:
    """What an expert said, as a reading of the whole page."""

    reading: Reading
    num_lines: int | None
    """How many lines were shown; None: the page."""
    share: float
    """Of the page's pixels that were shown."""


def review(expert: Expert, image: Image.Image, transcript: Transcript) -> Review:
    """The doubtful lines by the expert and all others by the consensus; or the whole page by the expert."""
    lines = transcript.quality.per_line
    doubtful = [at for at, line in enumerate(lines) if _is_doubtful(transcript, line)]
    boxes = {at: _cut(transcript, lines[at]) for at in doubtful}
    placed = {at: box for at, box in boxes.items() if box is not None}
    if not doubtful or len(placed) < len(doubtful) or len(doubtful) > WHOLE * len(lines):
        said = expert.review(image, [each.text for each in transcript.readings], transcript.text)
        return Review(said, None, 1.0)
    texts = [line.text for line in lines]
    for at, box in placed.items():
        left, top, right, bottom = map(round, box)
        crop = image.crop((left, top, right, bottom))
        said = expert.review(crop, _candidates(transcript, lines[at]), texts[at])
        texts[at] = " ".join(said.text.split())
    shown = sum((box[2] - box[0]) * (box[3] - box[1]) for box in placed.values()) / (image.width * image.height)
    return Review(Reading("\n".join(filter(None, texts))), len(placed), min(1.0, shown))


def _is_doubtful(transcript: Transcript, line: LineQuality) -> bool:
    return any(transcript.quality.columns[at].doubt >= SHOWN for at in line.columns)


def _cut(transcript: Transcript, line: LineQuality) -> PixelBox | None:
    box = union([transcript.boxes[at] for at in line.columns])
    if box is None:
        return None
    left, top, right, bottom = box
    more = MARGIN * (bottom - top)
    width, height = transcript.size_px
    return max(0, left - more), max(0, top - more), min(width, right + more), min(height, bottom + more)


def _candidates(transcript: Transcript, line: LineQuality) -> list[str]:
    columns = [transcript.quality.columns[at] for at in line.columns]
    return [" ".join(filter(None, texts)) for texts in zip(*(column.texts for column in columns), strict=True)]
