"""How close are the logits? A tiny random member of every family against an independent implementation.

python benchmarks/parity.py [--std 0.2] [--json OUT]
fp32, one thread, text and three pictures of odd sizes; every parameter random. transformers reads the folder
where it has the family; InternLM2 and 3 are llamas in its layout, and are also held, packed, against their
formulas (tests/parity/test_internlm2.py).
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import InternVLForConditionalGeneration
from transformers.utils import logging

import cascadevl
from cascadevl.checkpoints.save import save_parts
from cascadevl.checkpoints.tiny import TINY_DECODERS, TINY_VISION, assemble
from cascadevl.core.config import evolve
from cascadevl.core.messages import Conversation
from cascadevl.models.config import DecoderConfig
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.tokenizer import train_tokenizer

SIX_B = {"norm": "rms_norm", "qk_norm": True, "qkv_bias": False}
MEMBERS = [(family, family, {}) for family in TINY_DECODERS] + [("6B tower", "qwen3", SIX_B)]


def scramble(model: nn.Module, std: float) -> None:
    """Random biases of size `std`, scales between ½ and 1½: among ones a swapped norm would pass unseen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                noise = torch.rand(parameter.shape, generator=generator) - 0.5
                parameter.copy_(noise * 2 * std if name.endswith("bias") else 1 + noise)


def member(decoder: DecoderConfig, vision: dict, std: float, folder: Path) -> cascadevl.Bundle:
    tower = evolve(TINY_VISION, **vision)
    parts = assemble("tiny", tower, decoder, train_tokenizer([], 256), Spec(max_tiles=6), seed=0, std=std)
    scramble(parts.model, std)
    save_parts(parts, folder)
    return cascadevl.load(folder)


def conversation() -> Conversation:
    random = np.random.default_rng(0)
    sizes = ((301, 77), (56, 56), (57, 100))
    pictures = [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    return Conversation.ask("What do they show, and how do they differ?", pictures)


@torch.inference_mode()
def compare(bundle: cascadevl.Bundle, folder: Path, asked: Conversation) -> tuple[float, float]:
    """Largest logit and largest difference."""
    _, ours = bundle.logits(asked)
    inputs = bundle.preprocess(asked)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (bundle.spec.mean, bundle.spec.std))
    oracle = InternVLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    pixels = (inputs.tiles.float() / 255 - mean) / std
    theirs = oracle(input_ids=inputs.token_ids[None], pixel_values=pixels).logits[0]
    return float(theirs.abs().max()), float((ours - theirs).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--std", type=float, default=0.2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    results, asked = {}, conversation()
    for name, family, vision in MEMBERS:
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work) / "member"
            largest, difference = compare(member(TINY_DECODERS[family], vision, arguments.std, folder), folder, asked)
        share = difference / largest / (2e-5 / 5)
        results[name] = {"largest_logit": largest, "largest_difference": difference, "share_of_bound": share}
        print(f"{name:10} logits to {largest:.2f}, largest difference {difference:.1e}, {share:.2f} of the bound")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
