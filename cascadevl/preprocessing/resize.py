"""The two ways to stretch a picture onto a grid of tiles: exactly as Pillow does, or nearly so.

The first needs no torch, so that a process which only decodes takes 54 MiB instead of 241.
"""

import ctypes
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from cascadevl.core import native

Stretch = Callable[[np.ndarray], None]
"""Stretches one picture over tiles of (rows, columns, 3, side, side), uint8 and contiguous, which it fills."""

NATIVE_MAX_SIDE_PX = 65_535
"""Longer pictures are Pillow's: the C code takes up to 64 bytes of memory for each column of pixels."""


def pil(image: Image.Image) -> Stretch:
    """The bicubic of the installed Pillow, antialiased: in C where that can be had, else by Pillow itself."""
    resize_into_tiles = None if max(image.size) > NATIVE_MAX_SIDE_PX else native_resize()
    if resize_into_tiles is None:
        return functools.partial(_stretch_by_pillow, image)
    return functools.partial(_stretch_natively, resize_into_tiles, np.asarray(image))


def _stretch_by_pillow(image: Image.Image, tiles: np.ndarray) -> None:
    size = _canvas_size(tiles)
    _cut(np.asarray(image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)), tiles)


def _stretch_natively(resize_into_tiles: Callable[..., int], image_YXC: np.ndarray, tiles: np.ndarray) -> None:
    rows, columns, _, side, _ = tiles.shape
    height, width, _ = image_YXC.shape
    assert tiles.flags.c_contiguous and image_YXC.flags.c_contiguous
    if not resize_into_tiles(tiles.ctypes.data, columns, rows, side, image_YXC.ctypes.data, width, height):
        raise MemoryError(f"No memory to resize {width}×{height} pixels to {columns}×{rows} tiles of {side}.")


@functools.cache
def native_resize() -> Callable[..., int] | None:
    """`resize_into_tiles` of resize.c, once it has given Pillow's pixels; None where there is none.

    Pillow 13 changed the order of its passes, and pixels by some 30 levels; another version may do the like. Hence
    a trial, with one picture for each order.
    """
    library = native.load(Path(__file__).with_suffix(".c"))
    if library is None:
        return None
    resize_into_tiles = library.resize_into_tiles
    resize_into_tiles.argtypes = [ctypes.c_void_p, *[ctypes.c_int] * 3, ctypes.c_void_p, *[ctypes.c_int] * 2]
    for height, width in ((40, 50), (70, 25)):
        noise = np.arange(height * width * 3, dtype=np.uint32) * 2_654_435_761 >> 24
        image_YXC = noise.astype(np.uint8).reshape(height, width, 3)
        tiles, expected = np.empty((2, 2, 2, 3, 16, 16), np.uint8)
        _stretch_natively(resize_into_tiles, image_YXC, tiles)
        _stretch_by_pillow(Image.fromarray(image_YXC), expected)
        if not np.array_equal(tiles, expected):
            logging.getLogger("cascadevl").warning("resize.c and Pillow %s differ: Pillow resizes.", PIL.__version__)
            return None
    return resize_into_tiles


def torch_uint8(image: Image.Image) -> Stretch:
    """Nearly the same: resize_torch.py."""
    from cascadevl.preprocessing.resize_torch import resized  # torch is loaded for whoever wants this one

    image_YXC = np.asarray(image)
    return lambda tiles: _cut(resized(image_YXC, _canvas_size(tiles)), tiles)


KERNELS: dict[str, Callable[[Image.Image], Stretch]] = {"pil": pil, "torch_uint8": torch_uint8}
"""Their names are those of the preprocessing spec."""


def _canvas_size(tiles: np.ndarray) -> tuple[int, int]:
    """Width and height in pixels of all the tiles together."""
    rows, columns, _, side, _ = tiles.shape
    return columns * side, rows * side


def _cut(canvas_YXC: np.ndarray, tiles: np.ndarray) -> None:
    # By numpy: its strided copy of uint8 takes a tenth of the time of torch's.
    rows, columns, _, side, _ = tiles.shape
    tiles[...] = canvas_YXC.reshape(rows, side, columns, side, 3).transpose(0, 2, 4, 1, 3)
