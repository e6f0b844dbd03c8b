"""How much a step computes, how fast this machine could, and how much memory was taken.

MFU (model FLOPs utilisation; PaLM, arXiv 2204.02311, appendix B): the products that the model's formula needs, over
those the device does in the same time in one large product that is measured here. Recomputed ones do not count.
"""

import resource
import time
from collections.abc import Sequence

import torch

from cascadevl.data.batch import IGNORE, Batch
from cascadevl.models.config import InternVLConfig
from cascadevl.models.costs import ATTENTION, Product, flops, prefill_products, projector_products, tower_products
from cascadevl.models.internvl import InternVL


def passes(model: InternVL) -> tuple[int, int, int]:
    """How often the products of tower, projector and decoder are done: forward, for inputs, for weights.

    A part passes gradients on to its inputs where something before it learns; its own weights cost a pass where they
    learn. The small products of a LoRA are not counted.
    """
    parts = (model.vision_model, model.mlp1, model.language_model)
    before, found = False, []
    for part in parts:
        full = any(p.requires_grad for name, p in part.named_parameters() if ".adapters." not in name)
        any_learns = any(p.requires_grad for p in part.parameters())
        # Within a part, gradients pass from its last layer to its first wherever it or one before it learns.
        found.append(1 + (before or any_learns) + full)
        before = before or any_learns
    return found[0], found[1], found[2]


def step_flops(config: InternVLConfig, batches: Sequence[Batch], times: tuple[int, int, int]) -> int:
    """Of all packs. Attention is counted as far as a causal mask leaves it, sample by sample; both sides of its
    products are activations, so that it costs both passes wherever a gradient comes through."""
    tower, projector, decoder = times
    total = 0
    for batch in batches:
        num_tokens, num_tiles = len(batch.token_ids), len(batch.tiles)
        for product in tower_products(config, num_tiles):
            total += _times(product, tower) * product.flops
        total += projector * flops(projector_products(config, num_tiles))
        seen = sum(length**2 for length in batch.lengths) / num_tokens**2
        supervised = int((batch.targets != IGNORE).sum())
        asked = asked_share(config, num_tokens, supervised)
        for product in prefill_products(config.decoder, num_tokens):
            share = product.visible * seen * asked if product.name in ATTENTION else asked
            share = {"head": float(supervised), "k, v": 1.0}.get(product.name, share)
            total += round(_times(product, decoder) * share * product.flops)
    return total


def asked_share(config: InternVLConfig, num_tokens: int, supervised: int) -> float:
    """Of what layers compute for the sake of their own tokens: the last does so for supervised ones alone."""
    layers = config.decoder.num_layers
    if config.decoder.experts is not None or not supervised:
        return 1.0
    return (layers - 1 + supervised / num_tokens) / layers


def _times(product: Product, passes: int) -> int:
    return 3 if product.name in ATTENTION and passes > 1 else passes


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Floating-point operations a second in square products of this type, the best of some trials."""
    size = 4096 if device.type == "cuda" else 512
    left = torch.ones(size, size, device=device, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        wait(device)
        started = time.perf_counter()
        torch.mm(left, left)
        wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """Of the device; on a CPU, of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
