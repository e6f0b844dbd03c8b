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


@dataclass(frozen=True, slots=True)
class Grounded:
    """What one `<box>…</box>` of an answer says: where in the picture the thing called `label` is."""

    label: str
    """The expression in `<ref>…</ref>` before it; empty where there is none."""
    boxes: tuple[Box, ...]
    """In pixels, clipped to the picture."""
    malformed: str = ""
    """What stands there and is no box, as the answer wrote it."""


_BOX = re.compile(
    r"(?:<ref>(?P<label>(?:(?!</?ref>).){0,400})</ref>\s*)?<box>(?P<inner>[^<]*)(?P<end></box>)?", re.DOTALL
)
_NUMBERS = re.compile(r"\[\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*\]?")


def read_boxes(text: str, width_px: int, height_px: int) -> list[Grounded]:
    """Every box of an answer in order, malformed ones told; text without `<box>` gives [].

    Corners in the wrong order are put right, numbers outside of 0…1000 are clipped: models write both.
    """
    found = []
    for match in _BOX.finditer(text):
        label, inner = match["label"] or "", match["inner"]
        if not match["end"]:
            found.append(Grounded(label, (), f"<box>{inner}"))
            continue
        lists = "[" + inner.lstrip("[ \n")
        boxes = tuple(_box(numbers, label, width_px, height_px) for numbers in _NUMBERS.findall(lists))
        rest = _NUMBERS.sub("", lists).strip("[], \n\t")
        found.append(Grounded(label, boxes, match[0][match[0].index("<box>") :] if rest or not boxes else ""))
    return found


def parse_boxes(text: str, width_px: int, height_px: int) -> list[Box]:
    """The boxes of `read_boxes` alone, whatever they are of."""
    return [box for grounded in read_boxes(text, width_px, height_px) for box in grounded.boxes]


def _box(numbers: tuple[str, ...], label: str, width_px: int, height_px: int) -> Box:
    x1, y1, x2, y2 = (min(max(int(number), 0), SCALE) / SCALE for number in numbers)
    left, right = sorted((x1 * width_px, x2 * width_px))
    top, bottom = sorted((y1 * height_px, y2 * height_px))
    return Box(left, top, right, bottom, label)
