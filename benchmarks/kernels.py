"""How fast are linear layers with weights of few bits, against F.linear in fp32 and torch's own int8?

    taskset -c 0 python benchmarks/kernels.py --json benchmarks/results/kernels.json

One thread, the contenders in turn, medians of processor time: on a machine that others use too, a clock on the wall
mostly measures them. With `--flags=-mno-avx512f` our kernels do with AVX2, and with ATEN_CPU_CAPABILITY=avx2 and
MKL_ENABLE_INSTRUCTIONS=AVX2 set F.linear does too; torch's int8 goes on using what the processor has.
"""

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascadevl.ops.formats import FORMATS
from cascadevl.ops.native import linear as native
from cascadevl.ops.quantize import linear, quantize

DECODE = [1, 4, 8, 512]

SHAPES: dict[str, list[tuple[int, int, list[int]]]] = {
    "SmolLM2-135M": [(576, 576, DECODE), (1536, 576, DECODE), (576, 1536, DECODE), (49_152, 576, [1, 8])],
    "square": [(2048, 2048, DECODE), (4096, 4096, DECODE)],
    "InternViT-300M": [(3072, 1024, [1025]), (4096, 1024, [1025]), (1024, 4096, [1025])],
}
"""Outputs, inputs, numbers of rows."""

NAMES = ["int8", "int4-g32", "int4-g64", "int4-g64-zeros", "mxfp4", "fp8"]

STEP_S = 0.004
"""A measurement repeats its call for about so long."""


def contenders(outputs: int, width: int, library: native.Library) -> dict[str, tuple[Callable[[Tensor], Tensor], int]]:
    """What is called, and the bytes of its weight."""
    weight_FD = torch.randn(outputs, width) / width**0.5
    calls: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
        "F.linear fp32": (lambda x: F.linear(x, weight_FD), weight_FD.nbytes),
        "quantized.linear_dynamic": (their_int8(weight_FD), weight_FD.numel()),
    }
    for name in NAMES:
        quantized = quantize(weight_FD, FORMATS[name])
        packed = native.pack(quantized, None, library)
        calls[name] = (lambda x, packed=packed: native.linear(x, packed), quantized.num_bytes)
    fp8 = quantize(weight_FD, FORMATS["fp8"])
    calls["fp8, dequantised"] = (lambda x: linear(x, fp8), fp8.num_bytes)
    return calls


def their_int8(weight_FD: Tensor) -> Callable[[Tensor], Tensor]:
    layer = nn.Linear(weight_FD.shape[1], weight_FD.shape[0], bias=False)
    layer.weight = nn.Parameter(weight_FD, requires_grad=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and still the best that torch has
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear}, torch.qint8)


def applied(calls: dict[str, tuple[Callable[[Tensor], Tensor], int]], x: Tensor) -> dict[str, Callable[[], Tensor]]:
    return {name: partial(call, x) for name, (call, _) in calls.items()}


def medians_s(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of processor time for each call; interleaved, the first round not counted."""
    repeats, taken = dict.fromkeys(calls, 1), {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start_s = time.process_time()
            for _ in range(repeats[name]):
                call()
            seconds = (time.process_time() - start_s) / repeats[name]
            if number:
                taken[name].append(seconds)
            else:
                repeats[name] = max(1, int(STEP_S / seconds))
    return {name: statistics.median(times) for name, times in taken.items()}


def machine() -> dict[str, float]:
    """What this core reads and computes at best, as torch sees it."""
    far, near = torch.ones(64 << 20), torch.ones(2 << 20)
    square = torch.randn(1024, 1024)
    seconds = medians_s({"far": far.sum, "near": near.sum, "square": lambda: square @ square}, 7)
    return {
        "read_gb_per_s": far.nbytes / seconds["far"] / 1e9,
        "read_8mib_gb_per_s": near.nbytes / seconds["near"] / 1e9,
        "fp32_gflop_per_s": 2 * 1024**3 / seconds["square"] / 1e9,
    }


def measure(
    outputs: int, width: int, num_rows: list[int], library: native.Library, rounds: int
) -> list[dict[str, Any]]:
    calls = contenders(outputs, width, library)
    found: list[dict[str, Any]] = []
    for rows in num_rows:
        x = torch.randn(rows, width)
        seconds = medians_s(applied(calls, x), rounds)
        for name, taken in seconds.items():
            row = {
                "outputs": outputs,
                "inputs": width,
                "rows": rows,
                "contender": name,
                "us": round(taken * 1e6, 1),
                "times_as_fast": round(seconds["F.linear fp32"] / taken, 2),
                "gop_per_s": round(2 * rows * outputs * width / taken / 1e9, 1),
                "weight_gb_per_s": round(calls[name][1] / taken / 1e9, 2),
            }
            found.append(row)
            size = f"{outputs}×{width}, {rows} rows"
            print(f"{size:24}{name:26}{row['us']:10.1f} µs{row['times_as_fast']:8.2f}×", end="")
            print(f"{row['gop_per_s']:8.1f} GOP/s{row['weight_gb_per_s']:8.2f} GB/s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--flags", action="append", default=[], help="for the compiler, e.g. --flags=-mno-avx512f")
    parser.add_argument("--only", choices=SHAPES, help="one of the models")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    library = native.library(tuple(options.flags))
    if library is None:
        parser.error("linear.c cannot be compiled here.")
    shapes = {options.only: SHAPES[options.only]} if options.only else SHAPES
    with torch.inference_mode():
        result: dict[str, Any] = {
            "question": "linear layers with weights of few bits, against F.linear in fp32",
            "machine": {name: round(value, 1) for name, value in machine().items()},
            "versions": {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()},
            "mkl": os.environ.get("MKL_ENABLE_INSTRUCTIONS", "all"),
            "flags": options.flags,
            "lanes": library.lanes,
            "clock": "processor time of one thread",
            "rounds": options.rounds,
        }
        for part in ("machine", "versions"):
            print(part + ":", ", ".join(f"{key} {value}" for key, value in result[part].items()))
        result["figures"] = [
            figure
            for model in shapes.values()
            for shape in model
            for figure in measure(*shape, library, options.rounds)
        ]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
