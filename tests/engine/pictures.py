"""Pictures and questions for tests of the engine."""

from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 60, height: int = 60) -> Image.Image:
    """Noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ask(text: str, *pictures: Image.Image) -> list[dict[str, Any]]:
    """A question about some pictures, as a client sends it."""
    parts = [{"type": "image", "image": image} for image in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
