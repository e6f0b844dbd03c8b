"""Where to look for each character of an answer: which visual tokens show it.

The gym printed the characters of the answer, so it knows. Legend: L visual tokens of a tile.
"""

import math
from collections.abc import Sequence

from cascadevl.core.shapes import Grid, num_tiles
from cascadevl.core.task import Glyph, Shown

NUMBERS = frozenset("0123456789.,")


def answer_tokens(
    answer: str,
    shown: Sequence[Shown],
    sizes: Sequence[tuple[int, int]],
    grids: Sequence[Grid],
    side: int,
    thumbnail: bool,
) -> list[list[int]]:
    """Visual tokens that show each character, counted over all tiles of all pictures.

    None for a character that nobody printed, and for every one of an answer that stands nowhere or twice.
    """
    places = [answer_glyphs(answer, picture.glyphs) for picture in shown]
    tokens: list[list[int]] = [[] for _ in answer]
    if sum(place is not None for place in places) != 1:
        return tokens
    start = 0
    for place, size, grid in zip(places, sizes, grids, strict=True):
        if place is not None:
            tokens = [[start + at for at in visual_tokens(glyph, size, grid, side)] if glyph else [] for glyph in place]
        start += num_tiles(grid, thumbnail) * side * side
    return tokens


def answer_glyphs(answer: str, glyphs: Sequence[Glyph]) -> list[Glyph | None] | None:
    """The printed glyph of each character, None for white space; None if it stands nowhere or twice.

    A count is found in no longer number: "3" does not stand in "1,234".
    """
    wanted, printed = "".join(answer.split()), "".join(glyph.char for glyph in glyphs)
    if not wanted or printed.count(wanted) != 1:
        return None
    first = printed.index(wanted)
    past = first + len(wanted)
    if (first and _one_number(*glyphs[first - 1 : first + 1])) or _one_number(*glyphs[past - 1 : past + 1]):
        return None
    found = iter(glyphs[first:])
    return [None if char.isspace() else next(found) for char in answer]


def _one_number(left: Glyph, right: Glyph | None = None) -> bool:
    """Whether two digits, printed one after the other, stand side by side."""
    if right is None or not NUMBERS.issuperset((left.char, right.char)):
        return False
    return left.top == right.top and abs(right.left - left.right) < 1.0


def visual_tokens(glyph: Glyph, size_px: tuple[int, int], grid: Grid, side: int) -> list[int]:
    """Visual tokens that the middle of a glyph lies in, counted over all tiles of the picture.

    `side` is the side of a tile in visual tokens; tiles and their tokens are in reading order.
    """
    (columns, rows), (width, height) = grid, size_px
    _, left, top, right, bottom = glyph
    column = int((left + right) / 2 / width * columns * side)
    inset = (bottom - top) / 4
    first, last = (int(y / height * rows * side) for y in (top + inset, bottom - inset))
    return [_token(row, column, columns, side) for row in range(first, last + 1)]


def covered(place: Glyph, size_px: tuple[int, int], grid: Grid, side: int) -> list[int]:
    """Visual tokens whose middle lies inside a place, or the one in its middle; counted as `visual_tokens` does."""
    (columns, rows), (width, height) = grid, size_px
    _, left, top, right, bottom = place

    def cells(first: float, last: float, length: int, num: int) -> range:
        inside = range(math.ceil(first / length * num - 0.5), math.ceil(last / length * num - 0.5))
        return inside or range(middle := min(num - 1, int((first + last) / 2 / length * num)), middle + 1)

    across, down = cells(left, right, width, columns * side), cells(top, bottom, height, rows * side)
    return [_token(row, column, columns, side) for row in down for column in across]


def box_edges(place: Glyph, size_px: tuple[int, int], grid: Grid, side: int, thumbnail: bool) -> list[list[int]]:
    """Visual tokens along the left, upper, right and lower edge of a place: in the thumbnail where there is one.

    There, as in a picture of one tile, a token's place is a share of the picture, as the numbers of a box are.
    """
    _, left, top, right, bottom = place
    upper, lower = (left, top, right, top), (left, bottom, right, bottom)
    sides = ((left, top, left, bottom), upper, (right, top, right, bottom), lower)
    tiles = grid[0] * grid[1]
    start, shown = (tiles * side * side, (1, 1)) if num_tiles(grid, thumbnail) > tiles else (0, grid)
    return [[start + at for at in covered(Glyph("", *line), size_px, shown, side)] for line in sides]


def _token(row: int, column: int, columns: int, side: int) -> int:
    tile = row // side * columns + column // side
    return (tile * side + row % side) * side + column % side
