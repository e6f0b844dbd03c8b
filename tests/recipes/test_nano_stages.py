"""nano's stages: they can be run, and found by name."""

from pathlib import Path

import pytest

from cascadevl.core.errors import ConfigError
from cascadevl.gym import TASKS
from cascadevl.recipes.nano_data import make_task
from cascadevl.recipes.nano_stages import is_run, number_of, stages


def test_every_stage_names_families_that_exist_and_steps_that_fit() -> None:
    for stage in stages():
        assert stage.warmup + stage.decay <= stage.steps
        for name in stage.mixture:
            assert name.partition(":")[0] in TASKS
            assert make_task(name).sample(0).answer


def test_the_last_stage_asks_every_family() -> None:
    assert {name.partition(":")[0] for name in stages()[-1].mixture} == set(TASKS)


def test_stages_are_found_by_name() -> None:
    course = stages()
    assert [number_of(stage.name, course) for stage in course] == list(range(len(course)))
    with pytest.raises(ConfigError, match="expected one of letters, words"):
        number_of("everthing", course)


def test_a_run_is_told_from_a_model(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    assert not is_run(str(tmp_path)) and not is_run("nano")
    (tmp_path / "last").mkdir()
    assert is_run(str(tmp_path))
