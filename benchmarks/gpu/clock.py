"""Times on a GPU for the benchmarks beside it. Not yet run on a GPU."""

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

COLD_BYTES = 512 << 20
"""Contenders go through so many bytes in turn, more than any cache holds, as the layers of a model do."""


def need_gpu(parser: argparse.ArgumentParser) -> torch.device:
    """Ends the program where there is none."""
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA GPU, and torch sees none here; nothing was measured.")
    return torch.device("cuda")


def machine() -> dict[str, Any]:
    """What ran, and what it reads and writes at best."""
    large = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    copies_s = medians_s({"copy": [lambda: large.clone()]}, 9)["copy"]
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "bytes_per_s": 2 * large.nbytes / copies_s,
    }


def medians_s(ways: dict[str, Sequence[Callable[[], Any]]], rounds: int) -> dict[str, float]:
    """Seconds of a call, for ways that are each several calls with data of their own.

    Recorded as CUDA graphs, so that asking for a launch is not what is measured; interleaved, the first round not
    counted.
    """
    graphs = {name: _recorded(calls) for name, calls in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, graph in graphs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if number:
                taken[name].append(start.elapsed_time(end) / 1000 / len(ways[name]))
    return {name: statistics.median(times) for name, times in taken.items()}


def _recorded(calls: Sequence[Callable[[], Any]]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph
