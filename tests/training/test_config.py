"""What a config refuses, and that YAML gives back what it was given."""

from pathlib import Path
from typing import Any

import pytest

from cascadevl.core.config import evolve
from cascadevl.core.errors import ConfigError
from cascadevl.recipes.sft import RECIPES, sft_nano
from cascadevl.training.config import (
    LoraConfig,
    OptimConfig,
    PackConfig,
    ScheduleConfig,
    TrainConfig,
    differences,
    read_config,
    write_config,
)


@pytest.mark.parametrize("name", ["tiny", "sft_nano_lora", "internvl3_5_8b_sft"])
def test_a_written_config_is_read_back_as_it_was(name: str, tmp_path: Path) -> None:
    config = RECIPES[name]()
    write_config(config, tmp_path / "run.yaml")
    assert read_config(tmp_path / "run.yaml") == config


def test_numbers_may_be_written_as_people_write_them(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("recipe: mine\noptim:\n  lr: 1e-5\n  betas: [.9, 99e-2]\n")
    config = read_config(tmp_path / "run.yaml")
    assert config.optim.lr == 1e-5 and config.optim.betas == (0.9, 0.99)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("recipe: x\noptim: {lrr: 1.0}\n", r"optim: unknown setting 'lrr'. Did you mean 'lr'"),
        ("recipe: x\nsteps: many\n", r"steps: expected int, got 'many'"),
        ("steps: 3\n", "missing 'recipe'"),
        ("- a\n", "expected a mapping"),
        ("a: [", "is no YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused_by_name(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_config(tmp_path / "run.yaml")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ScheduleConfig(warmup_steps=3, warmup_ratio=0.1), "keep one"),
        (lambda: ScheduleConfig(kind="wsd"), "decay_ratio belongs to wsd"),
        (lambda: ScheduleConfig(kind="cosine", decay_ratio=0.2), "decay_ratio belongs to wsd"),
        (lambda: ScheduleConfig(kind="wsd", warmup_ratio=0.9, decay_ratio=0.2), "sum to 1"),
        (lambda: OptimConfig(lr=0.0), "lr must be positive"),
        (lambda: OptimConfig(ema=1.0), "ema"),
        (lambda: OptimConfig(kind="muon", vit_layer_decay=0.9), "belongs to AdamW"),
        (lambda: LoraConfig(dora=True), "set lora.rank"),
        (lambda: LoraConfig(rank=4, dora=True, dropout=0.1), "choose one"),
        (lambda: LoraConfig(rank=4, quantize="int3"), "int3"),
        (lambda: PackConfig(per_step=0), "per_step must be positive"),
        (lambda: TrainConfig(recipe="x", steps=10, train=()), "Nothing would learn"),
        (lambda: TrainConfig(recipe="x", steps=2, schedule=ScheduleConfig(warmup_steps=3)), "3 warm-up steps exceed"),
        (lambda: TrainConfig(recipe="x", drop_path=1.0), "drop_path"),
    ],
)
def test_contradictions_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize(("missing", "words"), [("init", "start from"), ("data", "learn from"), ("steps", "how many")])
def test_what_a_recipe_leaves_open_is_asked_for_by_its_flag(missing: str, words: str) -> None:
    config = evolve(sft_nano(), data="x.jsonl")
    config.check_complete()
    with pytest.raises(ConfigError, match=f"{words}.*--{missing}"):
        evolve(config, **{missing: None}).check_complete()


def test_decay_takes_what_warm_up_leaves() -> None:
    thirds = ScheduleConfig(kind="wsd", warmup_ratio=0.3, decay_ratio=0.7)  # 1.5 and 3.5 of 5 steps
    assert (thirds.warmup(5), thirds.decay(5)) == (2, 3)
    assert ScheduleConfig(kind="wsd", warmup_steps=2, decay_ratio=0.5).decay(3) == 1
    assert ScheduleConfig(kind="wsd", decay_ratio=0.5).decay(10) == 5


def test_packs_of_a_step_are_shared_by_ranks_or_refused() -> None:
    config = evolve(sft_nano(), packs={"per_step": 12})
    assert [config.accumulate(ranks) for ranks in (1, 4, 12)] == [12, 3, 1]
    with pytest.raises(ConfigError, match="12 packs per step cannot be shared by 8 ranks"):
        config.accumulate(8)


def test_differences_are_told_by_their_dotted_names() -> None:
    one = sft_nano()
    other = evolve(one, seed=1, optim={"lr": 1.0, "betas": (0.5, 0.6)})
    assert differences(one, other) == ["seed", "optim.lr", "optim.betas"]


def test_a_config_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\x89PNG")
    with pytest.raises(ConfigError, match="is no YAML"):
        read_config(tmp_path / "config.yaml")
