"""A Flash model: two ways for a tile, fewer places for the short one, and its folder."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.save import save_parts
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.config import evolve, from_dict, to_dict
from cascadevl.core.errors import CheckpointError, ConfigError
from cascadevl.data.batch import collate
from cascadevl.models.config import FlashConfig, InternVLConfig
from cascadevl.models.internvl import InternVL, fresh

ON = FlashConfig(enabled=True, relative_threshold=0.5, absolute_threshold=0.25)
OFF = FlashConfig(enabled=False, relative_threshold=0.5, absolute_threshold=0.25)


def _flash_parts(flash: FlashConfig | None, *, seed: int = 0, tile_px: int = 56) -> Parts:
    parts = tiny_parts("qwen3", std=0.2)
    config = evolve(parts.model.config, flash=flash, vision={"tile_px": tile_px})
    return evolve(parts, model=fresh(config, seed=seed, std=0.2).eval().requires_grad_(False))


PARTS = _flash_parts(ON)
MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.radial_gradient("L").resize((150, 100))},
            {"type": "text", "text": "one"},
            {"type": "image", "image": Image.linear_gradient("L").resize((57, 120))},
            {"type": "text", "text": "two?"},
        ],
    }
]
INPUTS = PARTS.processor(MESSAGES)


def _shuffled(patches_PD: Tensor, r: int) -> Tensor:
    """Blocks of r×r patches, place by place, for one tile."""
    side = int(len(patches_PD) ** 0.5)
    grid = patches_PD.view(side, side, -1)
    return torch.stack(
        [
            torch.cat([grid[row + m, column + k] for m in range(r) for k in range(r)])
            for row in range(0, side, r)
            for column in range(0, side, r)
        ]
    )


def _mlp2(x: Tensor, model: InternVL) -> Tensor:
    weights = {name.removeprefix("mlp2."): w for name, w in model.state_dict().items() if name.startswith("mlp2.")}
    x = torch.nn.functional.layer_norm(x, x.shape[-1:], weights["0.weight"], weights["0.bias"], 1e-5)
    for index in (1, 4, 7):
        x = x @ weights[f"{index}.weight"].T + weights[f"{index}.bias"]
        x = x * 0.5 * (1 + torch.erf(x / 2**0.5)) if index < 7 else x
    return x


def test_only_a_flash_model_has_a_router() -> None:
    plain, flash = (InternVL(evolve(PARTS.model.config, flash=flash)) for flash in (None, ON))
    new = flash.state_dict().keys() - plain.state_dict().keys()
    assert {name.split(".")[0] for name in new} == {"pooling_before_gating", "gating", "mlp2"}
    assert {name: tuple(flash.state_dict()[name].shape) for name in new if name.startswith("mlp2")} == {
        "mlp2.0.weight": (512,),
        "mlp2.0.bias": (512,),
        "mlp2.1.weight": (64, 512),
        "mlp2.1.bias": (64,),
        "mlp2.4.weight": (64, 64),
        "mlp2.4.bias": (64,),
        "mlp2.7.weight": (32, 64),
        "mlp2.7.bias": (32,),
    }


@pytest.mark.parametrize("tile_px", [56, 112])
def test_compressed_tiles_are_shuffled_by_four_and_read_by_mlp2(tile_px: int) -> None:
    model = _flash_parts(ON, tile_px=tile_px).model
    patches_SPD = torch.randn(3, (tile_px // 14) ** 2, 32, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([_mlp2(_shuffled(patches_PD, 4), model) for patches_PD in patches_SPD])
    got = model.project_short(patches_SPD)
    assert got.shape[1] * 4 == model.config.visual_tokens_per_tile
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("compress", [[0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
def test_tiles_keep_their_order_whichever_way_they_go(compress: list[int]) -> None:
    model = PARTS.model
    patches_SPD = torch.randn(4, 16, 32, generator=torch.Generator().manual_seed(0))
    expected = torch.cat(
        [
            (model.project_short if c else model.project)(tile[None])[0]
            for c, tile in zip(compress, patches_SPD, strict=True)
        ]
    )
    got = model.project_routed(patches_SPD, torch.tensor(compress, dtype=torch.bool))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_some_tiles_of_the_request_are_compressed_and_the_places_agree() -> None:
    """Probabilities straight from the modules, the rule and the places by plain loops."""
    model = PARTS.model
    patches_SPD = model.vision_model(INPUTS.tiles, -1)
    assert model.pooling_before_gating is not None and model.gating is not None
    p = model.gating(model.pooling_before_gating(patches_SPD)).exp()
    p = (p[:, 0] / p.sum(-1)).tolist()
    bound = torch.tensor(p).quantile(0.5).item()
    compress = [each > bound and each >= 0.25 for each in p]
    assert 0 < sum(compress) < len(compress), "this picture must show both ways"
    expected_ids, place = [], 0
    for token_id in INPUTS.token_ids.tolist():
        if token_id != model.config.image_token_id:
            expected_ids.append(token_id)
            continue
        tile, offset = divmod(place, 4)
        expected_ids += [] if compress[tile] and offset >= 1 else [token_id]
        place += 1
    token_ids, visual_TD = model.compress(INPUTS.token_ids, INPUTS.tiles)
    assert token_ids.tolist() == expected_ids
    assert len(visual_TD) == sum(1 if c else 4 for c in compress)
    assert len(token_ids) == len(INPUTS.token_ids) - 3 * sum(compress)


def test_a_request_is_routed_as_a_whole() -> None:
    """Each tile alone is kept; in company some are not."""
    patches_SPD = PARTS.model.vision_model(INPUTS.tiles, -1)
    alone = [bool(PARTS.model.route(patches_PD[None])) for patches_PD in patches_SPD]
    assert not any(alone)
    assert bool(PARTS.model.route(patches_SPD).any())


def test_v2pe_positions_are_those_of_the_places_that_are_left() -> None:
    model = PARTS.model
    token_ids, _ = model.embed_prompt(INPUTS.token_ids, INPUTS.tiles)
    positions_T = model.positions(token_ids, 0.5)
    assert len(positions_T) == len(token_ids) < len(INPUTS.token_ids)
    assert float(positions_T[-1]) < float(model.positions(INPUTS.token_ids, 0.5)[-1])


def test_forward_and_routing_off_are_the_plain_model() -> None:
    """The router's weights are there and change nothing: logits are those of the model without them."""
    plain = InternVL(evolve(PARTS.model.config, flash=None)).eval().requires_grad_(False)
    plain.load_state_dict({name: w for name, w in PARTS.model.state_dict().items() if name in plain.state_dict()})
    expected = plain(INPUTS.token_ids, INPUTS.tiles)
    assert torch.equal(PARTS.model(INPUTS.token_ids, INPUTS.tiles), expected)
    off = _flash_parts(OFF).model
    token_ids, embed_TD = off.embed_prompt(INPUTS.token_ids, INPUTS.tiles)
    assert torch.equal(token_ids, INPUTS.token_ids)
    assert torch.equal(embed_TD, PARTS.model.embed(INPUTS.token_ids, INPUTS.tiles))


