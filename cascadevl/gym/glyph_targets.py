"""Which character stands where, on the patch grid of the tiles: dense supervision for a tower.

The gym printed the text, so it knows every character's place. A patch is asked for the characters
at `COLUMNS` points along its middle row; a narrow letter between two patch centres is thereby not
missed. Legend: S tiles, P patches of a tile (no CLS), K points of a patch.
"""

from collections.abc import Iterable

import numpy as np

from cascadevl.core.shapes import Grid, num_tiles
from cascadevl.core.task import Glyph
from cascadevl.gym.scene import COLOURS, MARKS, SHAPES

ALPHABET = "".join(map(chr, range(33, 127)))
"""Printable ASCII without the space; class i + 1 is ALPHABET[i], class 0 is no character."""

NUM_CLASSES = len(ALPHABET) + 1 + len(COLOURS) + len(SHAPES)
"""Behind the characters stand colours and kinds of shapes."""
COLUMNS = 4
IGNORE = -100
_CLASS = {char: i + 1 for i, char in enumerate(ALPHABET)}
_SHAPE_CLASSES = {
    mark: (
        len(ALPHABET) + 1 + list(COLOURS).index(colour),
        len(ALPHABET) + 1 + len(COLOURS) + SHAPES.index(kind),
    )
    for (colour, kind), mark in MARKS.items()
}


def glyph_targets(
    glyphs: Iterable[Glyph], size_px: tuple[int, int], grid: Grid, tile_px: int, patch_px: int, thumbnail: bool
) -> np.ndarray:
    """(S, P, K) int64 classes; the thumbnail, where letters are too small, is IGNORE."""
    (columns, rows), side = grid, tile_px // patch_px
    width, height = size_px
    points_x, points_y = columns * side * COLUMNS, rows * side
    canvas = np.zeros((points_y, points_x), dtype=np.int64)
    for char, left, top, right, bottom in glyphs:
        # Point n lies at (n + ½) · size / points; a box [a, b) holds the points from ⌈a' - ½⌉ to ⌈b' - ½⌉ - 1.
        x1, x2 = (max(0, int(np.ceil(x * points_x / width - 0.5))) for x in (left, right))
        y1, y2 = (int(np.ceil(y * points_y / height - 0.5)) for y in (top, bottom))
        colour, kind = _SHAPE_CLASSES.get(char, (_CLASS.get(char, IGNORE),) * 2)
        area = canvas[max(y1, 0) : max(y2, 0)]
        # The points of a patch are asked for colour and kind in turn: pairs that no picture shows stay sayable.
        area[:, x1 + x1 % 2 : x2 : 2], area[:, x1 + 1 - x1 % 2 : x2 : 2] = colour, kind
    blocks = canvas.reshape(rows, side, columns, side, COLUMNS).transpose(0, 2, 1, 3, 4)
    targets = blocks.reshape(rows * columns, side * side, COLUMNS)
    if num_tiles(grid, thumbnail) > len(targets):
        targets = np.concatenate([targets, np.full_like(targets[:1], IGNORE)])
    return targets
