"""Attention over pages for single tokens of many requests, in C. Its results have the same bits in any batch.

On a GPU the Triton kernel of ops/triton/ does the same, where Triton is here.
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from cascadevl.core.precision import KVFormat
from cascadevl.ops.attention import Layer
from cascadevl.ops.kv_formats import Kept
from cascadevl.ops.native.library import library, pointer
from cascadevl.ops.triton import paged_attention as gpu

KINDS: dict[KVFormat, int] = {"float32": 0, "bfloat16": 1, "fp8": 2, "int8": 3, "int4": 4}


class CCached(ctypes.Structure):
    """Keys or values of one layer."""

    _fields_ = (("kind", ctypes.c_int32), ("numbers", ctypes.c_void_p), ("ranges", ctypes.c_void_p))

    @classmethod
    def of(cls, kept: Kept) -> "CCached":
        return cls(KINDS[kept.format], pointer(kept.numbers), pointer(kept.ranges))


class CPlaces(ctypes.Structure):
    """`Places` for C."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tables", "request", "position")),
        *((name, ctypes.c_int32) for name in ("num_tokens", "page_size", "max_pages")),
    )


class CHeads(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("num_heads", "num_kv_heads", "head_size", "window")),
        ("scale", ctypes.c_float),
        ("sinks", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tokens of a batch stand. Legend: R requests, P most pages of one; all int32, where the queries are."""

    tables_RP: Tensor
    request_T: Tensor
    position_T: Tensor
    page_size: int

    def part(self, which: slice) -> "Places":
        """Of some neighbouring tokens."""
        return Places(self.tables_RP, self.request_T[which], self.position_T[which], self.page_size)

    def to(self, device: torch.device) -> "Places":
        """The same for a kernel there."""
        if device == self.position_T.device:
            return self
        tables_RP, request_T, position_T = (x.to(device) for x in (self.tables_RP, self.request_T, self.position_T))
        return Places(tables_RP, request_T, position_T, self.page_size)

    def for_c(self) -> CPlaces:
        tensors = (self.tables_RP, self.request_T, self.position_T)
        return CPlaces(*map(pointer, tensors), len(self.request_T), self.page_size, self.tables_RP.shape[1])


def serves(q_TNH: Tensor, keys: Kept) -> bool:
    """Can a kernel be asked: in C, fp32 queries on the CPU, heads of a multiple of 8, and a compiler was here."""
    if q_TNH.device.type == "cuda":
        return gpu.serves(q_TNH, keys)
    size = q_TNH.shape[-1]
    plain = q_TNH.dtype == torch.float32 and q_TNH.device.type == "cpu" and keys.numbers.device.type == "cpu"
    return (
        plain
        and keys.format in KINDS
        and size % (16 if keys.format == "int4" else 8) == 0
        and not torch.is_grad_enabled()
        and library() is not None
    )


def paged_attention(layer: Layer, q_TNH: Tensor, keys_PKSB: Kept, values_PKSB: Kept, places: Places) -> Tensor:
    """(T, N, H): each token sees its request up to itself. Only where `serves`."""
    if q_TNH.device.type == "cuda":
        tensors = places.tables_RP, places.request_T, places.position_T
        return gpu.paged_attention(layer, q_TNH, keys_PKSB, values_PKSB, *tensors)
    loaded = library()
    assert loaded is not None
    q_TNH, out_TNH = q_TNH.contiguous(), torch.empty(q_TNH.shape)
    sinks = layer.sinks_N.detach().float().contiguous() if layer.sinks_N is not None else None
    heads = CHeads(
        q_TNH.shape[1], keys_PKSB.numbers.shape[1], q_TNH.shape[2], layer.window or 0, layer.scale, pointer(sinks)
    )
    structs = heads, places.for_c(), CCached.of(keys_PKSB), CCached.of(values_PKSB)
    done = loaded.c.paged_attention(pointer(out_TNH), pointer(q_TNH), *map(ctypes.byref, structs))
    if not done:
        raise MemoryError(f"No memory for the scores of {len(q_TNH)} tokens.")
    return out_TNH


def store_pages(x_TKH: Tensor, to_PKSB: Kept, places: Places) -> None:
    """Keep the keys or values of tokens in their pages, as `Kept.put` does. In C only."""
    loaded = library()
    assert loaded is not None
    x_TKH = x_TKH.contiguous()
    structs = map(ctypes.byref, (places.for_c(), CCached.of(to_PKSB)))
    loaded.c.store_pages(*structs, pointer(x_TKH), x_TKH.shape[1], x_TKH.shape[2])