def test_a_request_whose_tiles_are_all_kept_is_the_plain_one_bit_for_bit() -> None:
    keep = _flash_parts(evolve(ON, relative_threshold=1.0)).model
    token_ids, embed_TD = keep.embed_prompt(INPUTS.token_ids, INPUTS.tiles)
    assert torch.equal(token_ids, INPUTS.token_ids)
    assert torch.equal(embed_TD, keep.embed(INPUTS.token_ids, INPUTS.tiles))


def test_training_sees_every_tile_in_full() -> None:
    model = _flash_parts(ON).model.requires_grad_(True)
    batch = collate([INPUTS])
    model(batch.token_ids, batch.tiles, batch.attend, batch.positions).square().mean().backward()
    assert model.mlp1[1].weight.grad is not None  # type: ignore[union-attr]
    assert all(p.grad is None for name, p in model.named_parameters() if name.startswith(("mlp2", "gating", "pooling")))


def test_gradients_reach_what_the_router_uses_and_nothing_else() -> None:
    model = _flash_parts(ON).model.requires_grad_(True)
    model.gate(torch.randn(2, 16, 32)).logsumexp(-1).sum().backward()
    without = {
        name for name, p in model.named_parameters() if name.startswith(("gating", "pooling")) and p.grad is None
    }
    assert {name.split(".")[1] for name in without} == {"attn3", "attn4", "norm3", "norm4"}


def test_a_grid_that_cannot_be_shrunk_twice_is_refused() -> None:
    config = evolve(PARTS.model.config, flash=None, vision={"tile_px": 84})
    with pytest.raises(ConfigError, match="6×6 patches cannot be shrunk twice by"):
        evolve(config, flash=ON)


def test_the_config_survives_json() -> None:
    data = json.loads(json.dumps(to_dict(PARTS.model.config)))
    assert from_dict(InternVLConfig, data) == PARTS.model.config


@pytest.mark.parametrize(
    "flash", [ON, OFF, FlashConfig(enabled=False, relative_threshold=None, absolute_threshold=None)]
)
def test_a_chat_folder_brings_the_router_back(tmp_path: Path, flash: FlashConfig) -> None:
    parts = _flash_parts(flash)
    folder = save_parts(parts, tmp_path / "flash", layout="chat")
    loaded = load_parts(folder, dtype="stored").model
    assert loaded.config.flash == flash
    assert torch.equal(loaded(INPUTS.token_ids, INPUTS.tiles), parts.model(INPUTS.token_ids, INPUTS.tiles))
    for ours, theirs in zip(
        parts.model.embed_prompt(INPUTS.token_ids, INPUTS.tiles),
        loaded.embed_prompt(INPUTS.token_ids, INPUTS.tiles),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    raw = json.loads((folder / "config.json").read_text())
    assert raw["flash_mode"] is flash.enabled
    assert raw.get("flash_relative_threshold") == flash.relative_threshold
    assert raw.get("flash_absolute_threshold") == flash.absolute_threshold


def test_a_model_without_a_router_says_nothing_of_flash(tmp_path: Path) -> None:
    folder = save_parts(_flash_parts(None), tmp_path / "plain", layout="chat")
    assert not [key for key in json.loads((folder / "config.json").read_text()) if "flash" in key]
    assert load_parts(folder).model.config.flash is None


@pytest.mark.parametrize("key", ["flash_relative_threshold", "flash_absolute_threshold"])
def test_routing_without_its_thresholds_is_refused(tmp_path: Path, key: str) -> None:
    folder = save_parts(PARTS, tmp_path / "flash", layout="chat")
    raw = json.loads((folder / "config.json").read_text())
    del raw[key]
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=f"flash_mode is on and {key} is missing"):
        load_parts(folder)


def test_the_hf_layout_refuses_a_router_and_says_where_to_go(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no names for the router.*layout='chat'"):
        save_parts(PARTS, tmp_path / "flash", layout="hf")
