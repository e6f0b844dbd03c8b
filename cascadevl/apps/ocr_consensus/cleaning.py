"""A scan is cleaned before it is read: shadows and yellow paper become even, and noise is filtered if there is any.

Programs that look for dark ink on white paper read a grey or noisy page badly; a page that was already clean they read
as before. The picture keeps its size, so that places on it stay where they were.
"""

import numpy as np
from PIL import Image, ImageFilter

PAPER, INK = 200.0, 60.0
"""Grey level of cleaned paper, and how far one standard deviation lies from it."""
SPECK = 16
"""Grey levels by which a speck differs from all of its neighbours but one."""
NOISY = 0.005
"""Share of specks from which on a page is filtered; without need a median filter eats the strokes of small letters."""
STRIPS = 8
"""Into which a page is cut, upright, so that lines askew stay apart."""
ROWS = 5
"""That are taken together: lines are higher, grains of noise smaller."""
LOUD = 15.0
"""Grey levels of noise in which a faded line may be lost."""
FAINT, CLEARLY = 0.7, 5.0
"""Grey levels by which the rows of a strip differ where something is written, and that in units of their noise."""


def cleaned(image: Image.Image) -> Image.Image:
    """Grey, ink on even paper."""
    grey = image.convert("L")
    if noise(grey) > NOISY:
        grey = grey.filter(ImageFilter.MedianFilter(3))
    paper = grey.filter(ImageFilter.BoxBlur(max(20, max(grey.size) // 20)))
    ink = np.asarray(grey, dtype=np.float32) - np.asarray(paper, dtype=np.float32)
    scale = INK / max(8.0, float(ink[::2, ::2].std()))
    return Image.fromarray((PAPER + ink * scale).clip(0, 255).astype(np.uint8))


def has_ink(image: Image.Image) -> bool:
    """May something be written? Rows of text are darker than the rows between them by more than noise explains.

    Of a page with much noise nobody can say that it is blank.
    """
    grey = image.convert("L")
    reach = max(20, max(grey.size) // 20)
    paper = grey.filter(ImageFilter.BoxBlur(reach))
    # Along the border the mean of the surroundings is no mean of all sides.
    inside = slice(reach // 2, -(reach // 2)) if grey.height > 4 * reach else slice(None)
    ink = np.asarray(grey, dtype=np.float32)[inside] - np.asarray(paper, dtype=np.float32)[inside]
    for strip in np.array_split(ink, STRIPS, axis=1):
        if strip.shape[0] < ROWS or not strip.shape[1]:
            continue
        rows = np.convolve(strip.mean(1), np.full(ROWS, 1 / ROWS), "valid")
        grain = 1.48 * float(np.median(np.abs(strip)))
        if grain > LOUD or rows.std() > max(FAINT, CLEARLY * grain / (strip.shape[1] * ROWS) ** 0.5):
            return True
    return False


def noise(grey: Image.Image) -> float:
    """The share of pixels that stand alone: brighter or darker than what surrounds them."""
    values = np.asarray(grey, dtype=np.int16)
    second = np.asarray(grey.filter(ImageFilter.RankFilter(3, 7)), dtype=np.int16)
    last_but_one = np.asarray(grey.filter(ImageFilter.RankFilter(3, 1)), dtype=np.int16)
    return float(((values - second > SPECK) | (last_but_one - values > SPECK)).mean())
