"""Where lines stand on a page: in which order they are read, how one is cut out, how they are found by their ink.

A line is a quadrangle, since pages are scanned askew. Order: rows from top to bottom, each from left to right; if a
white gutter divides the page into columns of prose, the left one first. A list of amounts behind their labels has
such a gutter too, and is read across: its right side is too narrow to be prose.
"""

import math
import statistics
from collections.abc import Sequence

import numpy as np
from PIL import Image

PixelBox = tuple[float, float, float, float]
"""Left, top, right, bottom."""
Corners = tuple[float, float, float, float, float, float, float, float]
"""x and y of the corners of a line as it is read: top left, top right, bottom right, bottom left."""

NARROW = 5.0
"""Width over height of lines that are too short to be a column of prose."""
FEWEST_ROWS = 3
"""Of a column."""


def corners_of(box: PixelBox) -> Corners:
    left, top, right, bottom = box
    return left, top, right, top, right, bottom, left, bottom


def box_of(corners: Corners) -> PixelBox:
    """The upright box around a line."""
    return min(corners[::2]), min(corners[1::2]), max(corners[::2]), max(corners[1::2])


def slope(lines: Sequence[Corners]) -> float:
    """The angle in radians at which most of the long lines run; downwards is positive."""
    angles = [math.atan2(c[3] - c[1], c[2] - c[0]) for c in lines if c[2] - c[0] > 2 * abs(c[7] - c[1])]
    return statistics.median(angles) if angles else 0.0


def rows(lines: Sequence[Corners]) -> list[list[int]]:
    """Numbers of lines in reading order, those of one row together."""
    angle = slope(lines)
    found: list[list[int]] = []
    boxes = [_upright(line, angle) for line in lines]
    for at in sorted(range(len(boxes)), key=lambda at: boxes[at][1] + boxes[at][3]):
        middle = (boxes[at][1] + boxes[at][3]) / 2
        previous = boxes[found[-1][-1]] if found else None
        if previous and previous[1] < middle < previous[3]:
            found[-1].append(at)
        else:
            found.append([at])
    for row in found:
        row.sort(key=lambda at: boxes[at][0])
    return _columns_apart(found, boxes)


def crop(image: Image.Image, corners: Corners, margin: float = 0.0) -> Image.Image:
    """The line laid straight; `margin` in heights of the line is added on every side."""
    xs, ys = corners[::2], corners[1::2]
    width = math.hypot(xs[1] - xs[0], ys[1] - ys[0])
    height = math.hypot(xs[3] - xs[0], ys[3] - ys[0])
    along = ((xs[1] - xs[0]) / max(width, 1.0), (ys[1] - ys[0]) / max(width, 1.0))
    down = ((xs[3] - xs[0]) / max(height, 1.0), (ys[3] - ys[0]) / max(height, 1.0))
    more = margin * height
    corner: list[float] = []
    for at, (right, below) in ((0, (-1, -1)), (3, (-1, 1)), (2, (1, 1)), (1, (1, -1))):
        corner += [
            xs[at] + more * (right * along[0] + below * down[0]),
            ys[at] + more * (right * along[1] + below * down[1]),
        ]
    size = max(1, round(width + 2 * more)), max(1, round(height + 2 * more))
    if abs(along[1]) < 0.002 and abs(down[0]) < 0.002:
        left, top = round(corner[0]), round(corner[1])
        return image.crop((left, top, left + size[0], top + size[1]))
    return image.transform(size, Image.Transform.QUAD, corner, Image.Resampling.BICUBIC)


