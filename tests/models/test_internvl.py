"""Pictures among words: the splice, the count, packing, and positions."""

from typing import Any

import pytest
import torch
from PIL import Image

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.config import evolve
from cascadevl.core.errors import ConfigError, InternalError
from cascadevl.data.batch import collate
from cascadevl.models.internvl import InternVL

PARTS = {family: tiny_parts(family, std=0.2) for family in ("qwen2", "qwen3")}


def _messages(sizes: list[tuple[int, int]], text: str) -> list[dict[str, Any]]:
    pictures = [{"type": "image", "image": Image.radial_gradient("L").resize(size)} for size in sizes]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


SAMPLES = [_messages([(100, 57)], "one"), _messages([], "no picture at all"), _messages([(56, 56), (30, 200)], "two?")]


def test_visual_tokens_replace_the_embeddings_at_their_places_in_order() -> None:
    parts = PARTS["qwen3"]
    inputs, model = parts.processor(SAMPLES[2]), parts.model
    places = inputs.token_ids == model.config.image_token_id
    with torch.no_grad():
        embed_TD = model.embed(inputs.token_ids, inputs.tiles)
        visual_SLD = torch.cat([model.encode_tiles(tile[None]) for tile in inputs.tiles])
        plain_TD = model.language_model.embed(inputs.token_ids)
    torch.testing.assert_close(embed_TD[places], visual_SLD.flatten(0, 1), atol=1e-5, rtol=1e-5)
    assert torch.equal(embed_TD[~places], plain_TD[~places])


@pytest.mark.parametrize("change", [-1, 1])
def test_a_count_that_differs_is_refused_with_both_numbers(change: int) -> None:
    parts = PARTS["qwen3"]
    inputs = parts.processor(SAMPLES[0])
    tiles = inputs.tiles[:change] if change < 0 else torch.cat([inputs.tiles, inputs.tiles[:1]])
    expected = inputs.num_visual_tokens
    with pytest.raises(
        InternalError, match=f"has {expected} <IMG_CONTEXT> places, the tiles gave {expected + 4 * change} "
    ):
        parts.model.embed(inputs.token_ids, tiles)
    with pytest.raises(InternalError, match=f"has {expected} <IMG_CONTEXT> places, the tiles gave 0 "):
        parts.model.embed(inputs.token_ids)


@pytest.mark.parametrize("family", PARTS)
def test_packed_logits_are_those_of_separate_samples(family: str) -> None:
    parts = PARTS[family]
    inputs = [parts.processor(messages) for messages in SAMPLES]
    batch = collate(inputs)
    with torch.no_grad():
        packed_TV = parts.model(batch.token_ids, batch.tiles, batch.attend, batch.positions)
        separate = [parts.model(each.token_ids, each.tiles) for each in inputs]
    torch.testing.assert_close(packed_TV, torch.cat(separate), atol=2e-5, rtol=0)


def test_delta_one_is_the_model_without_v2pe_bit_for_bit() -> None:
    parts = PARTS["qwen3"]
    inputs, model = parts.processor(SAMPLES[2]), parts.model
    with torch.no_grad():
        plain = model(inputs.token_ids, inputs.tiles, positions_T=torch.arange(len(inputs.token_ids)))
        assert torch.equal(model(inputs.token_ids, inputs.tiles), plain)
        assert torch.equal(
            model(inputs.token_ids, inputs.tiles, positions_T=model.positions(inputs.token_ids, 1.0)), plain
        )
        quarter = model(inputs.token_ids, inputs.tiles, positions_T=model.positions(inputs.token_ids, 0.25))
    assert not torch.allclose(quarter, plain, atol=1e-3)


def test_positions_of_a_prompt_advance_by_delta_where_the_picture_is() -> None:
    parts = PARTS["qwen3"]
    ids = parts.processor(_messages([(56, 56)], "?")).token_ids
    first = ids.tolist().index(parts.model.config.image_token_id)
    positions = parts.model.positions(ids, 0.25).tolist()
    assert positions[first - 1 : first + 6] == [
        first - 1,
        *(first - 1 + 0.25 * k for k in (1, 2, 3, 4)),
        first + 1,
        first + 2,
    ]


def test_meta_construction_allocates_nothing() -> None:
    config = evolve(PARTS["qwen3"].model.config, decoder={"hidden_size": 32_768, "mlp_size": 131_072, "num_layers": 8})
    with torch.device("meta"):
        model = InternVL(config)
    assert sum(p.numel() for p in model.parameters()) > 1e11, "400 GB, had they been allocated"
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"downsample_ratio": 0.3}, "cannot be shrunk by 0.3"),
        ({"select_layer": 3}, "select_layer 3 does not exist in a tower of 2 layers"),
        ({"select_layer": -4}, "select_layer -4 does not exist"),
        ({"decoder": {"num_kv_heads": 3}}, "4 query heads cannot share 3 key heads"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(bad: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evolve(PARTS["qwen3"].model.config, **bad)
