"""Boxes: integers from 0 to 1000 of the original picture in text, pixels for people.

The official form is `<ref>expression</ref><box>[[x1, y1, x2, y2]]</box>`, with x·1000/width and
y·1000/height of the original picture; tiling is invisible to it (InternVL, eval/refcoco).
"""

import re
from dataclasses import dataclass

SCALE = 1000


@dataclass(frozen=True, slots=True)
class Box:
    """Left, top, right, bottom in pixels of the original picture, and what the text called it."""

    left: float
    top: float
    right: float
    bottom: float
    label: str = ""

    def normalised(self, width_px: int, height_px: int) -> tuple[int, int, int, int]:
        """The four integers of the official text form."""
        return (
            round(self.left * SCALE / width_px),
            round(self.top * SCALE / height_px),
            round(self.right * SCALE / width_px),
            round(self.bottom * SCALE / height_px),
        )


def format_boxes(boxes: list[Box], width_px: int, height_px: int) -> str:
    """`<box>[[x1, y1, x2, y2], …]</box>`."""
    inner = ", ".join(f"[{', '.join(map(str, box.normalised(width_px, height_px)))}]" for box in boxes)
    return f"<box>[{inner}]</box>"


_BOX = re.compile(r"(?:<ref>(?P<label>.{0,400}?)</ref>\s*)?<box>(?P<inner>[^<]*)</box>", re.DOTALL)
_NUMBERS = re.compile(r"\[\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*\]?")


def parse_boxes(text: str, width_px: int, height_px: int) -> list[Box]:
    """Every box of an answer, in pixels, clipped to the picture; text without boxes gives []."""
    found = []
    for match in _BOX.finditer(text):
        for numbers in _NUMBERS.findall("[" + match["inner"].lstrip("[ \n")):
            x1, y1, x2, y2 = (min(max(int(number), 0), SCALE) / SCALE for number in numbers)
            left, right = sorted((x1 * width_px, x2 * width_px))
            top, bottom = sorted((y1 * height_px, y2 * height_px))
            found.append(Box(left, top, right, bottom, match["label"] or ""))
    return found
