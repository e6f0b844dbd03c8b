"""Sampling refuses what cannot be meant."""

import math
from typing import Any

import pytest

from cascadevl.core.config import from_dict, to_dict
from cascadevl.core.errors import ConfigError
from cascadevl.core.generation import Constraint, Sampling


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
        {"presence_penalty": math.inf},
        {"frequency_penalty": math.nan},
        {"min_new_tokens": -1},
        {"min_new_tokens": 513},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {1: math.inf}},
        {"logit_bias": {"1": 1.0}},
        {"logit_bias": 3},
        {"logit_bias": ((1, 1.0), (1, 2.0))},
    ],
)
def test_impossible_values_are_refused_by_name(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(ConfigError, match=f"Sampling: .*{'stop text' if name == 'stop' else name}.*(got|twice)"):
        Sampling(**bad)


@pytest.mark.parametrize("bad", [{"temperature": "hot"}, {"max_new_tokens": 1.5}, {"top_k": "1"}, {"seed": "x"}])
def test_values_of_another_type_are_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Sampling(**bad)


@pytest.mark.parametrize("bad", [3, [3], ("a", None), {"a"}])
def test_stop_texts_are_texts(bad: Any) -> None:
    with pytest.raises(ConfigError, match="stop must be a text or several, got"):
        Sampling(stop=bad)
    assert hash(Sampling(stop=["a"])) == hash(Sampling(stop=("a",)))  # type: ignore[arg-type]


def test_a_single_stop_text_is_taken_as_one() -> None:
    assert Sampling(stop="\n\n").stop == ("\n\n",)  # type: ignore[arg-type]


def test_the_defaults_are_greedy() -> None:
    assert Sampling().temperature == 0


def test_a_bias_has_one_form_whichever_way_it_was_said() -> None:
    sampling = Sampling(logit_bias={7: 1, 3: -2.5})  # type: ignore[arg-type]
    assert sampling.logit_bias == ((3, -2.5), (7, 1.0))
    assert sampling == Sampling(logit_bias=((7, 1.0), (3, -2.5)))
    assert from_dict(Sampling, to_dict(sampling)) == sampling


@pytest.mark.parametrize("more", [{"ignore_eos": True}, {"min_new_tokens": 1}])
def test_a_constraint_and_an_end_that_is_put_off_contradict_each_other(more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="contradict"):
        Sampling(constraint=Constraint("choices", ("a", "b")), **more)
