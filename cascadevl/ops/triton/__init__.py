"""Kernels for GPUs, in Triton (Tillet et al., doi 10.1145/3315508.3329973). Tested under its interpreter on a CPU; no
figure of theirs was measured on a GPU yet.

Each file has a shell that needs torch alone, and a `…_kernel.py` that needs Triton and is imported when a kernel is
called. Triton comes with torch's CUDA builds; without it everything else works.
"""

import functools
import importlib.util
import logging
import os
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

OPTIONS = {"enable_fp_fusion": True}
"""Of every launch: products and sums may be one operation. Said, because Triton is about to change its own choice."""


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first argument."""
    with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
        kernel[grid](first, *arguments, **constants, **OPTIONS)


@functools.cache
def available() -> bool:
    """Can kernels be asked at all; a GPU without them is slow, and the log says so once."""
    found = importlib.util.find_spec("triton") is not None
    if not found and torch.cuda.is_available():
        logging.getLogger("cascadevl").warning(
            "Triton is not installed: weights of few bits and paged attention are computed in plain torch, which is "
            "many times slower on this GPU. pip install triton"
        )
    return found


def interpreted() -> bool:
    """Kernels are computed by numpy on the CPU, for tests. Triton asks for it once, when it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def num_processors(device: torch.device) -> int:
    """That share the programs of a launch; 1 where there is no GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def power_of_two(least: int) -> int:
    """The next: sizes of tiles are powers of two."""
    return 1 << (least - 1).bit_length()
