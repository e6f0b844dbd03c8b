"""Dynamic high resolution: a picture becomes a grid of square tiles, and a thumbnail behind them.

InternVL 1.5 (arXiv:2404.16821, §3.3); the rule is that of `dynamic_preprocess` in `chat/train/dataset.py`,
ties included. The whole picture is stretched onto the grid: no padding, and its aspect is not kept.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from cascadevl.core.errors import ConfigError, MediaError
from cascadevl.core.shapes import Grid, num_tiles
from cascadevl.preprocessing.resize import KERNELS

if TYPE_CHECKING:
    import torch

MOST_TILES = 1024
"""More than any released model was trained with by far; a message may name a limit of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """A function from an RGB picture to its grid and its tiles."""

    tile_px: int = 448
    """Side of a tile."""
    min_tiles: int = 1
    """Least columns × rows."""
    max_tiles: int = 12
    """Most columns × rows, the thumbnail not counted."""
    thumbnail: bool = True
    """Append the whole picture as one more tile, unless it is a single tile already."""
    resize: Literal["pil", "torch_uint8"] = "pil"
    """`pil` is exact to the released models; `torch_uint8` may be faster, and is off by at most 2 of 255."""

    def __post_init__(self) -> None:
        if self.tile_px < 1:
            raise ConfigError(f"tile_px is {self.tile_px}: expected a positive number, such as 448.")
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise ConfigError(
                f"min_tiles is {self.min_tiles} and max_tiles {self.max_tiles}: expected 1 ≤ min_tiles ≤ max_tiles."
            )
        if self.max_tiles > MOST_TILES:
            raise ConfigError(f"max_tiles is {self.max_tiles}: expected at most {MOST_TILES}.")
        if self.resize not in KERNELS:
            raise ConfigError(f"resize is {self.resize!r}: expected one of {', '.join(KERNELS)}.")

    def __call__(self, image: Image.Image) -> tuple[Grid, "torch.Tensor"]:
        """What `cut` gives, the tiles as a tensor on the same memory."""
        import torch  # decoders, which call `cut`, never load it

        grid, tiles_SCYX = self.cut(image)
        return grid, torch.from_numpy(tiles_SCYX)

    def cut(self, image: Image.Image) -> tuple[Grid, np.ndarray]:
        """The grid and tiles_SCYX, uint8 and contiguous: row by row, left to right, the thumbnail last."""
        assert image.mode == "RGB", f"open_image gives RGB, this is {image.mode}"
        side = self.tile_px
        columns, rows = grid = self.grid(*image.size)
        stretch = KERNELS[self.resize](image)
        tiles_SCYX = np.empty((num_tiles(grid, self.thumbnail), 3, side, side), np.uint8)
        stretch(tiles_SCYX[: columns * rows].reshape(rows, columns, 3, side, side))
        if len(tiles_SCYX) > columns * rows:
            stretch(tiles_SCYX[-1].reshape(1, 1, 3, side, side))
        return grid, tiles_SCYX

    def grid(self, width_px: int, height_px: int) -> Grid:
        """The (columns, rows) of the nearest aspect; among equals, the last that the area justifies."""
        if width_px < 1 or height_px < 1:
            raise MediaError(f"A picture of {width_px}×{height_px} pixels: expected at least 1×1.")
        aspect, area = width_px / height_px, width_px * height_px
        best, least = (1, 1), math.inf
        for grid, ratio, justified_area in _candidates(self.min_tiles, self.max_tiles, self.tile_px):
            difference = abs(aspect - ratio)
            if difference < least or (difference == least and area > justified_area):
                best, least = grid, difference
        return best


@dataclass(frozen=True, slots=True)
class Tiled:
    """A picture, or the frames of a video, cut up already: the source of a medium that another process has opened."""

    sizes: list[tuple[int, int]]
    """(width, height) in pixels of each, upright."""
    grids: list[Grid]
    tiles_SCYX: np.ndarray
    """All tiles of all of them, uint8."""
    is_video: bool

    def tiles(self) -> Iterator[np.ndarray]:
        """Piece by piece, as a processor takes them."""
        yield self.tiles_SCYX


@functools.cache
def _candidates(min_tiles: int, max_tiles: int, tile_px: int) -> tuple[tuple[Grid, float, float], ...]:
    """Each grid with its aspect and with half the area of its canvas, in order of the number of tiles.

    The released code leaves the order of equal numbers to a set. With min_tiles = 1, as in every release, no
    size depends on it; otherwise some do (1000×1600 in exactly four tiles): here fewer columns come first.
    """
    grids = [(columns, rows) for columns in range(1, max_tiles + 1) for rows in range(1, max_tiles // columns + 1)]
    grids = [grid for grid in grids if min_tiles <= grid[0] * grid[1]]
    grids.sort(key=lambda grid: grid[0] * grid[1])
    return tuple((grid, grid[0] / grid[1], 0.5 * tile_px**2 * grid[0] * grid[1]) for grid in grids)
