"""Learning rates, step by step."""

import math

import pytest

from cascadevl.core.errors import ConfigError
from cascadevl.training.config import ScheduleConfig
from cascadevl.training.schedule import WarmupStableDecay, make_schedule


def test_values_by_hand() -> None:
    schedule = WarmupStableDecay(steps=10, warmup=4, decay=4, floor=0.2)
    rising, flat = [0.25, 0.5, 0.75, 1.0], [1.0, 1.0]
    falling = [0.2 + 0.8 * (1 + math.cos(math.pi * share)) / 2 for share in (0.25, 0.5, 0.75, 1.0)]
    assert [schedule(step) for step in range(10)] == pytest.approx([*rising, *flat, *falling])
    assert schedule(9) == pytest.approx(0.2)
    assert schedule(1000) == pytest.approx(0.2), "behind the end nothing rises again"


def test_without_warm_up_and_decay_it_is_constant() -> None:
    assert {WarmupStableDecay(steps=5, warmup=0)(step) for step in range(5)} == {1.0}


def test_more_warm_up_and_decay_than_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="6 warm-up and 5 decay steps exceed 10 steps"):
        WarmupStableDecay(steps=10, warmup=6, decay=5)


def test_schedules_of_a_config_by_their_shape() -> None:
    cosine = make_schedule(ScheduleConfig(kind="cosine", warmup_ratio=0.2, floor=0.1), 10)
    assert [cosine(step) for step in (0, 1)] == [0.5, 1.0]
    assert cosine(5) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 4 / 8)) / 2)
    assert cosine(9) == pytest.approx(0.1)
    constant = make_schedule(ScheduleConfig(kind="constant", warmup_steps=2), 10)
    assert [constant(step) for step in range(10)] == [0.5, *[1.0] * 9]
    wsd = make_schedule(ScheduleConfig(kind="wsd", decay_ratio=0.5), 10)
    assert [wsd(step) for step in range(5)] == [1.0] * 5 and wsd(9) == pytest.approx(0.0)
