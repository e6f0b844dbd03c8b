"""Loads as a picture: what a server gives on the left, how long it lets wait on the right. Drawn with Pillow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SCALE = 2
"""Pixels of a point: sharp on any screen."""
WIDTH, HEIGHT = 480, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 56, 52
INK, GRID, KNEE = "#222222", "#dddddd", "#999999"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Okabe and Ito's: to be told apart by everybody."""


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    values: Sequence[float | None]


def plot(
    path: Path, title: str, by: str, at: Sequence[float], found: Sequence[dict[str, Any]], knee: int | None
) -> None:
    """`by`: what the loads `at` are. A PNG of two panels."""

    def values(name: str, part: str | None = None) -> list[float | None]:
        cells = [row[name] for row in found]
        return cells if part is None else [None if cell is None else cell[part] for cell in cells]

    given = [Line("output tokens/s", values("output_tokens_per_s"))]
    waited = [
        Line(f"{short} {part}", values(name, part))
        for short, name in (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"))
        for part in ("median", "p99")
    ]
    image = Image.new("RGB", (2 * WIDTH * SCALE, HEIGHT * SCALE), "white")
    _panel(image, 0, f"{title}: tokens/s", by, at, given, knee, log=False)
    _panel(image, WIDTH, "latency in ms", by, at, waited, knee, log=True)
    image.save(path, "PNG")


def _panel(
    image: Image.Image,
    left: int,
    title: str,
    by: str,
    at: Sequence[float],
    lines: Sequence[Line],
    knee: int | None,
    log: bool,
) -> None:
    """Loads stand at equal distances: each is twice the one before."""
    pen = ImageDraw.Draw(image)
    small, large = (ImageFont.load_default(size * SCALE) for size in (11, 13))
    shown = [value for line in lines for value in line.values if value is not None and value > 0]
    ticks = _ticks(shown or [1.0], log)
    low, high = ticks[0], ticks[-1]

    def across(number: int) -> float:
        inside = WIDTH - LEFT - RIGHT
        return SCALE * (left + LEFT + inside * (number + 0.5) / len(at))

    def down(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        return SCALE * (HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share)

    start, end = SCALE * (left + LEFT), SCALE * (left + WIDTH - RIGHT)
    pen.text((start, 6 * SCALE), title, INK, large)
    for value in ticks:
        pen.line((start, down(value), end, down(value)), GRID, SCALE)
        pen.text((start - 6 * SCALE, down(value)), f"{value:g}", INK, small, anchor="rm")
    for number, load in enumerate(at):
        pen.text((across(number), SCALE * (HEIGHT - BOTTOM + 6)), f"{load:g}", INK, small, anchor="mt")
    pen.text(((start + end) / 2, SCALE * (HEIGHT - 22)), by, INK, small, anchor="mt")
    if knee is not None:
        x = across(knee)
        for y in range(TOP * SCALE, (HEIGHT - BOTTOM) * SCALE, 8 * SCALE):
            pen.line((x, y, x, y + 4 * SCALE), KNEE, SCALE)
        pen.text((x + 4 * SCALE, (HEIGHT - BOTTOM - 16) * SCALE), "knee", KNEE, small)
    name_at = start
    for line, colour in zip(lines, COLOURS, strict=False):
        points = [(across(n), down(v)) for n, v in enumerate(line.values) if v is not None and v > 0]
        pen.line(points, colour, 2 * SCALE, joint="curve")
        for x, y in points:
            pen.ellipse((x - 3 * SCALE, y - 3 * SCALE, x + 3 * SCALE, y + 3 * SCALE), colour)
        pen.text((name_at, 28 * SCALE), line.name, colour, small)
        name_at += pen.textlength(line.name, small) + 14 * SCALE


def _ticks(values: Sequence[float], log: bool) -> list[float]:
    """Round numbers around the values, two of them at least."""
    if log:
        least, most = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return [10.0**power for power in range(least, max(most, least + 1) + 1)]
    step = 10.0 ** math.floor(math.log10(max(values)))
    step *= next(part for part in (0.2, 0.5, 1, 2) if max(values) <= 5 * part * step)
    return [round(step * number, 6) for number in range(math.ceil(max(values) / step) + 1)]
