"""Draw the boxes of an answer on the picture: `cascadevl ask --overlay OUT.png`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cascadevl.core.boxes import Box
from cascadevl.core.errors import ConfigError

COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")


def check_overlay(path: Path) -> None:
    """Refuse before any work what could not be saved after it."""
    if not path.parent.is_dir():
        raise ConfigError(f"--overlay {path}: the folder {str(path.parent)!r} does not exist; make it first.")
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ConfigError(f"--overlay {path}: expected a name ending in .png, .jpg or .webp.")


def save_overlay(picture: Image.Image, boxes: Sequence[Box], path: Path) -> None:
    """The picture with its boxes, saved whole or not at all."""
    if not boxes:
        return _note(f"the answer names no box: {path} was not written")
    drawn = draw_boxes(picture, boxes)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        drawn.save(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _note(f"{len(boxes)} box{'es' if len(boxes) > 1 else ''} drawn: {path}")


def draw_boxes(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy in full size with every box outlined and labelled."""
    drawn = picture.convert("RGB")
    if drawn is picture:
        drawn = picture.copy()
    pen = ImageDraw.Draw(drawn)
    line_px = max(2, round(max(drawn.size) / 300))
    font = ImageFont.load_default(size=6 * line_px)
    for number, box in enumerate(boxes):
        colour = COLOURS[number % len(COLOURS)]
        pen.rectangle((box.left, box.top, box.right, box.bottom), outline=colour, width=line_px)
        if box.label:
            _write(pen, drawn.size, box, font, line_px, colour)
    return drawn


def _write(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: Box,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    line_px: int,
    colour: str,
) -> None:
    """The label in the box's upper left corner, moved as far as it must be to lie inside the picture."""
    text = " ".join(box.label.split())
    _, _, width, height = pen.textbbox((0, 0), text, font=font, stroke_width=1)
    left = max(0, min(box.left + 2 * line_px, size[0] - width - 1))
    top = max(0, min(box.top + line_px, size[1] - height - 1))
    pen.text((left, top), text, fill=colour, font=font, stroke_width=1, stroke_fill="white")


def _note(text: str) -> None:
    """To stderr: stdout holds answers only."""
    print(f"({text})", file=sys.stderr)
