"""Small batches of every modality, on tiny models."""

import torch
from PIL import Image, ImageDraw

from cascadevl.checkpoints.parts import Parts
from cascadevl.data.batch import Batch, collate


def picture(text: str) -> Image.Image:
    """Black letters on white, 112 × 56."""
    image = Image.new("RGB", (112, 56), "white")
    ImageDraw.Draw(image).text((10, 15), text, fill="black", font_size=28)
    return image


def batch_of(parts: Parts, *words: str, pictures: bool = True) -> Batch:
    """A pack: each word is read from its picture, or repeated from the question."""
    samples = []
    for word in words:
        content: list[dict] = [{"type": "text", "text": "Read." if pictures else f"Say {word}."}]
        if pictures:
            content.insert(0, {"type": "image", "image": picture(word)})
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": word}]
        samples.append(parts.processor(messages))
    return collate(samples, ids=words)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """By name, of those that have one."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
