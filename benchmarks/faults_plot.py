"""Memory of a server over a soak, as a picture. Drawn with Pillow, which is there anyway."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SCALE = 2
"""Pixels of a point."""
WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 30, 44, 44
INK, GRID, BAND = "#222222", "#dddddd", "#e8f1f8"
COLOURS = ("#0072b2", "#d55e00", "#009e73")


def plot(path: Path, pictures: Sequence[int], lines: Mapping[str, Sequence[float]], allowed: float) -> None:
    """MiB after so many pictures, from zero up; the first line in a band of what it may grow and shrink."""
    most = 1.15 * max(max(line) for line in lines.values())
    step = next(step for step in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if most / step <= 8)
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
    pen = ImageDraw.Draw(image)
    small, large = (ImageFont.load_default(size * SCALE) for size in (11, 13))
    start, end = LEFT * SCALE, (WIDTH - RIGHT) * SCALE

    def across(number: float) -> float:
        return start + (end - start) * number / pictures[-1]

    def down(mib: float) -> float:
        return SCALE * (HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * mib / most)

    warm = next(iter(lines.values()))[0]
    pen.rectangle((across(pictures[0]), down(warm * (1 + allowed)), end, down(warm * (1 - allowed))), BAND)
    for mib in range(0, int(most) + 1, step):
        pen.line((start, down(mib), end, down(mib)), GRID, SCALE)
        pen.text((start - 6 * SCALE, down(mib)), str(mib), INK, small, anchor="rm")
    for tenth in range(0, 11, 2):
        number = pictures[-1] * tenth // 10
        pen.text((across(number), SCALE * (HEIGHT - BOTTOM + 6)), f"{number:,}", INK, small, anchor="mt")
    pen.text(((start + end) / 2, SCALE * (HEIGHT - 18)), "distinct pictures", INK, small, anchor="mt")
    pen.text((start, 4 * SCALE), f"resident MiB; the band is ±{allowed:.0%} after the warm-up", INK, large)
    name_at: float = start
    for (name, line), colour in zip(lines.items(), COLOURS, strict=False):
        pen.line([(across(n), down(mib)) for n, mib in zip(pictures, line, strict=True)], colour, 2 * SCALE)
        pen.text((name_at, 24 * SCALE), name, colour, small)
        name_at += pen.textlength(name, small) + 14 * SCALE
    image.save(path, "PNG")
