"""A page to draw on, which remembers where every character went.

Lengths are in page units: one unit is one pixel after the official tiling has resized the picture
to whole tiles of 112 px. The picture itself is drawn `scale` times larger, as people's pictures
are, and its proportions may differ from the grid's as far as the tiling still picks that grid.
"""

import io
import random
from dataclasses import dataclass, field, replace
from functools import cache

from PIL import Image, ImageDraw, ImageFilter

from cascadevl.core.task import Glyph
from cascadevl.gym import assets

TILE_PX = 112
MAX_TILES = 6
GRIDS = tuple(
    (columns, rows)
    for columns in range(1, MAX_TILES + 1)
    for rows in range(1, MAX_TILES + 1)
    if columns * rows <= MAX_TILES
)

Colour = tuple[int, int, int]


@cache
def aspect_limits(columns: int, rows: int) -> tuple[float, float]:
    """Between which width/height ratios the tiling picks this grid: halfway to the neighbours."""
    ratios = sorted({across / down for across, down in GRIDS})
    ratios = [ratios[0] * 0.7, *ratios, ratios[-1] * 1.3]
    at = ratios.index(columns / rows)
    return (ratios[at - 1] + ratios[at]) / 2, (ratios[at] + ratios[at + 1]) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Palette:
    """Colours of one page, far enough apart in brightness to be read."""

    paper: Colour
    ink: Colour
    accent: Colour


@dataclass(kw_only=True, slots=True)
class Page:
    """The picture being drawn, its size in page units, and the characters so far."""

    image: Image.Image
    draw: ImageDraw.ImageDraw
    width: float
    height: float
    scale: float
    palette: Palette
    glyphs: list[Glyph] = field(default_factory=list)

    @classmethod
    def blank(cls, rng: random.Random, grid: tuple[int, int], palette: Palette, *, plain: bool) -> "Page":
        """A fresh page for a grid of (columns, rows) tiles; `plain` leaves the paper one colour."""
        columns, rows = grid
        low, high = aspect_limits(columns, rows)
        even = columns / rows
        aspect = even if rng.random() < 0.4 else rng.triangular(low * 1.02, high * 0.98, even)
        # A square picture of more than half of four tiles would become 2x2: a single tile stays small.
        scale = rng.uniform(1.0, 1.2) if grid == (1, 1) else rng.triangular(1.0, 2.5, 1.3)
        width, height = aspect * rows * TILE_PX, float(rows * TILE_PX)
        size_px = round(width * scale), round(height * scale)
        image = Image.new("RGB", size_px, palette.paper) if plain else _paper(rng, size_px, palette.paper)
        return cls(image=image, draw=ImageDraw.Draw(image), width=width, height=height, scale=scale, palette=palette)

    def copy(self) -> "Page":
        """The same paper and what is drawn on it so far, to go on separately."""
        image = self.image.copy()
        return replace(self, image=image, draw=ImageDraw.Draw(image), glyphs=list(self.glyphs))

    def em_px(self, face: str, height: float) -> int:
        """Font size whose "Hg" is at least `height` page units high."""
        return max(8, -int(-height * self.scale // assets.heights_per_em(face)))

    def text_width(self, text: str, face: str, height: float) -> float:
        em_px = self.em_px(face, height)
        return sum(assets.advance_px(face, em_px, char) for char in text) / self.scale

    def text(
        self, left: float, top: float, text: str, *, face: str, height: float, colour: Colour | None = None,
        align: float = 0.0,
    ) -> tuple[int, int, int, int]:  # fmt: skip
        """Prints a line and returns its pixel box; `left` is its middle for align=0.5, its end for 1.0."""
        em_px = self.em_px(face, height)
        font = assets.font(face, em_px)
        above, below = assets.ink_rows_px(face, em_px)
        advances = [assets.advance_px(face, em_px, char) for char in text]
        x, y = round(left * self.scale - align * sum(advances)), round(top * self.scale)
        self.draw.text((x, y - above), text, self.palette.ink if colour is None else colour, font)
        start = x
        for char, advance in zip(text, advances, strict=True):
            if not char.isspace():
                self.glyphs.append(Glyph(char, x, y, x + advance, y + below - above))
            x += advance
        return start, y, round(x), y + below - above

    def box(
        self, left: float, top: float, right: float, bottom: float, *, fill: Colour | None = None,
        outline: Colour | None = None, line: float = 1.0,
    ) -> None:  # fmt: skip
        corners = [round(length * self.scale) for length in (left, top, right, bottom)]
        self.draw.rectangle(corners, fill, outline, max(1, round(line * self.scale)))

    def line(self, points: list[tuple[float, float]], *, colour: Colour, thickness: float = 1.0) -> None:
        scaled = [(round(x * self.scale), round(y * self.scale)) for x, y in points]
        self.draw.line(scaled, colour, max(1, round(thickness * self.scale)))

    def worn(self, rng: random.Random) -> Image.Image:
        """The picture as a camera or a messenger would hand it on: some blurred, grainy or JPEG."""
        image = self.image
        if rng.random() < 0.12:
            image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.6) * self.scale))
        if rng.random() < 0.15:
            grain = Image.frombytes("L", image.size, rng.randbytes(image.width * image.height))
            image = Image.blend(image, grain.convert("RGB"), rng.uniform(0.02, 0.1))
        if rng.random() < 0.2:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=rng.randint(40, 92))
            image = Image.open(buffer)
            image.load()
        return image


