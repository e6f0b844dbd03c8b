"""The tower: uint8 in, normalisation folded into the weights, LayerScale and stochastic depth."""

import pytest
import torch
from torch import Tensor

from cascadevl.checkpoints.tiny import TINY_VISION
from cascadevl.core.config import evolve
from cascadevl.core.errors import ConfigError
from cascadevl.models.vision import Block, InternViT


def _tower(std: float = 0.05, **changes: object) -> InternViT:
    torch.manual_seed(0)
    tower = InternViT(evolve(TINY_VISION, **changes)).eval()
    with torch.no_grad():
        for p in tower.parameters():
            p.copy_(torch.randn(p.shape) * std if p.ndim > 1 else p + 0.2 * torch.randn(p.shape))
    return tower


def _tiles(num: int = 3) -> Tensor:
    return torch.randint(0, 256, (num, 3, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _normalised(tower: InternViT, tiles_SCYX: Tensor) -> Tensor:
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (tower.config.pixel_mean, tower.config.pixel_std))
    return (tiles_SCYX.float() / 255 - mean) / std


@pytest.mark.parametrize("std", [0.002, 0.05, 0.5])
@pytest.mark.parametrize(
    "pixels",
    [
        {},
        {"pixel_mean": (0.5, 0.5, 0.5), "pixel_std": (0.5, 0.5, 0.5)},
        {"pixel_mean": (0.0,) * 3, "pixel_std": (1.0,) * 3},
    ],
)
def test_folded_normalisation_equals_normalising_first(std: float, pixels: dict) -> None:
    """To 2e-6 of the greatest value in fp32, patch by patch and behind the whole tower."""
    tower, tiles_SCYX = _tower(std, **pixels), _tiles()
    with torch.no_grad():
        exact = tower.double().embeddings.embed(_normalised(tower, tiles_SCYX).double())
        tower.float()
        for given in (tiles_SCYX, _normalised(tower, tiles_SCYX)):
            embedded = tower.embeddings(given)[:, 1:] - tower.embeddings.position_embedding[:, 1:]
            assert float((embedded - exact).abs().max()) < 2e-6 * float(exact.abs().max())
        folded, first = tower(tiles_SCYX), tower(_normalised(tower, tiles_SCYX))
        assert float((folded - first).abs().max()) < 4e-6 * float(first.abs().max())


@pytest.mark.parametrize("value", [0, 128, 255])
def test_folding_is_exact_on_plain_pages_too(value: int) -> None:
    """White paper is the commonest patch of a document."""
    tower = _tower()
    tiles_SCYX = torch.full((1, 3, 56, 56), value, dtype=torch.uint8)
    with torch.no_grad():
        folded, first = tower.embeddings(tiles_SCYX), tower.embeddings(_normalised(tower, tiles_SCYX))
    assert float((folded - first).abs().max()) < 2e-6 * float(first.abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_normalise_in_fp32_and_round_once(dtype: torch.dtype) -> None:
    tower, tiles_SCYX = _tower().to(dtype), _tiles()
    with torch.no_grad():
        assert torch.equal(tower(tiles_SCYX), tower(_normalised(tower, tiles_SCYX).to(dtype)))
        assert tower(tiles_SCYX).dtype == dtype


def test_patches_are_cut_row_by_row_as_the_convolution_does() -> None:
    tower, tiles_SCYX = _tower(), _normalised(_tower(), _tiles())
    with torch.no_grad():
        expected = tower.embeddings.patch_embedding(tiles_SCYX).flatten(2).transpose(1, 2)
        torch.testing.assert_close(tower.embeddings.embed(tiles_SCYX), expected, atol=1e-5, rtol=1e-5)


def test_tiles_do_not_see_each_other() -> None:
    tower, tiles_SCYX = _tower(), _tiles()
    with torch.no_grad():
        together = tower(tiles_SCYX)
        for number in range(len(tiles_SCYX)):
            torch.testing.assert_close(
                tower(tiles_SCYX[number : number + 1])[0], together[number], atol=1e-5, rtol=1e-5
            )


def test_gradients_reach_the_patches_through_folded_weights() -> None:
    tower, tiles_SCYX = _tower().requires_grad_(True), _tiles()
    grads = []
    for given in (tiles_SCYX, _normalised(tower, tiles_SCYX)):
        tower.zero_grad()
        tower(given).square().sum().backward()
        gradient = tower.embeddings.patch_embedding.weight.grad
        assert gradient is not None
        grads.append(gradient.clone())
    torch.testing.assert_close(*grads, atol=1e-4 * float(grads[0].abs().max()), rtol=1e-4)


def test_a_stochastic_depth_of_one_half_drops_whole_branches_of_tiles_and_keeps_the_mean() -> None:
    """Rates grow from 0 to the configured one; in evaluation nothing is dropped."""
    tower = _tower(num_layers=3, drop_path=0.5)
    assert [block.drop_path for block in tower.encoder.layers] == [0, 0.25, 0.5]
    block, branch_SPD = tower.encoder.layers[2].train(), torch.ones(4000, 2, 2)
    assert isinstance(block, Block)
    torch.manual_seed(0)
    dropped = block._drop(branch_SPD)
    assert {tuple(values.unique().tolist()) for values in dropped} == {(0.0,), (2.0,)}
    assert float(dropped.mean()) == pytest.approx(1, abs=0.1)
    assert torch.equal(block.eval()._drop(branch_SPD), branch_SPD)


def test_the_layer_that_is_selected_counts_from_the_embeddings_or_the_end() -> None:
    tower, tiles_SCYX = _tower(num_layers=3), _tiles(1)
    with torch.no_grad():
        hidden_SPD = tower.embeddings(tiles_SCYX)
        for number, block in enumerate(tower.encoder.layers):
            assert torch.equal(tower(tiles_SCYX, number), hidden_SPD[:, 1:])
            assert torch.equal(tower(tiles_SCYX, number - 4), hidden_SPD[:, 1:])
            hidden_SPD = block(hidden_SPD)
        assert torch.equal(tower(tiles_SCYX), hidden_SPD[:, 1:])


@pytest.mark.parametrize(
    ("bad", "message"), [({"num_heads": 5}, "no multiple of 5 heads"), ({"patch_px": 15}, "no multiple of patch_px")]
)
def test_sizes_that_do_not_fit_are_refused(bad: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evolve(TINY_VISION, **bad)
