"""Which frames are looked at: against the released formulas and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.core.errors import ConfigError, MediaError
from cascadevl.core.messages import Video
from cascadevl.preprocessing.frame_rules import Clip, check_rule, choose, find_clip, takes_all

TOTALS, COUNTS = st.integers(1, 5000), st.integers(1, 64)


def test_the_released_rule_by_hand() -> None:
    """99 / 4 = 24.75 a segment: 12.375 + round(0, 24.75, 49.5, 74.25), half to even."""
    assert choose("middle", Clip(0, 99, 25.0), 4, 0) == [12, 37, 62, 86]
    assert choose("middle", Clip(10, 10, 25.0), 3, 0) == [10, 10, 10]


@given(TOTALS, COUNTS, st.integers(0, 100))
def test_middle_is_the_formula_of_the_released_evaluation(total: int, count: int, first: int) -> None:
    last = first + total - 1
    segment = float(last - first) / count
    expected = [int(first + (segment / 2) + np.round(segment * k)) for k in range(count)]
    assert choose("middle", Clip(first, last, None), count, 0) == expected


@given(TOTALS, COUNTS)
def test_hf_is_the_arange_of_transformers(total: int, count: int) -> None:
    expected = torch.arange(total / count / 2, total, total / count).int().tolist()
    assert choose("hf", Clip(0, total - 1, None), count, 0) == expected
    assert choose("hf", Clip(7, total + 6, None), count, 0) == [7 + index for index in expected]


@given(TOTALS, COUNTS, st.integers(0, 9))
def test_rand_draws_one_frame_of_each_interval(total: int, count: int, seed: int) -> None:
    clip = Clip(5, total + 4, None)
    drawn = choose("rand", clip, count, seed)
    assert drawn == choose("rand", clip, count, seed) == sorted(drawn)
    parts = min(total, count)
    bounds = [5 + k * total // parts for k in range(parts + 1)]
    assert all(low <= index < high for low, index, high in zip(bounds, drawn, bounds[1:], strict=False))
    assert drawn[parts:] == drawn[parts - 1 : parts] * (count - parts)


def test_rand_reaches_every_frame_and_seeds_differ() -> None:
    draws = [tuple(choose("rand", Clip(0, 5, None), 2, seed)) for seed in range(200)]
    assert {index for draw in draws for index in draw} == set(range(6))
    assert len(set(draws)) == 9


def test_a_rate_takes_the_middle_of_every_interval() -> None:
    """Ten seconds at 25: middles at 1, 3, 5, 7 and 9 s; at 2 a second at 0.25, 0.75, …, half to even."""
    clip = Clip(100, 349, 25.0)
    assert choose("fps0.5", clip, None, 0) == [125, 175, 225, 275, 325]
    assert choose("fps2", clip, None, 0)[:4] == [106, 119, 131, 144]
    assert choose("fps2", clip, 3, 0) == [106, 119, 131]
    assert choose("fps0.01", clip, None, 0) == [225]
    assert takes_all("fps2") and not takes_all("middle")


def test_a_rate_without_times_is_refused() -> None:
    with pytest.raises(MediaError, match="none"):
        choose("fps1", Clip(0, 9, None), None, 0)


@pytest.mark.parametrize(
    ("video", "expected"),
    [
        (Video("v"), (0, 99)),
        (Video("v", 1.0), (25, 99)),
        (Video("v", 1.0, 2.0), (25, 50)),
        (Video("v", None, 3.99), (0, 99)),
        (Video("v", 0, 1e9), (0, 99)),
        (Video("v", 0.5, 0.7), (12, 18)),  # 12.5 and 17.5, half to even
        (Video("v", 1.0, 1.001), (25, 25)),
    ],
)
def test_seconds_become_frames_by_the_average_rate(video: Video, expected: tuple[int, int]) -> None:
    clip = find_clip(video, 100, 25.0, "v")
    assert (clip.first, clip.last) == expected
    assert len(clip) == expected[1] - expected[0] + 1


def test_a_clip_behind_the_end_or_without_times_is_refused() -> None:
    with pytest.raises(MediaError, match=r"lasts 4\.00 s, the clip begins at 4 s"):
        find_clip(Video("v", 4.0), 100, 25.0, "v")
    with pytest.raises(MediaError, match="no times"):
        find_clip(Video("v", 0.0), 100, None, "v")


@pytest.mark.parametrize(
    "rule", ["", "Middle", "fps", "fps0", "fps-1", "fps1e9", "fpsnan", "fps1/2", "uniform", "fps1\n"]
)
def test_a_rule_that_nobody_knows_is_refused_with_those_that_are(rule: str) -> None:
    with pytest.raises(ConfigError, match=r"middle, hf, rand, or fps and a number"):
        check_rule(rule)


def test_known_rules_pass() -> None:
    for rule in ("middle", "hf", "rand", "fps1", "fps0.25"):
        check_rule(rule)
