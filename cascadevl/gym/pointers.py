"""Where to look for each character of an answer: which visual tokens show it.

The gym printed the characters of the answer, so it knows. Legend: L visual tokens of a tile.
"""

from collections.abc import Sequence

from cascadevl.core.shapes import Grid
from cascadevl.core.task import Glyph


def answer_glyphs(answer: str, glyphs: Sequence[Glyph]) -> list[Glyph | None] | None:
    """The printed glyph of each character, None for white space; None if it stands nowhere or twice."""
    wanted, printed = "".join(answer.split()), "".join(glyph.char for glyph in glyphs)
    if not wanted or printed.count(wanted) != 1:
        return None
    found = iter(glyphs[printed.index(wanted) :])
    return [None if char.isspace() else next(found) for char in answer]


def visual_tokens(glyph: Glyph, size_px: tuple[int, int], grid: Grid, side: int) -> list[int]:
    """Visual tokens that the middle of a glyph lies in, counted over all tiles of the picture.

    `side` is the side of a tile in visual tokens; tiles and their tokens are in reading order.
    """
    (columns, rows), (width, height) = grid, size_px
    _, left, top, right, bottom = glyph
    column = int((left + right) / 2 / width * columns * side)
    inset = (bottom - top) / 4
    first, last = (int(y / height * rows * side) for y in (top + inset, bottom - inset))
    found = []
    for row in range(first, last + 1):
        tile = row // side * columns + column // side
        found.append((tile * side + row % side) * side + column % side)
    return found
