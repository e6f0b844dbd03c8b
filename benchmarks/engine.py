"""Many requests at once: the engine against one by one, and against transformers' batched generate.

python benchmarks/engine.py [--model nano] [--requests 32] [--tokens 128] [--rounds 5] [--json OUT]
fp32, one thread, greedy, every answer of the same length (stop tokens are ignored), interleaved, medians.
Text alone; distinct pictures beside the bound that vision and prefill at measured rates leave; repeated pictures.
"""

import argparse
import dataclasses
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import cascadevl
from cascadevl.checkpoints.layouts import locate
from cascadevl.core.messages import Conversation

WORDS = ["river", "cloud", "table", "seven", "paper", "green", "house", "music", "light", "stone"]


def questions(num: int, pictures: int, repeated: bool, tile_px: int) -> list[Conversation]:
    """Each of 8 to 16 words; pictures of 2×1 tiles, all of them distinct or all the same."""
    rng = random.Random(0)
    asked = []
    for number in range(num):
        noise = np.random.default_rng(0 if repeated else number).integers(
            0, 256, (tile_px, 2 * tile_px, 3), dtype=np.uint8
        )
        shown = [Image.fromarray(noise)] * pictures
        asked.append(Conversation.ask(" ".join(rng.choices(WORDS, k=rng.randint(8, 16))), shown))
    return asked


def timed(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def interleaved(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(timed(way))
    return {name: statistics.median(times) for name, times in seconds.items()}


def transformers_batch(folder: Path, prompts: list[torch.Tensor], num_tokens: int) -> Callable[[], None]:
    """Left-padded, as its users do it; text alone."""
    from transformers import InternVLForConditionalGeneration

    model: Any = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    longest = max(map(len, prompts))
    ids = torch.stack([torch.nn.functional.pad(p, (longest - len(p), 0)) for p in prompts])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(p), (longest - len(p), 0)) for p in prompts])

    @torch.inference_mode()
    def run() -> None:
        model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=num_tokens, min_new_tokens=num_tokens,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = cascadevl.load(arguments.model, dtype="float32")
    bundle = cascadevl.Bundle(dataclasses.replace(loaded.parts, stop_ids=()))
    sampling = cascadevl.Sampling(max_new_tokens=arguments.tokens, loop_guard=False)
    config = cascadevl.EngineConfig(cache_bytes=400_000_000)
    tile_px = bundle.spec.tile_px

    def engine(asked: list[Conversation]) -> list[cascadevl.Generation]:
        return cascadevl.Engine(bundle, config).generate(asked, sampling)

    def one_by_one(asked: list[Conversation]) -> list[cascadevl.Generation]:
        return [bundle.generate(conversation, sampling) for conversation in asked]

    results: dict[str, Any] = {}
    for name, pictures, repeated in (("text", 0, False), ("distinct", 1, False), ("repeated", 1, True)):
        asked = questions(arguments.requests, pictures, repeated, tile_px)
        ways: dict[str, Callable[[], Any]] = {
            "engine": lambda asked=asked: engine(asked),
            "one by one": lambda asked=asked: one_by_one(asked),
        }
        if not pictures:
            prompts = [bundle.preprocess(conversation).token_ids for conversation in asked]
            ways["transformers"] = transformers_batch(locate(arguments.model), prompts, arguments.tokens)
        seconds = interleaved(ways, arguments.rounds)
        results[name] = {f"{way} s": round(value, 3) for way, value in seconds.items()}
        results[name] |= {
            f"times {way}": round(value / seconds["engine"], 2) for way, value in seconds.items() if way != "engine"
        }
        if pictures and not repeated:
            results[name] |= bound(bundle, asked, seconds["engine"], results["text"]["engine s"])
        print(f"{name:9} {results[name]}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


@torch.inference_mode()
def bound(bundle: cascadevl.Bundle, asked: list[Conversation], engine_s: float, text_s: float) -> dict[str, float]:
    """What it would take at least: preparing, the tower in one batch, the prompts as one, and decoding as for text."""
    prepare_s = timed(lambda: [bundle.preprocess(conversation) for conversation in asked])
    inputs = [bundle.preprocess(conversation) for conversation in asked]
    tiles = torch.cat([one.tiles for one in inputs])
    vision_s = timed(lambda: [bundle.model.encode_tiles(part) for part in tiles.split(16)])
    from cascadevl.ops.attention import packed

    ids, lengths = [one.token_ids for one in inputs], [len(one.token_ids) for one in inputs]
    places = torch.cat([torch.arange(n) for n in lengths]).float()
    embed = bundle.model.language_model.embed(torch.cat(ids))
    prefill_s = timed(lambda: bundle.model.language_model(embed, places, packed(lengths)))
    least = prepare_s + vision_s + prefill_s + text_s
    return {"bound s": round(least, 3), "of bound": round(least / engine_s, 3)}


if __name__ == "__main__":
    main()
