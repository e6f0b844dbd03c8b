"""Are the Triton kernels fast? Weights of few bits against bf16 cuBLAS; paged attention against measured bandwidth.

    python benchmarks/gpu/kernels.py [--rounds 15] [--json benchmarks/results/gpu/kernels.json]

Goals: int4 weights at least 3 × bf16 with 1 to 16 rows and never slower with 512; attention over int8 and int4 pages
at least 80 % of the bandwidth of a copy, measured in the same run. Not yet run on a GPU.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from clock import COLD_BYTES, machine, medians_s, need_gpu

from cascadevl.ops.attention import Layer
from cascadevl.ops.formats import FORMATS
from cascadevl.ops.kv_formats import Kept, KVFormat
from cascadevl.ops.quantize import quantize
from cascadevl.ops.triton import linear as gpu
from cascadevl.ops.triton.paged_attention import paged_attention

SHAPES = [(4096, 4096), (12_288, 4096), (4096, 12_288), (3072, 1024), (1024, 3072)]
"""Outputs and inputs: Qwen3-8B's and Qwen3-0.6B's."""

ROWS = [1, 2, 4, 8, 16, 64, 512]

NAMES = ["int8", "int4-g32", "int4-g128", "int4-g128-zeros", "mxfp4", "fp8"]

CONTEXTS = [(32, 1024), (32, 8192), (1, 65_536)]
"""Requests and tokens of each."""

FORMATS_OF_PAGES: list[KVFormat] = ["bfloat16", "fp8", "int8", "int4"]

HEADS, KV_HEADS, SIZE, PAGE = 32, 8, 128, 16


def linears(outputs: int, width: int, rounds: int) -> list[dict[str, Any]]:
    """For each number of rows, how many times as fast as cuBLAS each format is."""
    weight_FD = torch.randn(outputs, width, device="cuda")
    dense = [weight_FD.bfloat16() for _ in range(_copies(2 * outputs * width))]
    weights: dict[str, list[gpu.Packed]] = {}
    for name in NAMES:
        quantized = quantize(weight_FD, FORMATS[name])
        weights[name] = [gpu.pack(quantized, None) for _ in range(_copies(quantized.num_bytes))]
    found: list[dict[str, Any]] = []
    for rows in ROWS:
        x = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
        ways: dict[str, Sequence[Callable[[], Any]]] = {"bf16": [partial(F.linear, x, w) for w in dense]}
        ways |= {name: [partial(gpu.linear, x, w) for w in packed] for name, packed in weights.items()}
        seconds = medians_s(ways, rounds)
        row: dict[str, Any] = {"outputs": outputs, "inputs": width, "rows": rows, "bf16_us": seconds["bf16"] * 1e6}
        row["times_as_fast"] = {name: seconds["bf16"] / seconds[name] for name in NAMES}
        print(row, flush=True)
        found.append(row)
    return found


def attentions(requests: int, length: int, bytes_per_s: float, rounds: int) -> dict[str, Any]:
    """Of one token of each request: which share of the bandwidth reading its keys and values reaches."""
    pages = -(-length // PAGE)
    tables_RP = torch.randperm(requests * pages, device="cuda").int().view(requests, pages)
    request_T = torch.arange(requests, dtype=torch.int32, device="cuda")
    position_T = torch.full_like(request_T, length - 1)
    q_TNH = torch.randn(requests, HEADS, SIZE, device="cuda", dtype=torch.bfloat16)
    layer, shape = Layer(index=0, scale=SIZE**-0.5), (requests * pages, KV_HEADS, PAGE, SIZE)
    ways, num_bytes = {}, {}
    for format in FORMATS_OF_PAGES:
        kept = Kept.of(torch.randn(shape, device="cuda"), format)
        num_bytes[format] = 2 * kept.num_bytes
        values = [Kept(format, kept.numbers.clone(), None if kept.ranges is None else kept.ranges.clone())]
        values *= _copies(num_bytes[format])
        ways[format] = [
            partial(paged_attention, layer, q_TNH, kept, v, tables_RP, request_T, position_T) for v in values
        ]
    seconds = medians_s(ways, rounds)
    row: dict[str, Any] = {"requests": requests, "tokens": length}
    row["us"] = {format: taken * 1e6 for format, taken in seconds.items()}
    row["share_of_bandwidth"] = {f: num_bytes[f] / taken / bytes_per_s for f, taken in seconds.items()}
    print(row, flush=True)
    return row


def _copies(num_bytes: int) -> int:
    return max(1, COLD_BYTES // num_bytes)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/gpu/kernels.json"))
    options = parser.parse_args()
    need_gpu(parser)
    torch.manual_seed(0)
    result: dict[str, Any] = {"machine": machine(), "rounds": options.rounds}
    result["linear"] = [row for shape in SHAPES for row in linears(*shape, options.rounds)]
    bytes_per_s = result["machine"]["bytes_per_s"]
    result["attention"] = [attentions(*each, bytes_per_s, options.rounds) for each in CONTEXTS]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
