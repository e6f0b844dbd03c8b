"""What learns, at which rate, and what decays."""

import pytest
import torch

from cascadevl.checkpoints.tiny import TINY_VISION, tiny_parts
from cascadevl.core.config import evolve
from cascadevl.core.errors import ConfigError
from cascadevl.models.config import FlashConfig
from cascadevl.models.internvl import InternVL, fresh
from cascadevl.training.config import OptimConfig
from cascadevl.training.muon import Muon
from cascadevl.training.trainable import choose, decays, make_optimizer, rate, set_drop_path


@pytest.fixture
def model() -> InternVL:
    return tiny_parts("qwen3").model


@pytest.mark.parametrize(
    ("patterns", "beginnings"),
    [
        (("vit",), ("vision_model.",)),
        (("mlp",), ("mlp1.",)),
        (("vit", "mlp"), ("vision_model.", "mlp1.")),
        (("*.layers.1.*",), ("vision_model.encoder.layers.1.", "language_model.model.layers.1.")),
    ],
)
def test_exactly_what_is_named_learns(model: InternVL, patterns: tuple[str, ...], beginnings: tuple[str, ...]) -> None:
    named = choose(model, patterns)
    expected = {name for name, _ in model.named_parameters() if name.startswith(beginnings)}
    assert {name for name, _ in named} == expected
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == expected


def test_a_pattern_that_matches_nothing_is_refused(model: InternVL) -> None:
    with pytest.raises(ConfigError, match=r"'visoin.\*' matches no parameter.*Presets: vit, mlp, llm"):
        choose(model, ("llm", "visoin.*"))


def test_what_takes_no_part_in_the_loss_does_not_learn(model: InternVL) -> None:
    flash = FlashConfig(enabled=True, relative_threshold=0.5, absolute_threshold=0.5)
    other = fresh(evolve(model.config, select_layer=-2, flash=flash), seed=0)
    names = [name for name, _ in choose(other, ("*",))]
    assert any(name.startswith("vision_model.encoder.layers.0.") for name in names)
    assert not [name for name in names if name.startswith(("vision_model.encoder.layers.1.", "gating", "mlp2"))]


def test_vectors_and_embeddings_do_not_decay(model: InternVL) -> None:
    still = {name for name, parameter in model.named_parameters() if not decays(name, parameter)}
    assert still == {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 1 or name.endswith(("embed_tokens.weight", "class_embedding", "position_embedding"))
    }
    assert "vision_model.embeddings.patch_embedding.weight" not in still
    assert "language_model.lm_head.weight" not in still
    oss = tiny_parts("gpt_oss").model
    stacked = "language_model.model.layers.0.mlp.experts.down_proj_bias"
    assert oss.get_parameter(stacked).ndim == 2 and not decays(stacked, oss.get_parameter(stacked))


def test_rates_fall_from_the_last_block_of_the_tower_down() -> None:
    blocks = [f"vision_model.encoder.layers.{i}.ls1" for i in range(3)]
    assert [rate(name, 3, 0.5) for name in blocks] == [0.25, 0.5, 1.0]
    assert rate("vision_model.embeddings.class_embedding", 3, 0.5) == 0.125
    assert rate("language_model.model.norm.weight", 3, 0.5) == rate("mlp1.1.weight", 3, 0.5) == 1.0


def test_the_optimizer_steps_each_group_at_its_rate_and_decay(model: InternVL) -> None:
    named = choose(model, ("vit", "mlp"))
    optimizer = make_optimizer(named, OptimConfig(lr=0.1, weight_decay=0.5, vit_layer_decay=0.5), num_blocks=2)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert found.keys() == {id(parameter) for _, parameter in named}
    for name, parameter in named:
        assert found[id(parameter)]["peak_lr"] == pytest.approx(0.1 * rate(name, 2, 0.5))
        assert found[id(parameter)]["weight_decay"] == (0.5 if decays(name, parameter) else 0.0)


def test_muon_is_a_choice(model: InternVL) -> None:
    assert isinstance(make_optimizer(choose(model, ("llm",)), OptimConfig(kind="muon"), num_blocks=2), Muon)


def test_drop_path_grows_over_the_tower_and_drops_in_training_alone() -> None:
    model = fresh(evolve(tiny_parts("qwen3").model.config, vision=evolve(TINY_VISION, num_layers=3)), seed=0, std=0.2)
    set_drop_path(model, 0.5)
    assert [block.drop_path for block in model.vision_model.encoder.layers] == [0.0, 0.25, 0.5]
    tiles = torch.randint(0, 256, (8, 3, 56, 56), dtype=torch.uint8)
    torch.manual_seed(0)
    first, second = (model.train().vision_model(tiles) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(model.eval().vision_model(tiles), model.vision_model(tiles))
