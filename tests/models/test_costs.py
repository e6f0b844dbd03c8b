"""Counts against independent counters: torch's FlopCounterMode, tensors in memory, the cache that generation fills."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cascadevl.checkpoints.tiny import TINY_DECODERS, TINY_VISION, tiny_parts
from cascadevl.core.config import evolve
from cascadevl.engine.simple import DenseCache
from cascadevl.models import costs
from cascadevl.models.config import FlashConfig, InternVLConfig
from cascadevl.models.internvl import InternVL, fresh
from cascadevl.ops.native import many_queries

SIX_B = {"norm": "rms_norm", "qk_norm": True, "qkv_bias": False}
TILES, TOKENS = 3, 30


@pytest.fixture
def attended_by_torch(monkeypatch: pytest.MonkeyPatch):
    """As on a GPU, or without a compiler: counters do not see into our C."""
    monkeypatch.setattr(many_queries, "library", lambda: None)


def counted(work: Callable[[], Any]) -> tuple[int, Any]:
    """Floating-point operations by torch's counter, and the result. It sees attention only as plain products."""
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = work()
    return counter.get_total_flops(), result


def read(model: InternVL, num_tokens: int, cache: DenseCache, start: int = 0) -> Tensor:
    embed_TD = torch.randn(num_tokens, model.config.decoder.hidden_size)
    positions_T = torch.arange(start, start + num_tokens, dtype=torch.float32)
    return model.language_model.logits(model.language_model(embed_TD, positions_T, cache)[-1:])


def tiles(model: InternVL, num_tiles: int = TILES) -> Tensor:
    side = model.config.vision.tile_px
    return torch.zeros(num_tiles, 3, side, side, dtype=torch.uint8)


@pytest.mark.usefixtures("attended_by_torch")
@pytest.mark.parametrize("family", TINY_DECODERS)
def test_flops_are_those_of_the_flop_counter(family: str):
    model = tiny_parts(family).model
    config, cache = model.config, DenseCache(model.config.decoder.num_layers)
    tower, patches_SPD = counted(lambda: model.vision_model(tiles(model)))
    projector, _ = counted(lambda: model.project(patches_SPD))
    prefill, _ = counted(lambda: read(model, TOKENS, cache))
    decode, _ = counted(lambda: read(model, 1, cache, TOKENS))
    assert tower == costs.flops(costs.tower_products(config, TILES))
    assert projector == costs.flops(costs.projector_products(config, TILES))
    assert prefill == costs.flops(costs.prefill_products(config.decoder, TOKENS))
    assert decode == costs.flops(costs.decode_products(config.decoder, TOKENS + 1))


def test_half_of_the_scores_are_skipped_where_a_kernel_can_skip_them():
    """Sinks need a softmax of all scores (`ops/attention.py`); all other products are done in full."""
    for family, expected in (("qwen3", 0.5), ("gpt_oss", 1.0)):
        products = costs.prefill_products(TINY_DECODERS[family], TOKENS)
        assert {each.visible for each in products if each.name in costs.ATTENTION} == {expected}
        assert {each.visible for each in products if each.name not in costs.ATTENTION} == {1.0}


@pytest.mark.parametrize("select_layer", [-1, -2, 1])
def test_blocks_behind_the_selected_layer_cost_nothing(select_layer: int):
    config = evolve(tiny_parts("llama").model.config, vision=evolve(TINY_VISION, **SIX_B), select_layer=select_layer)
    model = InternVL(config)
    flops, _ = counted(lambda: model.vision_model(tiles(model), select_layer))
    assert flops == costs.flops(costs.tower_products(config, TILES))


def flash_config(relative: float = 0.5) -> InternVLConfig:
    flash = FlashConfig(enabled=True, relative_threshold=relative, absolute_threshold=0.0)
    return evolve(tiny_parts("qwen3").model.config, flash=flash)


def test_the_router_of_a_flash_model_is_counted():
    model = InternVL(flash_config()).eval().requires_grad_(False)
    patches_SPD = torch.randn(TILES, 16, model.config.vision.hidden_size)
    flops, _ = counted(lambda: model.gate(patches_SPD))
    assert flops == costs.flops(costs.router_products(model.config, TILES))
    assert costs.router_products(model.config, 0) == []
    assert costs.router_products(tiny_parts("qwen3").model.config, TILES) == []


