"""Tiny random members of each family, as real folders: what tests and examples run on."""

import math
import os
from pathlib import Path
from typing import Any

from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.save import save_parts
from cascadevl.core.config import evolve
from cascadevl.core.errors import ConfigError
from cascadevl.models.config import DecoderConfig, ExpertsConfig, InternVLConfig, VisionConfig
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
_LLAMA = DecoderConfig(
    family="llama",
    hidden_size=32,
    mlp_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    vocab_size=272,
    rope=Rope(theta=1e4, max_position=2048),
    norm_eps=1e-5,
    qkv_bias=False,
    qk_norm=False,
    tied=False,
)
_QWEN3 = evolve(
    _LLAMA, family="qwen3", head_size=16, qk_norm=True, norm_eps=1e-6, rope=Rope(theta=1e6, max_position=2048)
)
_LONG = Rope(
    theta=1e4,
    kind="longrope",
    factor=16.0,
    max_position=2048,
    trained_position=128,
    attention_factor=math.sqrt(1 + math.log(16) / math.log(128)),
    short_factors=(1.0, 1.1, 1.2, 1.4),
    long_factors=(1.0, 2.0, 6.0, 15.0),
)
_YARN = Rope(
    theta=1.5e5,
    kind="yarn",
    factor=16.0,
    max_position=2048,
    trained_position=128,
    attention_factor=0.1 * math.log(16) + 1,
    truncate=False,
)
TINY_DECODERS = {
    "llama": _LLAMA,
    "internlm2": evolve(_LLAMA, family="internlm2", num_heads=8, head_size=4),
    "internlm3": evolve(
        _LLAMA, family="internlm3", rope=Rope(theta=1e4, kind="dynamic", factor=6.0, max_position=1024)
    ),
    "phi3": evolve(_LLAMA, family="phi3", num_kv_heads=4, rope=_LONG, window=1000),
    "qwen2": evolve(_LLAMA, family="qwen2", qkv_bias=True, norm_eps=1e-6, rope=Rope(theta=1e6, max_position=2048)),
    "qwen3": _QWEN3,
    "qwen3_moe": evolve(
        _QWEN3,
        family="qwen3_moe",
        experts=ExpertsConfig(num_experts=8, num_per_token=3, mlp_size=16, normalise=True),
    ),
    "gpt_oss": evolve(
        _LLAMA,
        family="gpt_oss",
        head_size=16,
        rope=_YARN,
        qkv_bias=True,
        out_bias=True,
        sinks=True,
        window=24,
        full_every=2,
        experts=ExpertsConfig(num_experts=6, num_per_token=2, mlp_size=48, normalise=True, clamp=7.0),
    ),
}
"""The table of families. Where the real one is odd, so is its tiny member: heads that are not the width over
their number (qwen3), scalings that begin within reach, a window that is felt."""


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
        processor=Processor(spec, tokenizer, max_tokens=decoder.rope.longest),
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
