"""Readers that say what they were told to, and pages to show them. Importable, since some run in other processes."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from cascadevl.apps.ocr_consensus.readers import Reading, Span


@dataclass
class Fake:
    """Reads a page by its colour: grey level -> text, or an exception that is raised."""

    name: str
    texts: dict[int, str | Exception]
    version: str = "1"
    boxes: bool = False
    confidence: float = 0.9
    """Of every word, where it tells boxes."""
    seen: list[int] = field(default_factory=list)

    def read(self, image: Image.Image) -> Reading:
        level = image.getpixel((0, 0))[0]  # type: ignore[index]
        self.seen.append(level)
        text = self.texts[level]
        if isinstance(text, Exception):
            raise text
        return Reading(text, word_boxes(text, self.confidence) if self.boxes else ())


@dataclass
class FakeExpert:
    """Says the same of every page."""

    text: str
    name: str = "sage"
    shown: list[tuple[list[str], str]] = field(default_factory=list)

    def review(self, image: Image.Image, candidates: list[str], consensus: str) -> Reading:
        self.shown.append((candidates, consensus))
        return Reading(self.text)


def word_boxes(text: str, confidence: float = 0.9) -> tuple[Span, ...]:
    """Ten pixels a character, twenty a line."""
    spans, start = [], 0
    for row, line in enumerate(text.split("\n")):
        column = 0
        for word in line.split(" "):
            box = (column * 10, row * 20, (column + len(word)) * 10, row * 20 + 18)
            spans.append(Span(start + column, start + column + len(word), box, confidence))
            column += len(word) + 1
        start += len(line) + 1
    return tuple(spans)


def page(path: Path, level: int) -> Path:
    Image.new("RGB", (200, 100), (level, level, level)).save(path)
    return path


class Slow:
    """Hangs on dark pages, dies on black ones, raises on white ones."""

    name, version = "slow", "1"

    def __init__(self, wait_s: float = 60) -> None:
        self.wait_s = wait_s

    def read(self, image: Image.Image) -> Reading:
        level = image.getpixel((0, 0))[0]  # type: ignore[index]
        if level == 0:
            os._exit(7)
        if level < 100:
            time.sleep(self.wait_s)
        if level == 255:
            raise RuntimeError("too bright")
        return Reading(f"level {level}")


def make_broken() -> Slow:
    raise OSError("no weights here")
