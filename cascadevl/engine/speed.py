"""How fast the CPU is at what models ask of it: a second of measuring, so that the hours can be told before.

The two rates of the roofline model (Williams et al., doi 10.1145/1498765.1498785) for one type of numbers, the rate
of attention, and what a layer takes however small it is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cascadevl.checkpoints.tiny import TINY_DECODERS
from cascadevl.engine.simple import DenseCache
from cascadevl.models.costs import ATTENTION, Product
from cascadevl.models.decoder import Decoder

TRIALS_S = 0.06
SHORT_S = 0.001
READ_NUMBERS = 2**24
"""More than the caches of most processors hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Of the CPU, with the threads that torch has, for one type of numbers."""

    flops_per_s: float
    """Of products with many rows."""
    attention_flops_per_s: float
    """Of attention where no key is hidden, all its products together."""
    numbers_per_s: float
    """Weights that a product of one row reads: the pace of decoding."""
    layer_s: float
    """What the calls of one layer take besides their arithmetic."""

    def seconds(self, products: list[Product], num_layers: int) -> float:
        """Each product takes as long as its arithmetic or its reading, whichever is longer."""
        taken = num_layers * self.layer_s
        for product in products:
            rate = self.attention_flops_per_s if product.name in ATTENTION else self.flops_per_s
            taken += max(product.flops * product.visible / rate, product.read / self.numbers_per_s)
        return taken


@torch.inference_mode()
def measure(dtype: torch.dtype) -> Speed:
    """The best of short trials, which whatever else the machine does may interrupt, but not all of them."""
    weight, rows = torch.ones(1024, 1024, dtype=dtype), 64
    while True:
        hidden = torch.ones(rows, 1024, dtype=dtype)
        product_s = _best_s(lambda hidden=hidden: F.linear(hidden, weight))
        if product_s > SHORT_S or rows >= 1024:  # with many cores, more rows are needed to employ them
            break
        rows *= 4
    heads = torch.ones(1, 8, 256, 64, dtype=dtype)
    attention_s = _best_s(lambda: F.scaled_dot_product_attention(heads, heads, heads))
    one, large = torch.ones(1, 1024, dtype=dtype), torch.ones(READ_NUMBERS // 1024, 1024, dtype=dtype)
    return Speed(
        flops_per_s=2 * rows * weight.numel() / product_s,
        attention_flops_per_s=4 * 256 * heads.numel() / attention_s,
        numbers_per_s=large.numel() / _best_s(lambda: F.linear(one, large)),
        layer_s=_layer_s(dtype),
    )


def _layer_s(dtype: torch.dtype) -> float:
    """A layer of the smallest decoder, asked for one token."""
    config = TINY_DECODERS["qwen3"]
    decoder = Decoder(config).to(dtype)
    embed_TD, position = torch.ones(1, config.hidden_size, dtype=dtype), torch.zeros(1)
    return _best_s(lambda: decoder(embed_TD, position, DenseCache(config.num_layers))) / config.num_layers


def _best_s(work: Callable[[], object]) -> float:
    # A single thread's own time knows nothing of what else the machine does.
    return best_s(work, time.thread_time if torch.get_num_threads() == 1 else time.perf_counter, TRIALS_S)


def best_s(work: Callable[[], object], clock: Callable[[], float], trials_s: float) -> float:
    """Of one call; the first, which may prepare something, counts only where nothing else has time."""
    trials, ending = list[float](), time.perf_counter() + trials_s
    while not trials or time.perf_counter() < ending:
        started = clock()
        work()
        trials.append(clock() - started)
    return min(trials)
