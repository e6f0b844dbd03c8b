"""Attention over pages for few tokens of many requests: what the kernel serves, and its call. Not yet run on a GPU."""

import torch
from torch import Tensor

from cascadevl.ops.attention import Layer
from cascadevl.ops.kv_formats import Kept, KVFormat
from cascadevl.ops.triton import available, interpreted, launch, num_processors, power_of_two

KINDS: dict[KVFormat, int] = {"float32": 0, "bfloat16": 0, "float16": 0, "fp8": 1, "int8": 2, "int4": 3}
"""How the kernel reads a vector: as it is, FP8's bits, codes of 8 bits, codes of 4."""

TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of queries."""

BLOCK_KEYS = 64
"""Keys of a step."""

LEAST_KEYS = 256
"""Of a split."""

MOST_SPLITS = 32


def serves(q_TNH: Tensor, kept: Kept) -> bool:
    """Can the kernel be asked: queries and pages on one GPU, heads of an even size, and Triton is here."""
    on_gpu = q_TNH.device.type == "cuda" and q_TNH.device == kept.numbers.device
    fits = q_TNH.dtype in TYPES and kept.format in KINDS and q_TNH.shape[-1] % 2 == 0
    return on_gpu and fits and not torch.is_grad_enabled() and available()


def paged_attention(
    layer: Layer,
    q_TNH: Tensor,
    keys_PKSB: Kept,
    values_PKSB: Kept,
    tables_RP: Tensor,
    request_T: Tensor,
    position_T: Tensor,
    *,
    splits: int | None = None,
) -> Tensor:
    """(T, N, H) in q's dtype: each token sees its request up to itself. Tables, requests and positions are int32.

    `splits`: parts into which every context is cut, so that few tokens employ the whole GPU; None: as many as it
    takes. They depend on the number of tokens, never on the length of a context, which only the kernel knows: a
    recorded launch serves contexts of any length.
    """
    from cascadevl.ops.triton.paged_attention_kernel import attend, merge

    q_TNH = q_TNH.contiguous()
    (num_tokens, num_heads, size), num_kv_heads = q_TNH.shape, keys_PKSB.numbers.shape[1]
    assert keys_PKSB.numbers.is_contiguous() and values_PKSB.numbers.is_contiguous()
    if splits is None:
        wanted = -(-2 * num_processors(q_TNH.device) // (num_tokens * num_kv_heads))
        splits = min(wanted, MOST_SPLITS)
    sinks_N = None if layer.sinks_N is None else layer.sinks_N.detach().float().contiguous()
    out_TNH = torch.empty_like(q_TNH)
    parts = out_TNH if splits == 1 else torch.empty(splits, *q_TNH.shape, device=q_TNH.device)
    tops = torch.empty(2, splits, num_tokens, num_heads, device=q_TNH.device)
    width = size // 2 if keys_PKSB.format == "int4" else size
    group = num_heads // num_kv_heads
    launch(
        attend, (num_tokens, num_kv_heads, splits),
        q_TNH, numbers_of(keys_PKSB), keys_PKSB.ranges, numbers_of(values_PKSB), values_PKSB.ranges, tables_RP,
        request_T, position_T, sinks_N, parts, tops[0], tops[1], layer.scale, layer.window or 0, tables_RP.stride(0),
        num_tokens, KIND=KINDS[keys_PKSB.format], PAGE=keys_PKSB.numbers.shape[2], SIZE=size, WIDTH=width,
        NUM_KV_HEADS=num_kv_heads, GROUP=group, BLOCK_G=max(16, power_of_two(group)),
        BLOCK_H=max(16, power_of_two(width)), BLOCK_N=BLOCK_KEYS, LEAST=LEAST_KEYS, SPLITS=splits, WIDE=interpreted(),
        num_warps=4, num_stages=3,
    )  # fmt: skip
    if splits > 1:
        launch(
            merge, (num_tokens, num_heads),
            parts, tops[0], tops[1], out_TNH, num_tokens, splits, SIZE=size, NUM_HEADS=num_heads,
            BLOCK_H=power_of_two(size), BLOCK_SPLITS=power_of_two(splits),
        )  # fmt: skip
    return out_TNH


def numbers_of(kept: Kept) -> Tensor:
    """As the kernels take them: FP8's bits as they are."""
    return kept.numbers.view(torch.uint8) if kept.format == "fp8" else kept.numbers
