"""Tiny random members of every family, as folders, beside transformers' reading of the same folder.

Every parameter is random, scales and biases too: a swapped norm or LayerScale would pass unseen among ones.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration
from transformers.utils import logging

from cascadevl.api import Bundle
from cascadevl.checkpoints.save import save_parts
from cascadevl.checkpoints.tiny import TINY_DECODERS, TINY_VISION, assemble
from cascadevl.core.config import evolve
from cascadevl.preprocessing.processor import ModelInputs
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.tokenizer import train_tokenizer

logging.disable_progress_bar()
logging.set_verbosity_error()


class Member(NamedTuple):
    """A folder and what its model is in memory, before saving."""

    folder: Path
    bundle: Bundle


MakeMember = Callable[..., Member]


def scramble(model: nn.Module, std: float, seed: int = 1) -> None:
    """Random biases of size `std`, scales between ½ and 1½."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                noise = torch.rand(p.shape, generator=generator) - 0.5
                p.copy_(noise * 2 * std if name.endswith("bias") else 1 + noise)


@pytest.fixture(scope="session")
def make_member(tmp_path_factory: pytest.TempPathFactory) -> MakeMember:
    made: dict[Any, Member] = {}

    def make(
        family: str = "qwen3",
        *,
        std: float = 0.2,
        layout: str = "hf",
        vision: Mapping[str, Any] | None = None,
        max_shard_bytes: int = 5_000_000_000,
        **decoder: Any,
    ) -> Member:
        key = (family, std, layout, tuple((vision or {}).items()), max_shard_bytes, tuple(decoder.items()))
        if key not in made:
            parts = assemble(
                f"tiny-{family}",
                evolve(TINY_VISION, **(vision or {})),
                evolve(TINY_DECODERS[family], **decoder),
                train_tokenizer([], 256),
                Spec(max_tiles=6),
                seed=0,
                std=std,
            )
            scramble(parts.model, std)
            folder = tmp_path_factory.mktemp("member") / "model"
            save_parts(parts, folder, layout=layout, max_shard_bytes=max_shard_bytes)
            made[key] = Member(folder, Bundle(parts))
        return made[key]

    return make


@pytest.fixture(scope="session")
def read_oracle() -> Callable[[Path], InternVLForConditionalGeneration]:
    """transformers' model of a folder; every tensor must be known to both sides."""
    read: dict[Path, InternVLForConditionalGeneration] = {}

    def oracle(folder: Path) -> InternVLForConditionalGeneration:
        if folder not in read:
            loaded: Any = InternVLForConditionalGeneration.from_pretrained(
                folder, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
            )
            model, report = loaded
            assert not any(report.values()), report
            read[folder] = model.eval()
        return read[folder]

    return oracle


def _inputs(inputs: ModelInputs, spec: Spec) -> dict[str, Tensor]:
    """What transformers is given: the same ids, and tiles that are normalised in the open."""
    given = {"input_ids": inputs.token_ids[None], "attention_mask": torch.ones_like(inputs.token_ids)[None]}
    if len(inputs.tiles):
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
        given["pixel_values"] = (inputs.tiles.float() / 255 - mean) / std
    return given


@pytest.fixture(scope="session")
def oracle_inputs() -> Callable[[ModelInputs, Spec], dict[str, Tensor]]:
    return _inputs


@pytest.fixture(scope="session")
def oracle_logits() -> Callable[[InternVLForConditionalGeneration, ModelInputs, Spec], Tensor]:
    """(T, V) by transformers."""

    @torch.inference_mode()
    def logits(model: InternVLForConditionalGeneration, inputs: ModelInputs, spec: Spec) -> Tensor:
        return model(**_inputs(inputs, spec)).logits[0]

    return logits


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "text alone": [{"role": "user", "content": "What is the total?"}],
    "one picture": [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture(57, 100)}, {"type": "text", "text": "What is this?"}],
        }
    ],
    "several pictures of odd sizes": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture(301, 77, 1)},
                {"type": "text", "text": "and"},
                {"type": "image", "image": picture(56, 56, 2)},
                {"type": "text", "text": "are what?"},
            ],
        },
        {"role": "assistant", "content": "Noise."},
        {
            "role": "user",
            "content": [{"type": "image", "image": picture(1, 9, 3)}, {"type": "text", "text": "And this?"}],
        },
    ],
}


@pytest.fixture(params=CONVERSATIONS)
def conversation(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return CONVERSATIONS[request.param]


@pytest.fixture
def one_picture() -> list[dict[str, Any]]:
    return CONVERSATIONS["one picture"]


@pytest.fixture
def several_pictures() -> list[dict[str, Any]]:
    return CONVERSATIONS["several pictures of odd sizes"]
