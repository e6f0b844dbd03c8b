"""What does the loss cost in time and memory, with all scores at once and in chunks?

    python benchmarks/chunked_loss.py --json benchmarks/results/chunked_loss.json

A decoder of 6 layers and 384 dimensions, one thread, fp32, heads of several vocabularies; every token is supervised,
which is the hardest case. A step is forward and backward. Three ways: all scores at once (`F.cross_entropy`), ours
with gradients formed in the forward pass, ours with scores computed again in the backward pass. Interleaved; medians
in seconds of the processor, and of the ratio between neighbours. Memory is the peak of a fresh process above what it
held before the step; the gradient of the head, as large as the head itself, is part of it in every way.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cascadevl.checkpoints.tiny import TINY_DECODERS
from cascadevl.core.config import evolve
from cascadevl.models.decoder import Decoder
from cascadevl.ops.attention import packed
from cascadevl.ops.logprobs import cross_entropy, token_logprobs

VOCABULARIES = (8_000, 32_000, 151_936)
TOKENS = 512


def dense(decoder: Decoder, hidden_TD: Tensor, targets_T: Tensor) -> Tensor:
    return F.cross_entropy(decoder.logits(hidden_TD), targets_T)


def chunked(decoder: Decoder, hidden_TD: Tensor, targets_T: Tensor) -> Tensor:
    assert decoder.lm_head is not None
    weights_T = torch.full((len(targets_T),), 1 / len(targets_T))
    return cross_entropy(hidden_TD, decoder.lm_head.weight, targets_T, weights_T)[0]


def recomputed(decoder: Decoder, hidden_TD: Tensor, targets_T: Tensor) -> Tensor:
    return -token_logprobs(decoder.logits, hidden_TD, targets_T).logprobs_T.mean()


WAYS: dict[str, Callable[[Decoder, Tensor, Tensor], Tensor]] = {
    "dense": dense,
    "chunked": chunked,
    "recomputed": recomputed,
}


def made(vocabulary: int) -> tuple[Decoder, Tensor, Tensor]:
    """A decoder, embeddings of a packed sequence, and targets."""
    config = evolve(
        TINY_DECODERS["qwen3"],
        vocab_size=vocabulary,
        hidden_size=384,
        mlp_size=1024,
        num_layers=6,
        num_heads=6,
        num_kv_heads=2,
        head_size=64,
    )
    draw = torch.Generator().manual_seed(0)
    decoder = Decoder(config)
    for parameter in decoder.parameters():
        parameter.data.normal_(0, 0.02, generator=draw)
    targets_T = torch.randint(vocabulary, (TOKENS,), generator=draw)
    return decoder, torch.randn(TOKENS, 384, generator=draw), targets_T


def step(way: str, decoder: Decoder, embed_TD: Tensor, targets_T: Tensor) -> float:
    positions_T = torch.arange(256.0).repeat(TOKENS // 256)
    hidden_TD = decoder(embed_TD, positions_T, packed([256] * (TOKENS // 256)))
    loss = WAYS[way](decoder, hidden_TD, targets_T)
    loss.backward()
    return loss.item()


def times_s(vocabulary: int, rounds: int) -> dict[str, Any]:
    """The first round warms up. Gradients are cleared, so that each step makes its own."""
    decoder, embed_TD, targets_T = made(vocabulary)
    measured: dict[str, list[float]] = {name: [] for name in WAYS}
    losses: dict[str, float] = {}
    for number in range(rounds + 1):
        for name in list(WAYS)[:: 1 if number % 2 else -1]:
            decoder.zero_grad()
            started_s = time.process_time()
            losses[name] = step(name, decoder, embed_TD, targets_T)
            if number > 0:
                measured[name].append(time.process_time() - started_s)
    over = {
        name: statistics.median(a / b for a, b in zip(times, measured["dense"], strict=True))
        for name, times in measured.items()
    }
    apart = max(abs(loss - losses["dense"]) for loss in losses.values())
    return {
        "step_s": {name: statistics.median(times) for name, times in measured.items()},
        "over_dense": over,
        "losses_apart": apart,
    }


def peak_mib(way: str, vocabulary: int) -> float:
    command = [sys.executable, __file__, "--peak-of", way, str(vocabulary)]
    # What is freed goes back to the system at once, so that resident memory is what is alive.
    plain = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return float(subprocess.run(command, check=True, capture_output=True, env=plain).stdout)


def print_peak(way: str, vocabulary: int) -> None:
    decoder, embed_TD, targets_T = made(vocabulary)
    for parameter in decoder.parameters():  # what every way needs is there before
        parameter.grad = torch.ones_like(parameter)
    step("recomputed", decoder, embed_TD[:256].repeat(2, 1), targets_T)
    decoder.zero_grad()
    for parameter in decoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = _resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step(way, decoder, embed_TD, targets_T)
    print(_resident_mib("VmHWM") - before)


def _resident_mib(name: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=list(VOCABULARIES))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak_of:
        return print_peak(options.peak_of[0], int(options.peak_of[1]))
    result: dict[str, Any] = {}
    header = f"{'vocabulary':>10} {'way':12}{'step s':>8}{'over dense':>12}{'peak MiB':>10}{'without head':>14}"
    print(f"{TOKENS} tokens\n{header}")
    for vocabulary in options.vocabularies:
        result[str(vocabulary)] = found = times_s(vocabulary, options.rounds)
        found["peak_mib"] = {name: peak_mib(name, vocabulary) for name in WAYS}
        for name in WAYS:
            peak = found["peak_mib"][name]
            row = f"{found['step_s'][name]:8.3f}{found['over_dense'][name]:12.3f}{peak:10.0f}"
            print(f"{vocabulary:10} {name:12}{row}{peak - vocabulary * 384 * 4 / 2**20:14.0f}", flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        result |= {"tokens": TOKENS, "torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
