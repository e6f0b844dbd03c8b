"""Every recipe builds, says where it comes from, and has a memory that can be reckoned."""

import functools
from collections.abc import Callable

import pytest

from cascadevl.core.config import evolve
from cascadevl.models.config import InternVLConfig
from cascadevl.recipes import pretrain, sft
from cascadevl.training.config import LoraConfig, TrainConfig
from cascadevl.training.plan import memory
from tests.models.test_released_sizes import build as build_released

RECIPES = {**pretrain.RECIPES, **sft.RECIPES}
PUBLISHED = [name for name in RECIPES if name.startswith("internvl")]


@functools.cache
def sizes(model: str) -> InternVLConfig:
    return build_released(model).config


@functools.cache
def count(model: str) -> int:
    return sum(parameter.numel() for parameter in build_released(model).parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_under_its_own_name(name: str) -> None:
    config = RECIPES[name]()
    assert isinstance(config, TrainConfig) and config.recipe == name


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_has_a_model_and_a_memory(name: str) -> None:
    config = RECIPES[name]()
    assert config.model is not None and config.compute.recompute
    reckoned = memory(sizes(config.model), config)
    assert reckoned["weights"] == 4 * count(config.model)
    assert reckoned["moments"] == 2 * reckoned["gradients"]
    assert 0 < reckoned["gradients"] <= reckoned["weights"]
    assert reckoned["total"] == sum(value for key, value in reckoned.items() if key != "total")
    if name.endswith("mlp_warmup"):
        assert reckoned["gradients"] < reckoned["weights"] / 20


@pytest.mark.parametrize("recipe", list(RECIPES.values()), ids=RECIPES)
def test_a_recipe_tells_its_paper_command_hardware_and_hours(recipe: Callable[[], TrainConfig]) -> None:
    text = (recipe.func if isinstance(recipe, functools.partial) else recipe).__doc__ or ""
    assert "Command: cascadevl train" in text or "Command:\n    cascadevl train" in text
    if "InternVL" in text.partition("\n")[0] and "own data" not in text and "Thinking data alone" not in text:
        assert "arXiv" in text and "Hardware" in text and "ours" in text


def test_values_of_the_tables_by_hand() -> None:
    """InternVL 2.5 table 3, and the scripts of 3.5."""
    eight = sft.RECIPES["internvl2_5_8b_sft"]()
    assert (eight.optim.lr, eight.packs.per_step, eight.drop_path, eight.steps) == (4e-5, 512, 0.1, 5500)
    large = sft.RECIPES["internvl2_5_78b_sft"]()
    assert (large.optim.lr, large.drop_path, large.optim.weight_decay) == (2e-5, 0.4, 0.05)
    assert pretrain.RECIPES["internvl2_5_1b_mlp_warmup"]().train == ("mlp",)
    assert pretrain.RECIPES["internvl2_5_26b_vit_incremental"]().packs.per_step == 1024
    assert sft.RECIPES["internvl3_5_241b_a28b_sft"]().optim.lr == 2e-5
    assert sft.RECIPES["internvl3_5_30b_a3b_sft"]().optim.lr == 8e-5
    assert pretrain.RECIPES["internvl3_5_8b_mlp_warmup"]().steps == 5000


@pytest.mark.parametrize(
    ("name", "train", "lr", "weight_decay", "drop_path", "per_step", "reduction"),
    [
        ("internvl1_5_2b_pretrain", ("vit", "mlp"), 2e-5, 0.01, 0.1, 2048, "token"),
        ("internvl1_5_4b_pretrain", ("mlp",), 2e-4, 0.05, 0.0, 2048, "token"),
        ("internvl1_5_26b_pretrain", ("vit", "mlp"), 1e-5, 0.05, 0.2, 2048, "token"),
        ("internvl1_5_4b_sft", ("vit", "mlp", "llm"), 4e-5, 0.05, 0.1, 1024, "token"),
        ("internvl3_1b_finetune", ("mlp", "llm"), 1e-5, 0.05, 0.0, 128, "token"),
        ("internvl3_8b_finetune", ("mlp", "llm"), 2e-5, 0.05, 0.0, 128, "token"),
        ("internvl3_14b_finetune", ("mlp", "llm"), 2e-5, 0.05, 0.1, 128, "token"),
        ("internvl3_38b_finetune", ("mlp", "llm"), 2e-5, 0.05, 0.2, 128, "token"),
        ("internvl3_78b_finetune", ("mlp", "llm"), 2e-5, 0.05, 0.4, 128, "token"),
    ],
)
def test_values_of_the_scripts_by_hand(
    name: str, train: tuple[str, ...], lr: float, weight_decay: float, drop_path: float, per_step: int, reduction: str
) -> None:
    """internvl_chat_v1_5_*_dynamic_res_*.sh, and internvl3_*_2nd_finetune_full.sh, which packs nothing."""
    config = RECIPES[name]()
    assert (config.train, config.optim.lr, config.optim.weight_decay) == (train, lr, weight_decay)
    assert (config.drop_path, config.packs.per_step, config.packs.reduction) == (drop_path, per_step, reduction)


def test_every_stage_has_every_released_size() -> None:
    count = {stage: sum(name.startswith(stage) for name in PUBLISHED) for stage in ("internvl1_5_", "internvl2_5_")}
    assert count == {"internvl1_5_": 2 * 3, "internvl2_5_": 2 * 7 + 2}
    assert sum(name.startswith("internvl3_5_") for name in PUBLISHED) == 4 * 9
    assert sum(name.startswith("internvl3_") and "3_5" not in name for name in PUBLISHED) == 3 * 7


def test_lora_and_few_bits_take_less() -> None:
    config = evolve(sft.RECIPES["internvl3_5_8b_sft"](), balance=0.0)
    model = sizes("InternVL3_5-8B")
    full = memory(model, config)
    lora = memory(model, evolve(config, lora=LoraConfig(rank=16)))
    few = memory(model, evolve(config, lora=LoraConfig(rank=16, quantize="int4-g128")))
    assert lora["moments"] < full["moments"] / 50
    assert few["weights"] < lora["weights"] / 2 < full["weights"] / 3
    kept = memory(model, evolve(config, compute={"recompute": False}))
    assert kept["activations"] > 5 * full["activations"]
