"""The router against its formulas written out, and what follows from its rule."""

import copy

import pytest
import torch
from torch import Tensor, nn

from cascadevl.core.errors import ConfigError, InternalError
from cascadevl.models.config import FlashConfig
from cascadevl.models.router import AttentionPooling, Gating, compressible, shortened

WIDTH = 32


def _random(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    return module.eval().requires_grad_(False)


POOLING, GATING = _random(AttentionPooling(WIDTH)), _random(Gating(WIDTH))
PATCHES = torch.randn(5, 16, WIDTH, generator=torch.Generator().manual_seed(1))


def _linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}weight"].T + weights[f"{name}bias"]


def _normalised(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}weight"] + weights[f"{name}bias"]


def _asked(query_D: Tensor, patches_PD: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """Attention of one query over one tile, head by head."""
    projected = zip(weights[f"{name}in_proj_weight"].chunk(3), weights[f"{name}in_proj_bias"].chunk(3), strict=True)
    q, k, v = (x @ w.T + b for x, (w, b) in zip((query_D, patches_PD, patches_PD), projected, strict=True))
    size = len(query_D) // 16
    heads = []
    for at in range(0, len(query_D), size):
        head = slice(at, at + size)
        share_P = (k[:, head] @ q[head] / size**0.5).exp()
        heads.append(share_P @ v[:, head] / share_P.sum())
    return _linear(torch.cat(heads), weights, f"{name}out_proj.")


def test_pooling_asks_layer_one_once_and_layer_two_three_times() -> None:
    weights = POOLING.state_dict()
    expected = []
    for patches_PD in PATCHES:
        query = weights["query_token"][0]
        for layer in (1, 2, 2, 2):
            query = _normalised(_asked(query, patches_PD, weights, f"attn{layer}."), weights, f"norm{layer}.")
        expected.append(query)
    torch.testing.assert_close(POOLING(PATCHES), torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
@pytest.mark.parametrize("part", ["attn", "norm"])
def test_layers_three_and_four_are_loaded_and_change_nothing(part: str, layer: int) -> None:
    changed = copy.deepcopy(POOLING)
    for parameter in getattr(changed, f"{part}{layer}").parameters():
        parameter.mul_(-1.5)
    assert torch.equal(changed(PATCHES), POOLING(PATCHES)) == (layer > 2)


def test_attention_is_the_torch_module_of_that_name() -> None:
    """The reference above against torch, so that the in-projection is split as in the official files."""
    weights = POOLING.state_dict()
    torch_module = nn.MultiheadAttention(WIDTH, 16, batch_first=True)
    torch_module.load_state_dict(
        {name.removeprefix("attn1."): w for name, w in weights.items() if name.startswith("attn1.")}
    )
    query = weights["query_token"]
    with torch.no_grad():
        expected = torch_module(query[None], PATCHES[:1], PATCHES[:1])[0][0, 0]
    torch.testing.assert_close(_asked(query[0], PATCHES[0], weights, "attn1."), expected, atol=1e-5, rtol=1e-5)


def test_the_gate_adds_four_normalised_branches_and_gives_two_logits() -> None:
    weights, pooled_SD = GATING.state_dict(), POOLING(PATCHES)
    x = pooled_SD
    for number in (1, 2, 3, 4):
        inner = _linear(x, weights, f"block{number}.0.")
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        x = x + _normalised(_linear(inner, weights, f"block{number}.3."), weights, f"block{number}.5.")
    expected = _linear(_normalised(x, weights, "gate.0."), weights, "gate.1.")
    torch.testing.assert_close(GATING(pooled_SD), expected, atol=1e-5, rtol=1e-5)


def test_parameters_bear_the_official_names_and_shapes() -> None:
    pooling = {name: tuple(p.shape) for name, p in POOLING.named_parameters()}
    expected: dict[str, tuple[int, ...]] = {"query_token": (1, 32)}
    for number in (1, 2, 3, 4):
        expected |= {f"attn{number}.in_proj_weight": (96, 32), f"attn{number}.in_proj_bias": (96,)}
        expected |= {f"attn{number}.out_proj.weight": (32, 32), f"attn{number}.out_proj.bias": (32,)}
        expected |= {f"norm{number}.weight": (32,), f"norm{number}.bias": (32,)}
    assert pooling == expected
    gating = {name: tuple(p.shape) for name, p in GATING.named_parameters()}
    expected = {"gate.0.weight": (32,), "gate.0.bias": (32,), "gate.1.weight": (2, 32), "gate.1.bias": (2,)}
    for number in (1, 2, 3, 4):
        expected |= {f"block{number}.0.weight": (128, 32), f"block{number}.0.bias": (128,)}
        expected |= {f"block{number}.3.weight": (32, 128), f"block{number}.3.bias": (32,)}
        expected |= {f"block{number}.5.weight": (32,), f"block{number}.5.bias": (32,)}
    assert gating == expected


def _quantile(values: list[float], share: float) -> float:
    """Linear between the two nearest of the ordered values."""
    ordered, at = sorted(values), share * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


@pytest.mark.parametrize("relative", [0.0, 0.1, 0.37, 0.5, 1.0])
@pytest.mark.parametrize("absolute", [0.0, 0.5, 1.0])
def test_the_rule_is_above_the_quantile_and_at_least_the_threshold(relative: float, absolute: float) -> None:
    generator = torch.Generator().manual_seed(2)
    for num_tiles in (1, 2, 7, 13):
        probabilities_S = torch.rand(num_tiles, generator=generator)
        flash = FlashConfig(enabled=True, relative_threshold=relative, absolute_threshold=absolute)
        values = probabilities_S.tolist()
        bound = _quantile(values, relative)
        assert compressible(probabilities_S, flash).tolist() == [p > bound and p >= absolute for p in values]


def _rule(probabilities: list[float], relative: float, absolute: float) -> list[bool]:
    flash = FlashConfig(enabled=True, relative_threshold=relative, absolute_threshold=absolute)
    return compressible(torch.tensor(probabilities), flash).tolist()


def test_the_quantile_is_strict_and_the_threshold_is_not() -> None:
    assert _rule([0.25, 0.5, 0.75], 0.5, 0.0) == [False, False, True]
    assert _rule([0.25, 0.5, 0.75], 0.5, 0.75) == [False, False, True]
    assert _rule([0.25, 0.5, 0.75], 0.0, 0.5) == [False, True, True]
    assert _rule([0.25, 0.5, 0.75], 0.0, 0.0) == [False, True, True], "the least likely tile is always kept"
    assert _rule([0.25, 0.5, 0.75], 1.0, 0.0) == [False, False, False]


def test_a_tile_alone_or_tiles_all_alike_are_never_compressed() -> None:
    for relative in (0.0, 0.5, 1.0):
        assert _rule([0.99], relative, 0.0) == [False]
        assert _rule([0.75] * 4, relative, 0.0) == [False] * 4


def test_the_route_of_a_tile_depends_on_the_others() -> None:
    assert _rule([0.75, 0.5], 0.5, 0.5) == [True, False]
    assert _rule([0.75, 0.875], 0.5, 0.5) == [False, True]


def test_in_bf16_the_quantile_is_rounded_before_it_is_compared() -> None:
    """0.75 and its bf16 neighbour: nine tenths of the way between them rounds up to the neighbour."""
    low, high = 0.75, 0.75390625
    flash = FlashConfig(enabled=True, relative_threshold=0.9, absolute_threshold=0.0)
    assert compressible(torch.tensor([low, high]), flash).tolist() == [False, True]
    assert compressible(torch.tensor([low, high], dtype=torch.bfloat16), flash).tolist() == [False, False]


def test_thresholds_that_are_missing_or_no_shares_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs absolute_threshold"):
        FlashConfig(enabled=True, relative_threshold=0.5, absolute_threshold=None)
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=f"relative_threshold {bad} is no probability"):
            FlashConfig(enabled=True, relative_threshold=bad, absolute_threshold=0.5)
    off = FlashConfig(enabled=False, relative_threshold=None, absolute_threshold=None)
    with pytest.raises(ConfigError, match="no thresholds to route by"):
        compressible(torch.tensor([0.5]), off)


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="16 heads, which do not divide a tower of width 40"):
        AttentionPooling(40)


