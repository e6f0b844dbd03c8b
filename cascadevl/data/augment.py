"""Random JPEG: pictures are seen through a JPEG of random quality, so that clean data prepare for the web.

InternVL 2.5 (arXiv 2412.05271, §4.2.1): quality 75 to 100, pictures only. As in the released transform, each
tile is compressed by itself, behind resizing.
"""

import io
import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

QUALITIES = range(75, 101)


def random_jpeg(tiles_SCYX: Tensor, chosen_S: Sequence[bool], seed: str) -> Tensor:
    """The same tiles, uint8, those chosen as a JPEG shows them. What is drawn depends on the seed alone."""
    draw = random.Random(seed)
    tiles_SCYX = tiles_SCYX.clone()
    for tile_CYX, chosen in zip(tiles_SCYX, chosen_S, strict=True):
        if chosen:
            tile_CYX.copy_(_through_jpeg(tile_CYX, draw.choice(QUALITIES)))
    return tiles_SCYX


def _through_jpeg(tile_CYX: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(tile_CYX.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
