"""Does a released model compute here what it computes in transformers? python examples/verify_release.py MODEL

MODEL is a folder in either layout, an embedded model, or a hub id where a hub can be reached. Both sides get the same
tokens and tiles of one probe and compute in fp32 on the CPU, one after the other: memory for four bytes a parameter,
and, for the chat layout, a disk for the folder that transformers reads, which is made in a temporary place.

Exit codes: 0 agreed, 1 differs, 2 your mistake, or nothing to compare with; the message says which.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cascadevl.checkpoints.convert import convert, fingerprint
from cascadevl.checkpoints.layouts import locate, read_json, recognise
from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.parts import Parts
from cascadevl.core.errors import CheckpointError, MissingExtra, UserError
from cascadevl.core.messages import Conversation
from cascadevl.preprocessing.processor import ModelInputs

AGREED, DIFFERS, MISTAKE = 0, 1, 2

BOUND = 2e-5 / 5
"""Greatest difference over greatest logit: 2e-5 on logits of order 5, what the order of sums alone may change."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    try:
        return verify(parser.parse_args(arguments).model)
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return MISTAKE


def verify(model: str) -> int:
    """Print what is found, line by line."""
    folder = locate(model)
    raw = read_json(folder / "config.json")
    parts = load_parts(model, dtype="stored", device="cpu")
    tell("model", model)
    tell("layout", f"{recognise(raw, folder)} (model_type {raw['model_type']})")
    tell("family", parts.model.config.decoder.family)
    tell("parameters", f"{sum(p.numel() for p in parts.model.parameters()):,} of {parts.model.dtype}")
    tell("spec", parts.spec.hash)
    tell("fingerprint", fingerprint(parts.model))
    inputs = probe(parts)
    tell("probe", f"{len(inputs.token_ids)} tokens, {len(inputs.tiles)} tiles")
    with torch.inference_mode():
        logits_TV = parts.model.float()(inputs.token_ids, inputs.tiles)
    tell("max |logit|", f"{float(logits_TV.abs().max()):.4f}")
    mean_std = torch.tensor(parts.spec.mean), torch.tensor(parts.spec.std)
    del parts  # the other side needs the room

    with tempfile.TemporaryDirectory() as scratch:
        if raw["model_type"] != "internvl":
            try:
                convert(model, Path(scratch) / "hf", "hf")
            except CheckpointError as problem:
                raise CheckpointError(f"not compared: transformers cannot hold this model. {problem}") from problem
            folder = Path(scratch) / "hf"
        theirs_TV = transformers_logits(folder, inputs, *mean_std)
    difference, largest = float((logits_TV - theirs_TV).abs().max()), float(theirs_TV.abs().max())
    tell("max difference", f"{difference:.3g}, {difference / largest:.2g} of the greatest logit; bound {BOUND:.1g}")
    # Written so that a NaN differs.
    agreed = difference <= BOUND * largest
    tell("verdict", "agreed" if agreed else "DIFFERS")
    return AGREED if agreed else DIFFERS


def probe(parts: Parts) -> ModelInputs:
    """Two tiles, a thumbnail, and words."""
    side = parts.spec.tile_px
    picture = Image.linear_gradient("L").resize((2 * side + 7, side)).convert("RGB")
    return parts.processor(Conversation.ask("What is in the picture?", [picture]), max_tiles=2)


@torch.inference_mode()
def transformers_logits(folder: Path, inputs: ModelInputs, mean: Tensor, std: Tensor) -> Tensor:
    """(T, V), of tiles that are normalised in the open."""
    try:
        from transformers import InternVLForConditionalGeneration
        from transformers.utils import logging
    except ImportError as problem:
        raise MissingExtra("transformers is the other side here: pip install 'cascadevl[dev]'.") from problem
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    loaded: Any = InternVLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    model, report = loaded
    if any(report.values()):
        raise CheckpointError(f"not compared: transformers does not read all of {folder}: {report}")
    pixels = (inputs.tiles.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    ids = inputs.token_ids[None]
    return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits[0]


def tell(what: str, value: str) -> None:
    print(f"{what:<15} {value}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