@pytest.mark.parametrize("relative", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("num_tiles", [1, 2, 5, 13])
def test_no_routing_leaves_fewer_tokens_than_least_tokens(relative: float, num_tiles: int):
    model = fresh(flash_config(relative), seed=0, std=0.5).eval()
    per_tile = model.config.visual_tokens_per_tile
    token_ids_T = torch.tensor([1] + [model.config.image_token_id] * num_tiles * per_tile + [2])
    noise = torch.randint(0, 256, tiles(model, num_tiles).shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        left_T, _ = model.embed_prompt(token_ids_T, noise.to(torch.uint8))
    # Probabilities that differ, all above the absolute threshold: the quantile alone decides.
    assert len(left_T) == costs.least_tokens(model.config, len(token_ids_T), num_tiles)


@pytest.mark.parametrize("family", TINY_DECODERS)
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_the_model(family: str, tied: bool):
    model = tiny_parts(family, tied=tied).model
    sizes = costs.parameters(model.config)
    assert sizes.total == sum(p.numel() for p in model.parameters())
    assert sizes.tower == sum(p.numel() for p in model.vision_model.parameters())
    assert sizes.projector == sum(p.numel() for p in model.mlp1.parameters())
    assert sizes.decoder == sum(p.numel() for p in model.language_model.parameters())
    assert sizes.router == 0
    if model.config.decoder.experts is None:
        assert sizes.active == sizes.total


def test_active_parameters_by_hand():
    """8 experts of which 3 answer: 5 of each layer's idle, (2F·D + D·F) each, F = 16, D = 32, 2 layers."""
    sizes = costs.parameters(tiny_parts("qwen3_moe").model.config)
    assert sizes.total - sizes.active == 2 * 5 * (2 * 16 * 32 + 32 * 16)


def test_parameters_of_a_flash_model_name_the_router():
    model = InternVL(flash_config())
    sizes, total = costs.parameters(model.config), sum(p.numel() for p in model.parameters())
    assert sizes.total == total
    assert sizes.router == total - costs.parameters(evolve(model.config, flash=None)).total


@pytest.mark.parametrize("family", TINY_DECODERS)
def test_the_cache_holds_as_many_numbers(family: str):
    model = tiny_parts(family).model
    cache = DenseCache(model.config.decoder.num_layers)
    with torch.inference_mode():
        read(model, TOKENS, cache)
        read(model, 1, cache, TOKENS)
    stored = sum(
        kept[:, :length].numel()
        for side in (cache.keys, cache.values)
        for kept, length in zip(side, cache.lengths, strict=True)
        if kept is not None
    )
    assert stored == costs.cache_numbers(model.config.decoder, TOKENS + 1)


class Alive(TorchDispatchMode):
    """Most bytes of tensors made inside that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage not in self.known and storage not in given:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, num_bytes: int) -> None:
        self.now -= num_bytes


def peak_numbers(work: Callable[[], Any]) -> float:
    """In numbers of four bytes."""
    with torch.inference_mode(), Alive() as alive:
        work()
    return alive.peak / 4


WIDE_MLP, WIDE_STATE = {"hidden_size": 64, "mlp_size": 512}, {"num_kv_heads": 4, "hidden_size": 128}
"""Which part of a layer is the widest, changes: attention, MLP, neither by much."""


def prefill_numbers(model: InternVL, num_tokens: int) -> float:
    """Most that were alive, keys and values that are kept left out."""
    cache = DenseCache(model.config.decoder.num_layers)
    measured = peak_numbers(lambda: read(model, num_tokens, cache))
    pairs = zip(cache.keys, cache.values, strict=True)
    return measured - sum(k.numel() + v.numel() for k, v in pairs if k is not None and v is not None)


@pytest.mark.usefixtures("attended_by_torch")
@pytest.mark.parametrize("changes", [{}, WIDE_MLP, WIDE_STATE])
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "gpt_oss"])
def test_prefill_holds_what_is_told_within_a_twentieth(family: str, changes: dict[str, int]):
    # So many tokens that experts answer one after the other (`CACHE_BYTES` in ops/experts.py).
    model, num_tokens = tiny_parts(family, **changes).model, 1500 if family == "qwen3_moe" else 300
    told = costs.prefill_activations(model.config.decoder, num_tokens)
    assert prefill_numbers(model, num_tokens) == pytest.approx(told, rel=0.05)


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_prefill_attended_in_c_holds_less_than_is_told(family: str):
    model, num_tokens = tiny_parts(family, mlp_size=16).model, 300  # so that attention is the widest
    if many_queries.library() is None:
        pytest.skip("no C compiler here, or it is switched off")
    config = model.config.decoder
    laid_out = 2 * num_tokens * config.head_size  # beside the tensors, by one thread
    told = costs.prefill_activations(config, num_tokens)
    assert prefill_numbers(model, num_tokens) + laid_out < 0.95 * told


@pytest.mark.parametrize("vision", [{}, {"hidden_size": 256, "mlp_size": 1024}, {"hidden_size": 512, "mlp_size": 512}])
def test_the_tower_holds_what_is_told_within_a_twentieth(vision: dict[str, int]):
    config = evolve(tiny_parts("llama").model.config, vision=evolve(TINY_VISION, **vision))
    model = InternVL(config).eval()
    tiles_SCYX = tiles(model, 8)
    measured = peak_numbers(lambda: model.encode_tiles(tiles_SCYX))
    assert measured == pytest.approx(costs.tower_activations(config, 8), rel=0.05)


def test_a_prompt_without_pictures_asks_nothing_of_the_tower():
    config = tiny_parts("llama").model.config
    assert costs.flops(costs.tower_products(config, 0)) == costs.tower_activations(config, 0) == 0
