"""Pillow's bicubic by torch: the same filter with weights of 16 bits, vectorised where the processor has AVX2.

Apart from the exact way in resize.py because it alone needs torch, which a process that only decodes never loads.
"""

import numpy as np
import torch
import torch.nn.functional as F


def resized(image_YXC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture of (width, height) pixels.

    torch resizes the width first. So did Pillow until 13.0, which begins with the height where that shrinks much
    more (pull request 9549). Rounding in between sets the two orders some 30 levels apart on black-and-white
    noise, so we follow Pillow.
    """
    old_height, old_width, _ = image_YXC.shape
    height_first = 0 < old_height - size[1] > 2 * (old_width - size[0])
    # No copy of what is only read; and in this order of strides torch sees channels last, its quick case.
    pixels_SCYX = torch.from_dlpack(image_YXC)[None].permute(0, 3, 1, 2)
    for width, height in [(old_width, size[1]), size] if height_first else [size]:
        if pixels_SCYX.shape[2:] != (height, width):
            pixels_SCYX = F.interpolate(pixels_SCYX, (height, width), mode="bicubic", antialias=True)
    return pixels_SCYX[0].permute(1, 2, 0).numpy()
