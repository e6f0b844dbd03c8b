"""Is `cascadevl estimate` right? Predicted against measured: seconds of prefill and decode, peak memory.

python benchmarks/estimate.py [NAME ...] [--json OUT]
One thread. Measured seconds are those of the process (who else is served is not in them), the best of a few runs and
of their decoded tokens, as the calibration is; medians stand beside them. Memory is the high-water mark of a fresh
process over what it held before the model. Random weights do not change what a model costs; the tower of the larger
ones has the released sizes (300M).
"""

import argparse
import gc
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.tiny import TINY_DECODERS, TINY_VISION, assemble
from cascadevl.cli.estimate import COMPUTED, estimate
from cascadevl.core.config import evolve
from cascadevl.core.messages import Conversation
from cascadevl.engine.simple import DenseCache
from cascadevl.engine.speed import measure
from cascadevl.models.config import DecoderConfig, ExpertsConfig, VisionConfig
from cascadevl.ops.rope import Rope
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.tokenizer import train_tokenizer

NEW_TOKENS = 33
VIT_300M = evolve(TINY_VISION, hidden_size=1024, mlp_size=4096, num_layers=24, num_heads=16, tile_px=448)
VIT_SHALLOW = evolve(VIT_300M, num_layers=6)
DENSE = evolve(
    TINY_DECODERS["qwen3"],
    hidden_size=896,
    mlp_size=4864,
    num_layers=24,
    num_heads=14,
    head_size=64,
    vocab_size=32000,
    rope=Rope(theta=1e6, max_position=8192),
)
SPARSE = evolve(
    DENSE,
    family="qwen3_moe",
    num_layers=12,
    experts=ExpertsConfig(num_experts=32, num_per_token=4, mlp_size=768, normalise=True),
)
Sizes = tuple[VisionConfig, DecoderConfig, int]
"""Tower, decoder, side in pixels of the picture that is asked about."""

MODELS: dict[str, Callable[[], Parts]] = {
    "nano": lambda: load_parts("nano"),
    "300M tower, 24 dense layers": lambda: _random(VIT_300M, DENSE),
    "6 layers of tower, 24 dense layers": lambda: _random(VIT_SHALLOW, DENSE),
    "6 layers of tower, 12 layers of experts": lambda: _random(VIT_SHALLOW, SPARSE),
}
RUNS = [
    ("nano", "fp32", 9),
    ("300M tower, 24 dense layers", "fp32", 1),
    ("300M tower, 24 dense layers", "bf16", 1),
    ("6 layers of tower, 24 dense layers", "fp32", 7),
    ("6 layers of tower, 24 dense layers", "bf16", 7),
    ("6 layers of tower, 12 layers of experts", "fp32", 1),
]
"""Model, precision, tiles of the picture with its thumbnail: 7 make a prompt of nearly 1,900 tokens."""


def _random(vision: VisionConfig, decoder: DecoderConfig) -> Parts:
    return assemble("random", vision, decoder, train_tokenizer([], 256), Spec(max_tiles=8), seed=0, std=0.02)


def memory_bytes(field: str) -> int:
    """VmRSS or VmHWM of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


@torch.inference_mode()
def run_once(parts: Parts, inputs: Any) -> tuple[float, list[float]]:
    """Process seconds until the first token, and of each further one."""
    model, started = parts.model, time.process_time()
    cache, positions_T = DenseCache(model.config.decoder.num_layers), model.positions(inputs.token_ids)
    embed_TD = model.embed(inputs.token_ids, inputs.tiles)
    hidden_TD = model.language_model(embed_TD, positions_T, cache)
    token = model.language_model.logits(hidden_TD[-1:]).argmax(-1)
    ends = [time.process_time()]
    for step in range(NEW_TOKENS - 1):
        position = torch.tensor([float(len(inputs.token_ids) + step)])
        hidden_TD = model.language_model(model.language_model.embed(token), position, cache)
        token = model.language_model.logits(hidden_TD).argmax(-1)
        ends.append(time.process_time())
    return ends[0] - started, [end - start for start, end in itertools.pairwise(ends)]


def compare(name: str, precision: str, tiles: int) -> dict[str, Any]:
    """One model in this process."""
    dtype = getattr(torch, COMPUTED[precision])
    speed = measure(dtype)
    before = memory_bytes("VmRSS")
    parts = MODELS[name]()
    parts.model.to(dtype)
    gc.collect()
    columns = max(1, (tiles - 1) // 2)
    side = parts.spec.tile_px
    picture = Image.linear_gradient("L").resize((columns * side, (2 if tiles > 1 else 1) * side)).convert("RGB")
    inputs = parts.processor(Conversation.ask("Read the text.", [picture]), max_tiles=max(1, tiles - 1))
    assert len(inputs.tiles) == tiles
    told = estimate(parts.model.config, parts.spec, inputs, NEW_TOKENS, {precision: speed})
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    runs = [run_once(parts, inputs)]
    peak = memory_bytes("VmHWM") - before
    while len(runs) < 3 or sum(first_s for first_s, _ in runs) < 2:
        runs.append(run_once(parts, inputs))
    firsts_s, each_s = [first_s for first_s, _ in runs], [step_s for _, steps_s in runs for step_s in steps_s]
    predicted = told["seconds"][precision]
    pairs = {
        "first_token_s": (predicted["answer"] - predicted["decode"], min(firsts_s), statistics.median(firsts_s)),
        "decode_per_token_s": (predicted["decode_per_token"], min(each_s), statistics.median(each_s)),
        "peak_mb": (told["memory_bytes"][precision]["peak"] / 1e6, peak / 1e6, peak / 1e6),
    }
    found: dict[str, Any] = {"prompt_tokens": told["prompt"]["tokens"]}
    for what, (expected, best, median) in pairs.items():
        found[what] = {"predicted": expected, "measured": best, "median": median, "ratio": round(expected / best, 3)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, help="which of the runs; all if none is named")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", action="store_true", help="one run in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        print(json.dumps(compare(*RUNS[arguments.numbers[0]])))
        return
    # Runs that are not repeated stay as they were.
    results = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    for number in arguments.numbers or range(len(RUNS)):
        command = [sys.executable, __file__, "--one", str(number)]
        told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        name, precision, tiles = RUNS[number]
        results[f"{name}, {tiles} tiles, {precision}"] = told
        print(name, precision, json.dumps(told, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