def find_lines(image: Image.Image) -> list[Corners]:
    """Lines by their ink alone, for pages that no detector has looked at: one column of dark text, nearly upright."""
    grey = np.asarray(image.convert("L").reduce(max(1, max(image.size) // 2000)), dtype=np.float32)
    scale = image.height / grey.shape[0]
    local = _box_blurred(grey, max(grey.shape) // 24)
    ink = (grey < local - max(12.0, 0.5 * float((local - grey).std() + grey.std()))).astype(np.float32)
    if ink.mean() > 0.5 or not ink.any():
        return []
    angle = max((degrees / 4 for degrees in range(-16, 17)), key=lambda degrees: _sharpness(ink, degrees))
    turn = math.tan(math.radians(angle))
    shift = (turn * (np.arange(ink.shape[1]) - ink.shape[1] / 2)).round().astype(int)
    lines: list[Corners] = []
    sheared = _sheared(ink, shift)
    for top, bottom in _runs(sheared.sum(1) > 0.02 * max(1.0, float(sheared.sum(1).max())), shortest=6):
        across = np.flatnonzero(sheared[top:bottom].sum(0))
        left, right = int(across[0]), int(across[-1]) + 1
        more = 0.15 * (bottom - top)
        at_left, at_right = float(shift[left]), float(shift[right - 1])
        points = (left, top - more + at_left, right, top - more + at_right)
        points += (right, bottom + more + at_right, left, bottom + more + at_left)
        a, b, c, d, e, f, g, h = (point * scale for point in points)
        lines.append((a, b, c, d, e, f, g, h))
    return lines


def _upright(corners: Corners, angle: float) -> PixelBox:
    """The box of a line after the page has been turned back by the angle."""
    cos, sin = math.cos(-angle), math.sin(-angle)
    x, y = sum(corners[::2]) / 4, sum(corners[1::2]) / 4
    width = math.hypot(corners[2] - corners[0], corners[3] - corners[1])
    height = math.hypot(corners[6] - corners[0], corners[7] - corners[1])
    x, y = x * cos - y * sin, x * sin + y * cos
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _columns_apart(found: list[list[int]], boxes: Sequence[PixelBox]) -> list[list[int]]:
    """Rows below a heading whose parts belong to two columns: first all of the left, then all of the right."""
    for first in range(max(0, len(found) - FEWEST_ROWS + 1)):
        below = found[first:]
        gutter = _gutter([at for row in below for at in row], boxes)
        if gutter is None:
            continue
        sides = [
            [part for row in below if (part := [at for at in row if (boxes[at][0] < gutter) == is_left])]
            for is_left in (True, False)
        ]
        if all(_is_prose(side, boxes) for side in sides):
            return found[:first] + _columns_apart(sides[0], boxes) + _columns_apart(sides[1], boxes)
    return found


def _gutter(lines: Sequence[int], boxes: Sequence[PixelBox]) -> float | None:
    """The middle of the widest white strip from top to bottom, if it is as wide as a line is high."""
    spans = sorted((boxes[at][0], boxes[at][2]) for at in lines)
    widest, middle, reached = 0.0, None, spans[0][1]
    for left, right in spans:
        if left - reached > widest:
            widest, middle = left - reached, (left + reached) / 2
        reached = max(reached, right)
    high = statistics.median(boxes[at][3] - boxes[at][1] for at in lines)
    return middle if widest >= 0.8 * high else None


def _is_prose(side: Sequence[Sequence[int]], boxes: Sequence[PixelBox]) -> bool:
    if len(side) < FEWEST_ROWS:
        return False
    widths = [boxes[row[-1]][2] - boxes[row[0]][0] for row in side]
    heights = [boxes[row[0]][3] - boxes[row[0]][1] for row in side]
    return statistics.median(widths) >= NARROW * statistics.median(heights)


def _box_blurred(grey: np.ndarray, radius: int) -> np.ndarray:
    """Mean of the surroundings, by sums over rows and columns."""
    for axis in (0, 1):
        padded = np.concatenate([np.repeat(grey.take([0], axis), radius + 1, axis), grey,
                                 np.repeat(grey.take([-1], axis), radius, axis)], axis)  # fmt: skip
        sums = padded.cumsum(axis, dtype=np.float64)
        size = grey.shape[axis]
        window = np.arange(size)
        grey = ((sums.take(window + 2 * radius + 1, axis) - sums.take(window, axis)) / (2 * radius + 1)).astype(
            np.float32
        )
    return grey


def _sheared(ink: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Every column moved up by its shift."""
    at = np.arange(ink.shape[0])[:, None] + shift[None, :]
    inside = (at >= 0) & (at < ink.shape[0])
    return np.where(inside, np.take_along_axis(ink, at.clip(0, ink.shape[0] - 1), 0), 0.0)


def _sharpness(ink: np.ndarray, degrees: float) -> float:
    """How far rows of ink and rows of paper are apart when the page is turned so."""
    small = ink[:, ::4]
    turn = math.tan(math.radians(degrees)) * 4
    profile = _sheared(small, (turn * (np.arange(small.shape[1]) - small.shape[1] / 2)).round().astype(int)).sum(1)
    return float(np.square(np.diff(profile)).sum())


def _runs(wanted: np.ndarray, shortest: int) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(int)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2) if end - start >= shortest]
