"""The C kernels as one library: kernels.c and what it includes."""

import ctypes
import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cascadevl.core import native

SOURCE = Path(__file__).with_name("kernels.c")


@dataclass(frozen=True, slots=True)
class Library:
    """kernels.c for one set of instructions."""

    c: ctypes.CDLL
    lanes: int
    """Numbers of a vector, and outputs of a panel."""


@functools.cache
def library(flags: tuple[str, ...] = ()) -> Library | None:
    """None where nothing can be compiled. Flags such as -mno-avx512f choose another machine, for tests.

    It computes on as many threads as torch has at this moment; see `set_threads`.
    """
    loaded = native.load(SOURCE, flags)
    if loaded is None:
        return None
    floats = ctypes.c_void_p
    loaded.linear.argtypes = [floats, floats, ctypes.c_int64, ctypes.c_void_p]
    loaded.paged_attention.argtypes = [floats, floats, *[ctypes.c_void_p] * 4]
    loaded.store_pages.argtypes = [ctypes.c_void_p, ctypes.c_void_p, floats, ctypes.c_int, ctypes.c_int]
    loaded.store_pages.restype = None
    loaded.decode.argtypes = loaded.prefill.argtypes = [ctypes.c_void_p, ctypes.c_void_p, floats, floats, floats]
    loaded.attend_many.argtypes = [floats, floats, floats, floats, ctypes.c_void_p]
    loaded.choose.argtypes = [ctypes.c_void_p, floats, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
    loaded.choose.restype = None
    loaded.use_huge_pages.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    loaded.use_huge_pages.restype = None
    loaded.set_threads(torch.get_num_threads())
    return Library(loaded, loaded.lanes())


def set_threads(num: int) -> None:
    """Compute with so many from now on. Helpers that cost more than they bring are left out for a while by themselves:
    a second core may be busy with something else."""
    loaded = library()
    if loaded is not None:
        loaded.c.set_threads(min(num, os.cpu_count() or 1))


def use_huge_pages(tensors: Iterable[Tensor]) -> None:
    """Keep what is read for every token in large pages of memory; a tensor's address stays the same.

    Not for a cache: it would take a whole page at once wherever it is first touched.
    """
    loaded = library()
    assert loaded is not None
    for tensor in tensors:
        loaded.c.use_huge_pages(tensor.data_ptr(), tensor.nbytes)


def pointer(tensor: Tensor | None) -> int | None:
    """For C; the tensor must outlive the call."""
    return None if tensor is None else tensor.data_ptr()
