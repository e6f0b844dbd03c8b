"""Is our model slower than transformers anywhere? Prefill and decode, interleaved, fp32, one thread.

python benchmarks/models.py [FOLDER in the hf layout ...] [--json OUT]
Without a folder: a tiny random Qwen3 member and nano. Both sides get the same token ids and pixels; the
peer runs eager attention and its dynamic cache. Peak memory is each side's own process.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import cascadevl
from cascadevl.checkpoints.layouts import locate
from cascadevl.checkpoints.tiny import write_tiny
from cascadevl.engine.simple import DenseCache

NEW_TOKENS = 64
REPEATS = 9


def inputs_for(bundle: Any) -> tuple[torch.Tensor, torch.Tensor]:
    side = bundle.spec.tile_px
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (2 * side, 3 * side, 3), dtype=np.uint8))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Read the text."}]
    inputs = bundle.preprocess([{"role": "user", "content": content}])
    return inputs.token_ids, inputs.tiles


@torch.inference_mode()
def ours(folder: Path) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    bundle = cascadevl.load(folder, dtype="float32")
    model, (ids, tiles) = bundle.model, inputs_for(bundle)

    @torch.inference_mode()
    def prefill() -> Any:
        cache = DenseCache(model.config.decoder.num_layers)
        hidden = model.language_model(model.embed(ids, tiles), model.positions(ids), cache)
        return cache, model.language_model.logits(hidden[-1:]).argmax(-1)

    @torch.inference_mode()
    def decode(state: Any) -> None:
        cache, token = state
        for step in range(NEW_TOKENS):
            position = torch.tensor([float(len(ids) + step)])
            hidden = model.language_model(model.language_model.embed(token), position, cache)
            token = model.language_model.logits(hidden).argmax(-1)

    return prefill, decode


def theirs(folder: Path) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    from transformers import InternVLForConditionalGeneration

    peer = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    bundle = cascadevl.load(folder, dtype="float32")
    ids, tiles = inputs_for(bundle)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (bundle.spec.mean, bundle.spec.std))
    del bundle

    @torch.inference_mode()
    def prefill() -> Any:
        pixels = (tiles.float() / 255 - mean) / std
        out = peer(input_ids=ids[None], pixel_values=pixels, use_cache=True, logits_to_keep=1)
        return out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)

    @torch.inference_mode()
    def decode(state: Any) -> None:
        cache, token = state
        for _ in range(NEW_TOKENS):
            out = peer(input_ids=token, past_key_values=cache, use_cache=True)
            token = out.logits[:, -1].argmax(-1, keepdim=True)

    return prefill, decode


def measure(folder: Path) -> dict[str, float]:
    sides = {"ours": ours(folder), "theirs": theirs(folder)}
    seconds: dict[str, list[float]] = {f"{side}_{phase}": [] for side in sides for phase in ("prefill", "decode")}
    for repeat in range(REPEATS + 2):
        for side, (prefill, decode) in sides.items():
            started = time.perf_counter()
            state = prefill()
            middle = time.perf_counter()
            decode(state)
            if repeat >= 2:
                seconds[f"{side}_prefill"].append(middle - started)
                seconds[f"{side}_decode"].append((time.perf_counter() - middle) / NEW_TOKENS)
    medians = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    ratios = {phase: medians[f"theirs_{phase}"] / medians[f"ours_{phase}"] for phase in ("prefill", "decode")}
    return {f"{name}_ms": round(value, 3) for name, value in medians.items()} | {
        f"{phase}_speedup": round(ratio, 2) for phase, ratio in ratios.items()
    }


def high_water_kb() -> int:
    """Most memory this process ever held; ru_maxrss would include what its parent held (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def peak_memory(side: str, folder: Path) -> float:
    """MB of a fresh process that loads, prefills and decodes, over one that only imports the same."""
    before = high_water_kb()
    prefill, decode = (ours if side == "ours" else theirs)(folder)
    decode(prefill())
    return (high_water_kb() - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=("ours", "theirs"), help="print the peak memory of one side and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        if arguments.peak == "theirs":
            import transformers.models.internvl.modeling_internvl  # noqa: F401  (imports are not the question)
        print(peak_memory(arguments.peak, arguments.folders[0]))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folders = arguments.folders or [write_tiny(Path(scratch) / "tiny-qwen3"), locate("nano")]
        results = {}
        for folder in folders:
            row = measure(folder)
            for side in ("ours", "theirs"):
                command = [sys.executable, __file__, "--peak", side, str(folder)]
                run = subprocess.run(command, capture_output=True, text=True, check=True)
                row[f"{side}_peak_mb"] = round(float(run.stdout.split()[-1]), 1)
            results[folder.name] = row
            print(folder.name, json.dumps(row, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
