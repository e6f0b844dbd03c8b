"""How fast is a model served on a GPU, against transformers' batched generate?

    python benchmarks/gpu/serving.py [--requests 32] [--tokens 128] [--rounds 3] [--json OUT]

The shapes of InternVL3.5-1B (InternViT-300M and Qwen3-0.6B) with random weights, bf16, greedy, every answer of the same
length; text alone, and a picture of one tile each. transformers gets its batch ready-made, left-padded; the engine
reads words and pictures. Also with int4 weights and int8 pages, and without recorded steps. Goal: 5 × at batch 32.
Not yet run on a GPU.
"""

import argparse
import dataclasses
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import machine, need_gpu
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.save import save_parts
from cascadevl.checkpoints.tiny import TINY_VISION, assemble
from cascadevl.core.config import evolve
from cascadevl.core.generation import Sampling
from cascadevl.core.messages import Conversation
from cascadevl.engine.config import EngineConfig
from cascadevl.engine.engine import Engine
from cascadevl.models.config import DecoderConfig
from cascadevl.models.quant_linear import quantize_decoder
from cascadevl.ops.formats import FORMATS
from cascadevl.ops.rope import Rope
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.tokenizer import train_tokenizer

WORDS = ["river", "cloud", "table", "seven", "paper", "green", "house", "music", "light", "stone"]

VISION = evolve(TINY_VISION, hidden_size=1024, mlp_size=4096, num_layers=24, num_heads=16, tile_px=448)

DECODER = DecoderConfig(
    family="qwen3", hidden_size=1024, mlp_size=3072, num_layers=28, num_heads=16, num_kv_heads=8, head_size=128,
    vocab_size=151_936, rope=Rope(theta=1e6, max_position=40_960), norm_eps=1e-6, qkv_bias=False, qk_norm=True,
    tied=True,
)  # fmt: skip


def questions(num: int, with_picture: bool) -> list[Conversation]:
    """Each of 16 to 64 words; no two pictures alike."""
    rng, asked = random.Random(0), []
    for number in range(num):
        pixels = np.random.default_rng(number).integers(0, 256, (448, 448, 3), dtype=np.uint8)
        shown = [Image.fromarray(pixels)] if with_picture else []
        asked.append(Conversation.ask(" ".join(rng.choices(WORDS, k=rng.randint(16, 64))), shown))
    return asked


def transformers_batch(folder: Path, parts: Parts, asked: list[Conversation], num_tokens: int) -> Callable[[], Any]:
    """Ready-made inputs on the GPU."""
    from transformers import InternVLForConditionalGeneration

    model: Any = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    model = model.to("cuda")
    inputs = [parts.processor(conversation, max_tiles=1) for conversation in asked]
    prompts = [one.token_ids for one in inputs]
    given = {
        "input_ids": pad_sequence(prompts, batch_first=True, padding_side="left"),
        "attention_mask": pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left"),
    }
    tiles = torch.cat([one.tiles for one in inputs])
    if len(tiles):
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (VISION.pixel_mean, VISION.pixel_std))
        given["pixel_values"] = ((tiles.float() / 255 - mean) / std).bfloat16()
    given = {name: tensor.to("cuda") for name, tensor in given.items()}

    def run() -> Any:
        return model.generate(
            **given, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, pad_token_id=0
        )

    return run


def served(parts: Parts, asked: list[Conversation], num_tokens: int, **settings: Any) -> Callable[[], Any]:
    """An engine that has recorded its steps before, and remembers no prompt and no picture."""
    engine = Engine(parts, EngineConfig(cache_bytes=8_000_000_000, prefix_cache=False, vision_bytes=0, **settings))
    sampling = Sampling(max_new_tokens=num_tokens, loop_guard=False)

    def run() -> Any:
        answers = engine.generate(asked, sampling, max_tiles=1)
        assert all(len(answer.token_ids) == num_tokens for answer in answers)

    return run


def interleaved(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds; the first round, which compiles and records, is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            torch.cuda.synchronize()
            started = time.perf_counter()
            way()
            torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def random_parts() -> Parts:
    """No token ends an answer."""
    files, spec = train_tokenizer([], 256), Spec(max_tiles=1)
    parts = assemble("random-1b", VISION, DECODER, files, spec, seed=0, std=0.02)
    parts.model.to("cuda", torch.bfloat16)
    return dataclasses.replace(parts, stop_ids=())


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/gpu/serving.json"))
    options = parser.parse_args()
    need_gpu(parser)
    parts, few_bits = random_parts(), random_parts()
    quantize_decoder(few_bits.model.language_model, FORMATS["int4-g128"])
    results: dict[str, Any] = {"machine": machine(), "requests": options.requests, "tokens": options.tokens}
    with tempfile.TemporaryDirectory() as folder:
        save_parts(parts, Path(folder) / "model", layout="hf")
        for name, with_picture in (("text", False), ("pictures", True)):
            asked = questions(options.requests, with_picture)
            ways = {
                "transformers": transformers_batch(Path(folder) / "model", parts, asked, options.tokens),
                "engine": served(parts, asked, options.tokens),
                "engine, without graphs": served(parts, asked, options.tokens, graphs=False),
                "engine, int4 weights, int8 pages": served(few_bits, asked, options.tokens, kv_format="int8"),
            }
            seconds = interleaved(ways, options.rounds)
            results[name] = {
                way: {"s": taken, "tokens_per_s": options.requests * options.tokens / taken,
                      "times_transformers": seconds["transformers"] / taken}
                for way, taken in seconds.items()
            }  # fmt: skip
            print(name, json.dumps(results[name], indent=2), flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
