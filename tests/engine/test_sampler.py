"""From logits to tokens: distributions worked out by hand, log-probabilities, bans and seeds."""

import dataclasses
import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.errors import ConfigError
from cascadevl.core.generation import Generation, Sampling
from cascadevl.engine.engine import Engine
from cascadevl.engine.sampler import Sampler, truncated
from cascadevl.engine.simple import banned_ids, generate

P = torch.tensor([0.4, 0.1, 0.3, 0.15, 0.05])


def _sampler(
    sampling: Sampling,
    *,
    prompt: list[int] | None = None,
    banned: tuple[int, ...] = (),
    stops: tuple[int, ...] = (),
    num: int = 5,
) -> Sampler:
    return Sampler(sampling, torch.tensor(prompt or [], dtype=torch.int64), banned, num, stops)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.4, 0.1, 0.3, 0.15, 0.05]),
        ({"top_k": 2}, [4 / 7, 0, 3 / 7, 0, 0]),
        ({"top_k": 1}, [1, 0, 0, 0, 0]),
        ({"top_k": 9}, [0.4, 0.1, 0.3, 0.15, 0.05]),
        ({"top_p": 0.65}, [4 / 7, 0, 3 / 7, 0, 0]),
        ({"top_p": 0.71}, [40 / 85, 0, 30 / 85, 15 / 85, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0, 0]),
        ({"min_p": 0.3}, [40 / 85, 0, 30 / 85, 15 / 85, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0, 0]),
        # Of the three likeliest, 0.47, 0.35 and 0.18 after renewal, two reach 0.8; both have half of the first.
        ({"top_k": 3, "top_p": 0.8, "min_p": 0.5}, [4 / 7, 0, 3 / 7, 0, 0]),
    ],
)
def test_truncation_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    torch.testing.assert_close(truncated(P, Sampling(**settings)), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("settings", [{"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.3}, {"temperature": 0.5}])
def test_draws_follow_the_distribution(settings: dict[str, Any]) -> None:
    merged: dict[str, Any] = {"temperature": 1.0, "seed": 0, **settings}
    sampling = Sampling(**merged)
    expected = truncated((P.log() / sampling.temperature).softmax(-1), sampling)
    sampler, num = _sampler(sampling), 3000
    counts = Counter(sampler(P.log())[0] for _ in range(num))
    for token, p in enumerate(expected.tolist()):
        assert abs(counts[token] - num * p) <= 4 * math.sqrt(num * p * (1 - p))


LOGITS = st.lists(st.integers(-160, 160), min_size=5, max_size=5, unique=True).map(lambda x: torch.tensor(x) / 8)


@given(LOGITS, st.sampled_from([1e-3, 1e-10, 1e-30, 1e-45, 1e-300]))
def test_a_temperature_towards_zero_is_greedy(logits_V: Tensor, temperature: float) -> None:
    drawn, _ = _sampler(Sampling(temperature=temperature, seed=0))(logits_V)
    assert drawn == _sampler(Sampling())(logits_V)[0] == int(logits_V.argmax())


@given(LOGITS, st.sets(st.integers(0, 4), min_size=1, max_size=4), st.sampled_from([0.0, 1.0, 100.0]))
def test_banned_tokens_are_never_chosen_nor_listed(logits_V: Tensor, banned: set[int], temperature: float) -> None:
    sampling = Sampling(temperature=temperature, seed=0, logprobs=1)
    logits_V[list(banned)] += 100
    chosen, logprob = _sampler(sampling, banned=tuple(banned))(logits_V)
    assert logprob is not None
    assert not {chosen, *(i for i, _ in logprob.top)} & banned


def test_banned_ids_beyond_the_scores_do_no_harm() -> None:
    assert _sampler(Sampling(), banned=(7,))(P)[0] == 0


def test_the_logits_of_the_model_are_left_as_they_are() -> None:
    logits_V = P.log()
    _sampler(Sampling(temperature=0.7, seed=0, repetition_penalty=2.0), prompt=[0], banned=(1,))(logits_V)
    assert torch.equal(logits_V, P.log())


@given(LOGITS, st.integers(0, 5))
def test_logprobs_are_the_log_softmax_before_temperature_and_penalty(logits_V: Tensor, num_top: int) -> None:
    sampling = Sampling(temperature=0.3, top_k=2, repetition_penalty=5.0, seed=1, logprobs=num_top)
    chosen, logprob = _sampler(sampling, prompt=[0, 1])(logits_V)
    assert logprob is not None
    expected = logits_V.double() - logits_V.double().exp().sum().log()
    assert logprob.token_id == chosen
    assert logprob.logprob == pytest.approx(float(expected[chosen]), abs=1e-5)
    assert [i for i, _ in logprob.top] == logits_V.argsort(descending=True)[:num_top].tolist()
    assert [value for _, value in logprob.top] == pytest.approx(
        expected.sort(descending=True).values[:num_top].tolist(), abs=1e-5
    )


def test_no_logprobs_unless_asked_for() -> None:
    assert _sampler(Sampling())(P)[1] is None


def test_the_repetition_penalty_by_hand() -> None:
    """Divides positive and multiplies negative logits of what was in the prompt or has been said."""
    logits_V = torch.tensor([2.0, 1.5, 1.1, -1.0, 0.5])
    sampler = _sampler(Sampling(repetition_penalty=2.0), prompt=[0])
    assert [sampler(logits_V)[0] for _ in range(4)] == [1, 2, 0, 0]  # 2/2 < 1.5; then 1.5/2 < 1.1; then all are halved
    negative = torch.tensor([-1.0, -1.5, -9.0, -9.0, -9.0])
    assert _sampler(Sampling(repetition_penalty=2.0), prompt=[0])(negative)[0] == 1


def test_presence_and_frequency_count_what_was_said_and_not_the_prompt() -> None:
    """mu[j] - count[j] * frequency - (count[j] > 0) * presence (OpenAI's API reference)."""
    logits_V = torch.tensor([2.0, 1.5, 1.1, -1.0, 0.5])
    often = _sampler(Sampling(frequency_penalty=0.6), prompt=[0, 0, 0])
    # 2, then 1.4 < 1.5, then 1.4 > 1.1 > 0.9, then 0.8 < 1.1, then 0.9 > 0.8 and 0.5
    assert [often(logits_V)[0] for _ in range(5)] == [0, 1, 0, 2, 1]
    once = _sampler(Sampling(presence_penalty=0.6), prompt=[0, 0, 0])
    # 2, then 1.4 < 1.5, then 1.4 > 1.1 and 0.9, for ever
    assert [once(logits_V)[0] for _ in range(5)] == [0, 1, 0, 0, 0]
    both = _sampler(Sampling(presence_penalty=0.5, frequency_penalty=0.25))
    assert [both(logits_V)[0] for _ in range(4)] == [0, 1, 0, 2]  # 1.25 < 1.5; then 1.25 > 1.1; then 1.0 < 1.1
    liked = _sampler(Sampling(presence_penalty=-2.0), prompt=[1])
    assert [liked(logits_V)[0] for _ in range(3)] == [0, 0, 0]


def test_a_bias_is_added_before_anything_is_drawn() -> None:
    logits_V = torch.tensor([2.0, 1.5, 1.1, -1.0, 0.5])
    assert _sampler(Sampling(logit_bias=((3, 3.5),)))(logits_V)[0] == 3
    assert _sampler(Sampling(logit_bias=((0, -100.0), (1, -100.0))))(logits_V)[0] == 2
    drawn = _sampler(Sampling(temperature=1.0, seed=0, logit_bias=((4, 100.0),)))
    assert {drawn(logits_V)[0] for _ in range(20)} == {4}


@given(LOGITS, st.sets(st.integers(0, 4), min_size=1, max_size=4), st.sampled_from([0.0, 1.0]))
def test_no_bias_brings_back_what_is_banned(logits_V: Tensor, banned: set[int], temperature: float) -> None:
    sampling = Sampling(temperature=temperature, seed=0, logit_bias=tuple((i, 100.0) for i in banned))
    assert _sampler(sampling, banned=tuple(banned))(logits_V)[0] not in banned


def test_the_end_is_put_off_until_there_are_enough_tokens_or_for_ever() -> None:
    logits_V = torch.tensor([2.0, 9.0, 1.1, 8.0, 0.5])
    sampler = _sampler(Sampling(min_new_tokens=2), stops=(1, 3))
    assert [sampler(logits_V)[0] for _ in range(4)] == [0, 0, 1, 1]
    for_ever = _sampler(Sampling(ignore_eos=True), stops=(1, 3))
    assert [for_ever(logits_V)[0] for _ in range(4)] == [0, 0, 0, 0]


def test_logprobs_are_those_of_the_model_whatever_is_added() -> None:
    sampling = Sampling(logit_bias=((4, 50.0),), presence_penalty=1.0, min_new_tokens=1, logprobs=2)
    chosen, logprob = _sampler(sampling, stops=(0,))(P.log())
    assert logprob is not None
    assert (chosen, logprob.logprob) == (4, pytest.approx(math.log(0.05)))
    assert [i for i, _ in logprob.top] == [0, 2]


@pytest.mark.parametrize(
    "settings",
    [
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.7},
        {"presence_penalty": -1.0, "frequency_penalty": 0.3, "repetition_penalty": 1.3},
        {"logit_bias": {70: 5.0, 80: -100.0, 90: 3.0}},
        {"min_new_tokens": 12, "logit_bias": {258: 100.0}},
        {"ignore_eos": True, "logit_bias": {258: 100.0}},
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_engine_says_what_the_simple_generator_says(settings: dict[str, Any], temperature: float) -> None:
    parts = tiny_parts("qwen3", std=0.2)
    assert parts.stop_ids == (258,)
    # Alone, the two round alike, and the same numbers are drawn from.
    sampling = Sampling(max_new_tokens=24, temperature=temperature, seed=3, loop_guard=False, logprobs=0, **settings)
    *_, expected = generate(parts, parts.processor("q"), sampling)
    assert isinstance(expected, Generation)
    (said,) = Engine(parts).generate(["q"], sampling)
    assert (said.token_ids, said.finish_reason) == (expected.token_ids, expected.finish_reason)
    num = len(said.token_ids)
    if "min_new_tokens" in settings:
        assert (num, said.token_ids[-1]) == (13, 258)
    if "ignore_eos" in settings:
        assert num == 24
        assert 258 not in said.token_ids
    plain = dataclasses.replace(sampling, logprobs=None)
    assert Engine(parts).generate(["q"], plain)[0].token_ids == said.token_ids


def test_a_bias_that_cannot_be_meant_fails_its_own_request() -> None:
    parts = tiny_parts("qwen3")
    engine = Engine(parts)
    for token_id, bias, said in ((10**6, 1.0, "expected 0 to 267"), (257, 1.0, "control token 257")):
        sampling = Sampling(logit_bias=((token_id, bias),))
        with pytest.raises(ConfigError, match=said):
            engine.submit("q", sampling)
        with pytest.raises(ConfigError, match=said):
            list(generate(parts, parts.processor("q"), sampling))
    assert not engine.busy
    for token_id in (*banned_ids(parts), 257):
        assert engine.generate(["q"], Sampling(max_new_tokens=2, logit_bias=((token_id, -100.0),)))[0].error is None


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    def draws(seed: int | None) -> list[int]:
        sampler = _sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler(P.log())[0] for _ in range(30)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)
    assert draws(None) != draws(None)


def test_drawing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for seed in (None, 3):
        _sampler(Sampling(temperature=1.0, seed=seed))(P.log())
    assert torch.equal(torch.rand(3), expected)
