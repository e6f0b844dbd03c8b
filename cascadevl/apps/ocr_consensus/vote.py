"""Who votes on a page, with which trust, and what it comes to."""

from collections.abc import Sequence

from PIL import Image

from cascadevl.apps.ocr_consensus.cleaning import has_ink
from cascadevl.apps.ocr_consensus.readers import Reading
from cascadevl.apps.ocr_consensus.transcript import Transcript
from cascadevl.scoring.consensus import score

TRUST = {"gocr": 0.3, "ocrad": 0.3, "clean:gocr": 0.3, "clean:ocrad": 0.3}
"""Reader -> how far it is trusted; all others 1. Two weak programs that make the same mistakes must weigh less than
one that reads the page."""
CONFIDENT = "rapidocr"
"""The reader whose own confidence counts for what is expected of a page: `scoring/expectation.py` was fitted to it."""


def compare(image: Image.Image, names: Sequence[str], readings: Sequence[Reading]) -> Transcript:
    """The consensus of those who found something.

    Readers that find nothing agree with each other perfectly. Where there is ink that says nothing about the page but
    that it is hard, so they do not vote; where all are silent, the page is as doubtful as a page can be.
    """
    heard = [at for at, reading in enumerate(readings) if reading.text.strip()]
    own_doubt = _own_doubt(names, readings)
    if len(heard) < len(readings) and has_ink(image):
        if CONFIDENT in names and names.index(CONFIDENT) not in heard:
            own_doubt = 1.0
        heard = heard or [0]
        names, readings = [names[at] for at in heard], [readings[at] for at in heard]
    quality = score([reading.text for reading in readings], _trust(names), own_doubt)
    return Transcript.of(image.size, names, readings, quality)


def with_expert(transcript: Transcript, name: str, reading: Reading) -> Transcript:
    """Its reading votes with as much trust as all others together: alone it cannot make up a page.

    What is expected of the page is then told by distances alone: no confidence was told about what it said.
    """
    trust = _trust(transcript.readers)
    readings = [*transcript.readings, reading]
    quality = score([each.text for each in readings], [*trust, sum(trust)])
    return Transcript.of(transcript.size_px, [*transcript.readers, f"{name} (expert)"], readings, quality)


def _own_doubt(names: Sequence[str], readings: Sequence[Reading]) -> float | None:
    told = [reading.confidence for name, reading in zip(names, readings, strict=True) if name == CONFIDENT]
    return min(1.0, max(0.0, 1 - told[0])) if told and told[0] is not None else None


def _trust(names: Sequence[str]) -> list[float]:
    """By the table; of equals the one named first decides where two stand against two."""
    return [TRUST.get(name, 1.0) * (1 - at * 1e-6) for at, name in enumerate(names)]
