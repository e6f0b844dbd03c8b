"""Sampling refuses what cannot be meant."""

import math
from typing import Any

import pytest

from cascadevl.core.errors import ConfigError
from cascadevl.core.generation import Sampling


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": math.nan},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
        {"logprobs": -1},
        {"logprobs": 21},
        {"stop": ("",)},
        {"seed": 2**64},
    ],
)
def test_impossible_values_are_refused_by_name(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(ConfigError, match=f"Sampling: .*{'stop text' if name == 'stop' else name}.*got"):
        Sampling(**bad)


@pytest.mark.parametrize("bad", [{"temperature": "hot"}, {"max_new_tokens": 1.5}, {"top_k": "1"}, {"seed": "x"}])
def test_values_of_another_type_are_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Sampling(**bad)


def test_a_single_stop_text_is_taken_as_one() -> None:
    assert Sampling(stop="\n\n").stop == ("\n\n",)  # type: ignore[arg-type]


def test_the_defaults_are_greedy() -> None:
    assert Sampling().temperature == 0
