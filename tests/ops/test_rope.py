"""Rotary tables and V2PE positions, against loops and numbers worked out by hand."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.core.config import evolve
from cascadevl.core.errors import ConfigError
from cascadevl.ops.rope import Rope, rope_table, rotate, v2pe_positions


def test_rotation_turns_each_pair_of_halves_by_its_angle() -> None:
    x_TNH = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate(x_TNH, *rope_table(torch.arange(5), Rope(theta=100.0), 8))
    for t in range(5):
        for n in range(2):
            for i in range(4):
                angle = t * 100.0 ** (-2 * i / 8)
                a, b = float(x_TNH[t, n, i]), float(x_TNH[t, n, i + 4])
                assert float(turned[t, n, i]) == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-6)
                assert float(turned[t, n, i + 4]) == pytest.approx(b * math.cos(angle) + a * math.sin(angle), abs=1e-6)


def test_scores_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    rope = Rope(theta=100.0)

    def score(at_q: float, at_k: float) -> float:
        turned = [rotate(x, *rope_table(torch.tensor([at]), rope, 8)) for x, at in ((q, at_q), (k, at_k))]
        return float((turned[0] * turned[1]).sum())

    assert score(7.25, 3.0) == pytest.approx(score(14.25, 10.0), abs=1e-5)
    assert score(7.25, 3.0) != pytest.approx(score(8.25, 3.0), abs=1e-3)


def test_linear_scaling_divides_positions() -> None:
    positions = torch.arange(12)
    scaled = rope_table(positions, Rope(theta=1e4, kind="linear", factor=4.0), 8)
    plain = rope_table(positions / 4, Rope(theta=1e4), 8)
    for one, other in zip(scaled, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_dynamic_scaling_does_nothing_up_to_the_trained_length() -> None:
    rope = Rope(theta=1e4, kind="dynamic", factor=2.0, max_position=16)
    for one, other in zip(
        rope_table(torch.arange(16), rope, 8), rope_table(torch.arange(16), Rope(theta=1e4), 8), strict=True
    ):
        assert torch.equal(one, other)


def test_dynamic_scaling_grows_theta_by_the_ntk_formula_beyond_it() -> None:
    rope = Rope(theta=1e4, kind="dynamic", factor=2.0, max_position=16)
    grown = 1e4 * (2.0 * 40 / 16 - 1) ** (8 / 6)
    for one, other in zip(
        rope_table(torch.arange(40), rope, 8), rope_table(torch.arange(40), Rope(theta=grown), 8), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("bad", [{"kind": "yarn"}, {"factor": 0.5}, {"theta": 0.0}])
def test_an_impossible_rope_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Rope"):
        evolve(Rope(theta=1e4), **bad)


@given(st.lists(st.booleans(), max_size=60))
def test_delta_one_gives_the_ordinary_positions_bit_for_bit(visual: list[bool]) -> None:
    positions = v2pe_positions(torch.tensor(visual, dtype=torch.bool), 1.0)
    assert positions.dtype == torch.float32
    assert torch.equal(positions, torch.arange(len(visual), dtype=torch.float32))


def _positions(pattern: str, delta: float) -> list[float]:
    return v2pe_positions(torch.tensor([letter == "v" for letter in pattern]), delta).tolist()


def test_a_quarter_by_hand() -> None:
    assert _positions("ttvvvvtt", 0.25) == [0, 1, 1.25, 1.5, 1.75, 2, 3, 4]


def test_text_behind_a_picture_restarts_at_the_next_whole_number() -> None:
    assert _positions("tvvvvvt", 0.25) == [0, 0.25, 0.5, 0.75, 1, 1.25, 3]
    assert _positions("tvtvvt", 0.5) == [0, 0.5, 2, 2.5, 3, 4]


def test_a_prompt_may_begin_with_a_picture() -> None:
    assert _positions("vvt", 0.5) == [-0.5, 0, 1]


@given(st.lists(st.booleans(), min_size=1, max_size=80), st.sampled_from([2.0**-n for n in range(9)]))
def test_positions_never_go_back_and_text_stands_on_whole_numbers(visual: list[bool], delta: float) -> None:
    positions = v2pe_positions(torch.tensor(visual), delta).tolist()
    assert all(later > earlier for earlier, later in pairwise(positions))
    assert all(position.is_integer() for position, picture in zip(positions, visual, strict=True) if not picture)
    assert positions[-1] <= len(visual) - 1 + 1


@given(st.integers(0, 30), st.integers(1, 8), st.integers(0, 30), st.sampled_from([2.0**-n for n in range(9)]))
def test_whole_tiles_agree_with_the_recursion_of_the_paper(before: int, tiles: int, after: int, delta: float) -> None:
    """p_i = p_{i-1} + 1 for text, + delta for visual tokens; 256 · delta is whole, so nothing is rounded."""
    visual = [False] * (before + 1) + [True] * (256 * tiles) + [False] * after
    expected = [0.0]
    for picture in visual[1:]:
        expected.append(expected[-1] + (delta if picture else 1.0))
    assert v2pe_positions(torch.tensor(visual), delta).tolist() == expected


@pytest.mark.parametrize("delta", [0.0, -1.0, 1.5])
def test_a_delta_outside_its_range_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match="0 < delta <= 1"):
        v2pe_positions(torch.tensor([True]), delta)