def palette(rng: random.Random, *, plain: bool = False) -> Palette:
    """Dark on light in most pages; `plain` pages are nearly black on nearly white."""
    kind = 0.0 if plain else rng.random()
    accent = _shade(rng, 60, 150)
    if kind < 0.55:
        grey, white = rng.choice((0, 0, rng.randint(0, 50))), rng.choice((255, 255, rng.randint(235, 255)))
        return Palette(paper=(white, white, white), ink=(grey, grey, grey), accent=accent)
    if kind < 0.85:
        return Palette(paper=_shade(rng, 205, 250), ink=_shade(rng, 15, 85), accent=accent)
    return Palette(paper=_shade(rng, 10, 80), ink=_shade(rng, 205, 255), accent=_shade(rng, 130, 200))


def accents(rng: random.Random, paper: Colour) -> list[Colour]:
    """Five colours for bars and lines, in random order, that stand out from the paper."""
    colours = [
        (214, 60, 50), (40, 110, 200), (40, 150, 80), (235, 150, 40), (130, 80, 170), (90, 100, 110),
        (20, 160, 170), (250, 200, 60), (240, 130, 170),
    ]  # fmt: skip
    rng.shuffle(colours)
    # Stable: colours that are equally far away keep their random order.
    far = [sum(abs(one - other) for one, other in zip(colour, paper, strict=True)) > 210 for colour in colours]
    return [colour for _, colour in sorted(zip(far, colours, strict=True), key=lambda pair: not pair[0])][:5]


def _shade(rng: random.Random, low: int, high: int) -> Colour:
    """A random colour whose brightness lies between two levels."""
    level = rng.uniform(low, high)
    tint = [rng.uniform(-60, 60) for _ in range(3)]
    shift = level - (0.299 * tint[0] + 0.587 * tint[1] + 0.114 * tint[2])
    red, green, blue = (min(255, max(0, round(part + shift))) for part in tint)
    return red, green, blue


def _paper(rng: random.Random, size_px: tuple[int, int], colour: Colour) -> Image.Image:
    """Paper of one colour, or with soft clouds and gradients."""
    if rng.random() < 0.7:
        return Image.new("RGB", size_px, colour)
    spread = rng.uniform(4, 22)
    cells = rng.choice(((2, 1), (1, 2), (2, 2), (3, 2), (6, 3)))
    small = Image.new("RGB", cells)
    for number in range(cells[0] * cells[1]):
        change = rng.uniform(-spread, spread)
        spot = tuple(min(255, max(0, round(part + change))) for part in colour)
        small.putpixel((number % cells[0], number // cells[0]), spot)
    return small.resize(size_px, Image.Resampling.BILINEAR)
