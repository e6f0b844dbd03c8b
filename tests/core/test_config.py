"""Settings: strict keys, nested changes, and the way through JSON and back."""

import json
from dataclasses import dataclass, field

import pytest

from cascadevl.core.config import evolve, from_dict, to_dict
from cascadevl.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    lr: float
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"lr must be positive, got {self.lr}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    name: str
    steps: int = 10
    optim: Optim = field(default_factory=lambda: Optim(lr=1.0))
    second: Optim | None = None
    stages: tuple[Optim, ...] = ()
    note: str | None = None


FULL = Run(name="a", second=Optim(lr=2.0), stages=(Optim(lr=3.0), Optim(lr=4.0, betas=(0.0, 0.1))), note="x")


def test_json_and_back_gives_the_same_config() -> None:
    assert from_dict(Run, json.loads(json.dumps(to_dict(FULL)))) == FULL


def test_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'stepz'.*Did you mean 'steps'"):
        from_dict(Run, {"name": "a", "stepz": 3})


def test_an_unknown_key_far_from_all_others_lists_what_exists() -> None:
    with pytest.raises(ConfigError, match=r"Known: name, note, optim, second, stages, steps"):
        from_dict(Run, {"name": "a", "qqqqqq": 3})


def test_a_nested_error_says_where() -> None:
    with pytest.raises(ConfigError, match=r"Run\.optim: unknown setting 'rl'"):
        from_dict(Run, {"name": "a", "optim": {"rl": 1.0}})
    with pytest.raises(ConfigError, match=r"Run\.stages: missing 'lr'"):
        from_dict(Run, {"name": "a", "stages": [{}]})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="missing 'name'"):
        from_dict(Run, {})


def test_what_post_init_refuses_is_refused_from_json_too() -> None:
    with pytest.raises(ConfigError, match="lr must be positive"):
        from_dict(Run, {"name": "a", "optim": {"lr": -1.0}})


@pytest.mark.parametrize("data", [[], "text", None, 3])
def test_only_a_mapping_can_become_a_config(data: object) -> None:
    with pytest.raises(ConfigError, match="expected a mapping of settings"):
        from_dict(Run, data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", "10"),
        ("steps", 1.5),
        ("steps", True),
        ("steps", None),
        ("name", 3),
        ("note", 3),
        ("optim", 3),
        ("stages", 3),
        ("stages", [3]),
    ],
)
def test_a_value_of_another_type_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"Run\.{key}: expected .*, got"):
        from_dict(Run, {"name": "a", key: value})


def test_a_whole_number_may_stand_for_a_float() -> None:
    assert from_dict(Run, {"name": "a", "optim": {"lr": 1}}).optim.lr == 1


def test_evolve_changes_a_nested_config_in_part() -> None:
    changed = evolve(FULL, steps=3, optim={"lr": 0.5})
    assert changed.steps == 3
    assert changed.optim == Optim(lr=0.5, betas=FULL.optim.betas)
    assert changed.stages == FULL.stages
    assert FULL.steps == 10, "the original is untouched"


def test_evolve_refuses_unknown_keys_at_every_depth() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        evolve(FULL, step=3)
    with pytest.raises(ConfigError, match=r"Optim: unknown setting 'lrr'.*Did you mean 'lr'"):
        evolve(FULL, optim={"lrr": 0.5})


def test_evolve_checks_the_result() -> None:
    with pytest.raises(ConfigError, match="lr must be positive"):
        evolve(FULL, optim={"lr": 0.0})