def test_a_compressed_tile_keeps_its_first_places_and_the_text_stays() -> None:
    """Two pictures: tiles 0 and 1 lie side by side, tile 2 after some text. 9 is the placeholder."""
    ids = torch.tensor([1, *[9] * 8, 2, 3, *[9] * 4, 4])
    for compress, expected in (
        ([False, False, False], ids.tolist()),
        ([True, False, False], [1, *[9] * 5, 2, 3, *[9] * 4, 4]),
        ([False, True, True], [1, *[9] * 5, 2, 3, 9, 4]),
        ([True, True, True], [1, 9, 9, 2, 3, 9, 4]),
    ):
        assert shortened(ids, ids == 9, torch.tensor(compress), 4, 1).tolist() == expected
    marked = torch.arange(len(ids))
    kept = shortened(marked, ids == 9, torch.tensor([False, True, False]), 4, 2)
    assert kept.tolist() == [*range(7), *range(9, 16)], "places 7 and 8 are the last two of tile 1"


def test_places_that_are_not_those_of_the_tiles_are_refused() -> None:
    ids = torch.tensor([1, 9, 9, 9, 2])
    with pytest.raises(InternalError, match="has 3 <IMG_CONTEXT> places, 1 tiles need 4 each"):
        shortened(ids, ids == 9, torch.tensor([True]), 4, 1)
