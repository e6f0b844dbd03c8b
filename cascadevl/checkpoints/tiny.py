"""Tiny random members of each family, as real folders: what tests and examples run on."""

import os
from pathlib import Path
from typing import Any

from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.save import save_parts
from cascadevl.core.config import evolve
from cascadevl.core.errors import ConfigError
from cascadevl.models.config import DecoderConfig, InternVLConfig, VisionConfig
from cascadevl.models.internvl import InternVL, fresh
from cascadevl.ops.rope import Rope
from cascadevl.preprocessing.processor import Processor
from cascadevl.preprocessing.spec_file import IMAGENET_MEAN, IMAGENET_STD, Spec
from cascadevl.preprocessing.tokenizer import TextTokenizer, train_tokenizer

TINY_VISION = VisionConfig(
    hidden_size=32,
    mlp_size=64,
    num_layers=2,
    num_heads=4,
    tile_px=56,
    patch_px=14,
    qkv_bias=True,
    qk_norm=False,
    norm="layer_norm",
    norm_eps=1e-6,
    drop_path=0.0,
    pixel_mean=IMAGENET_MEAN,
    pixel_std=IMAGENET_STD,
)
TINY_DECODERS = {
    "qwen2": DecoderConfig(
        family="qwen2",
        hidden_size=32,
        mlp_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_size=8,
        vocab_size=272,
        rope=Rope(theta=1e6, max_position=2048),
        norm_eps=1e-6,
        qkv_bias=True,
        qk_norm=False,
        tied=False,
    ),
    "qwen3": DecoderConfig(
        family="qwen3",
        hidden_size=32,
        mlp_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_size=16,
        vocab_size=272,
        rope=Rope(theta=1e6, max_position=2048),
        norm_eps=1e-6,
        qkv_bias=False,
        qk_norm=True,
        tied=False,
    ),
}
"""The table of families; head_size differs from hidden_size / num_heads in qwen3, as in the real one."""


def tiny_parts(family: str, *, seed: int = 0, std: float = 0.02, **decoder_changes: Any) -> Parts:
    """A random member in memory. `std` is the size of its weights; small ones make every epsilon matter."""
    if family not in TINY_DECODERS:
        raise ConfigError(f"No tiny member of {family!r}: expected one of {', '.join(TINY_DECODERS)}.")
    files = train_tokenizer([], 256)
    decoder = evolve(TINY_DECODERS[family], **decoder_changes)
    return assemble(f"tiny-{family}", TINY_VISION, decoder, files, Spec(max_tiles=6), seed=seed, std=std)


def assemble(
    name: str,
    vision: VisionConfig,
    decoder: DecoderConfig,
    tokenizer_files: dict[str, str],
    spec: Spec,
    *,
    seed: int,
    std: float,
) -> Parts:
    """A fresh model with its tokenizer and a spec whose sizes are taken from the model."""
    import json

    tokenizer = TextTokenizer(json.loads(tokenizer_files["tokenizer.json"]), tokenizer_files)
    config = InternVLConfig(
        vision=vision,
        decoder=decoder,
        downsample_ratio=0.5,
        pixel_shuffle="v2",
        select_layer=-1,
        image_token_id=tokenizer.id(spec.image_context),
    )
    spec = evolve(spec, tile_px=vision.tile_px, visual_tokens_per_tile=config.visual_tokens_per_tile)
    model: InternVL = fresh(config, seed=seed, std=std).eval().requires_grad_(False)
    return Parts(
        name=name,
        model=model,
        tokenizer=tokenizer,
        processor=Processor(spec, tokenizer, max_tokens=decoder.rope.max_position),
        spec=spec,
        stop_ids=(tokenizer.id("<|im_end|>"),),
    )


def write_tiny(
    folder: str | os.PathLike[str],
    family: str = "qwen3",
    *,
    layout: str = "hf",
    seed: int = 0,
    std: float = 0.02,
    max_shard_bytes: int = 5_000_000_000,
    **decoder_changes: Any,
) -> Path:
    """A tiny random member as a real folder."""
    parts = tiny_parts(family, seed=seed, std=std, **decoder_changes)
    return save_parts(parts, folder, layout=layout, max_shard_bytes=max_shard_bytes)
