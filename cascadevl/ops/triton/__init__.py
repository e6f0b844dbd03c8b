"""Kernels for GPUs, in Triton (Tillet et al., doi 10.1145/3315508.3329973). Tested under its interpreter on a CPU; no
figure of theirs was measured on a GPU yet.

Each file has a shell that needs torch alone, and a `…_kernel.py` that needs Triton and is imported when a kernel is
called. Triton comes with torch's CUDA builds; without it everything else works.
"""

import functools
import importlib.util
import os

import torch


@functools.cache
def available() -> bool:
    """Can kernels be asked at all."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Kernels are computed by numpy, on tensors of the CPU: for tests. Triton reads the variable when it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def num_processors(device: torch.device) -> int:
    """That share the programs of a launch; 1 where there is no GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def power_of_two(least: int) -> int:
    """The next: sizes of tiles are powers of two."""
    return 1 << (least - 1).bit_length()
