"""Generation: the cache changes nothing, pieces make the text, stop texts do not leak, everything ends."""

import dataclasses
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.generation import Generation, Sampling
from cascadevl.engine.loops import MIN_TOKENS
from cascadevl.engine.simple import GROWTH, Answer, DenseCache, banned_ids, generate
from cascadevl.ops.attention import Layer, dense

PARTS = {family: tiny_parts(family, std=0.2) for family in ("qwen2", "qwen3")}
MESSAGES: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.radial_gradient("L").resize((150, 60))},
            {"type": "text", "text": "q"},
        ],
    }
]


def _run(parts: Parts, sampling: Sampling, messages: Any = MESSAGES) -> tuple[list[str], Generation]:
    *pieces, generation = generate(parts, parts.processor(messages), sampling)
    assert isinstance(generation, Generation)
    return pieces, generation  # type: ignore[return-value]


@pytest.fixture
def scripted() -> Callable[[Callable[[int], int | Tensor]], Parts]:
    """A model whose n-th token (or logits) is what a function says."""
    parts = tiny_parts("qwen3")

    def script(say: Callable[[int], int | Tensor]) -> Parts:
        steps = iter(range(10**9))

        def logits(hidden_TD: Tensor) -> Tensor:
            said = say(next(steps))
            if isinstance(said, Tensor):
                return said
            return torch.nn.functional.one_hot(torch.tensor(said), 272).float() * 50

        parts.model.language_model.logits = logits  # type: ignore[method-assign]
        return parts

    return script


@pytest.mark.parametrize("family", PARTS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_logits_are_those_of_the_full_sequence_at_every_step(family: str, temperature: float) -> None:
    parts = PARTS[family]
    sampling = Sampling(max_new_tokens=40, temperature=temperature, seed=0, logprobs=20, loop_guard=False)
    generation = _run(parts, sampling)[1]
    assert generation.logprobs is not None
    inputs = parts.processor(MESSAGES)
    ids_T = torch.cat([inputs.token_ids, torch.tensor(generation.token_ids)])
    with torch.no_grad():
        logits_TV = parts.model(ids_T, inputs.tiles)[len(inputs.token_ids) - 1 : -1]
    logits_TV[:, list(banned_ids(parts))] = float("-inf")
    logprobs_TV = logits_TV.log_softmax(-1)
    for said, logprobs_V in zip(generation.logprobs, logprobs_TV, strict=True):
        ids = [said.token_id, *(i for i, _ in said.top)]
        values = torch.tensor([said.logprob, *(value for _, value in said.top)])
        torch.testing.assert_close(values, logprobs_V[ids], atol=2e-5, rtol=0)


@given(st.lists(st.sampled_from([1, 2, 7, 60, GROWTH - 1, GROWTH, GROWTH + 1]), min_size=1, max_size=6))
def test_the_cache_grows_in_any_steps_and_equals_dense(steps: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(steps), n, 8, generator=generator) for n in (4, 2, 2))
    for layer in (Layer(index=1, scale=8**-0.5), Layer(index=1, scale=0.4, window=50)):
        cache = DenseCache(2)
        parts = zip(*(x.split(steps) for x in (q, k, v)), strict=True)
        got = torch.cat([cache(layer, *part) for part in parts])
        torch.testing.assert_close(got, dense(layer, q, k, v), atol=1e-5, rtol=1e-5)
        assert cache.lengths == [0, sum(steps)]


def test_pieces_make_the_text_and_the_text_is_that_of_the_tokens() -> None:
    for seed in range(5):
        sampling = Sampling(max_new_tokens=60, temperature=1.5, seed=seed)
        pieces, generation = _run(PARTS["qwen3"], sampling)
        assert "".join(pieces) == generation.text == PARTS["qwen3"].tokenizer.decode(generation.token_ids)
        assert all(pieces), "an empty piece says nothing"


def test_the_same_seed_says_the_same() -> None:
    sampling = Sampling(max_new_tokens=30, temperature=1.0, seed=3)
    first = _run(PARTS["qwen3"], sampling)[1].token_ids
    assert _run(PARTS["qwen3"], sampling)[1].token_ids == first
    assert _run(PARTS["qwen3"], dataclasses.replace(sampling, seed=4))[1].token_ids != first


def test_a_temperature_towards_zero_says_the_greedy_answer() -> None:
    greedy = _run(PARTS["qwen2"], Sampling(max_new_tokens=30))[1]
    for seed in range(3):
        assert _run(PARTS["qwen2"], Sampling(max_new_tokens=30, temperature=1e-6, seed=seed))[1].text == greedy.text


def test_visual_tokens_are_not_said_even_if_the_model_wants_nothing_else(scripted: Callable) -> None:
    want = torch.zeros(272)
    want[list(banned_ids(PARTS["qwen3"]))] = 100.0
    want[65] = 1.0
    for temperature in (0.0, 1.0):
        parts = scripted(lambda _: want)
        generation = _run(parts, Sampling(max_new_tokens=40, temperature=temperature, seed=0))[1]
        assert not set(generation.token_ids) & set(banned_ids(parts))


def test_a_loop_ends_with_its_reason(scripted: Callable) -> None:
    words = scripted(lambda n: 65 + n % 5)
    generation = _run(words, Sampling(max_new_tokens=500))[1]
    assert generation.finish_reason == "repetition"
    assert len(generation.token_ids) == MIN_TOKENS
    endless = scripted(lambda n: 65 + n % 5)
    assert _run(endless, Sampling(max_new_tokens=200, loop_guard=False))[1].finish_reason == "length"


def test_an_honest_list_is_said_to_its_end(scripted: Callable) -> None:
    """ "0 0\n", "0 1\n", …: 60 lines that differ in one token."""
    tokenizer = PARTS["qwen3"].tokenizer
    ids = tokenizer.encode("".join(f"{n // 10} {n % 10}\n" for n in range(60)))
    parts = scripted(lambda n: [*ids, tokenizer.id("<|im_end|>")][n])
    generation = _run(parts, Sampling(max_new_tokens=500))[1]
    assert generation.finish_reason == "stop"
    assert generation.text.splitlines()[-1] == "5 9"


def test_the_end_token_ends_and_is_not_part_of_the_text(scripted: Callable) -> None:
    tokenizer = PARTS["qwen3"].tokenizer
    ids = [*tokenizer.encode("Yes."), tokenizer.id("<|im_end|>"), 65, 66]
    generation = _run(scripted(lambda n: ids[n]), Sampling())[1]
    assert (generation.text, generation.finish_reason) == ("Yes.", "stop")
    assert generation.token_ids == tuple(ids[:5])


def test_an_answer_ends_where_the_model_has_no_more_positions(scripted: Callable) -> None:
    parts = scripted(lambda n: 65 + n)
    room = parts.model.config.decoder.rope.max_position - len(parts.processor("q").token_ids)
    for left in (0, 1, 5):
        generation = _run(scripted(lambda n: 65 + n), Sampling(loop_guard=False), "q" * (room - left + 1))[1]
        assert generation.finish_reason == "length"
        assert len(generation.token_ids) == max(left, 1), "one token needs no position of its own"


def test_usage_counts_what_was_read_and_said() -> None:
    generation = _run(PARTS["qwen3"], Sampling(max_new_tokens=7))[1]
    inputs = PARTS["qwen3"].processor(MESSAGES)
    assert dataclasses.astuple(generation.usage) == (len(inputs.token_ids), 16, len(generation.token_ids), 4, 0)
    assert generation.spec_hash == PARTS["qwen3"].spec.hash
    assert set(generation.timings) == {"prefill_s", "decode_s"}


def test_between_two_pieces_the_caller_may_train() -> None:
    """Inference mode belongs to the generator alone."""
    pieces = generate(PARTS["qwen3"], PARTS["qwen3"].processor("q"), Sampling(max_new_tokens=8))
    next(pieces)
    weight = torch.ones(2, requires_grad=True)
    (weight * 2).sum().backward()
    assert weight.grad is not None
    assert isinstance(list(pieces)[-1], Generation)


TOKENIZER = PARTS["qwen3"].tokenizer
SAID = st.text(alphabet="ab\né漢", max_size=30)
STOPS = st.lists(st.text(alphabet="ab\né漢", min_size=1, max_size=4), max_size=3).map(tuple)


@given(SAID, STOPS)
def test_stop_texts_never_leak_and_nothing_else_is_held_back_for_good(said: str, stop: tuple[str, ...]) -> None:
    """One byte is one token here, so stop texts and characters cross tokens everywhere."""
    answer = Answer(PARTS["qwen3"], Sampling(stop=stop, loop_guard=False))
    shown = ""
    for token_id in TOKENIZER.encode(said):
        shown += answer.push(token_id, room=10**6)
        assert not any(text in shown for text in stop)
        if answer.finish_reason:
            break
    shown += answer.flush()
    ends = [said.find(text) + len(text) for text in stop if text in said]
    heard = said[: min(ends)] if ends else said
    cut = min((heard.find(text) for text in stop if text in heard), default=len(heard))
    assert shown == answer.text == heard[:cut]
    assert answer.finish_reason == ("stop" if ends else None)


@given(SAID.filter(bool), STOPS, st.integers(1, 40))
def test_a_stop_text_counts_even_in_the_last_token(said: str, stop: tuple[str, ...], budget: int) -> None:
    answer = Answer(PARTS["qwen3"], Sampling(stop=stop, max_new_tokens=budget, loop_guard=False))
    shown = ""
    for token_id in TOKENIZER.encode(said):
        shown += answer.push(token_id, room=10**6)
        if answer.finish_reason:
            break
    shown += answer.flush()
    assert not any(text in shown for text in stop)
    assert shown == answer.text
    if len(answer.token_ids) == budget:
        assert answer.finish_reason == ("stop" if len(shown) < len(TOKENIZER.decode(answer.token_ids)) else "length")


def test_a_stop_text_longer_than_a_token_is_cut_out_of_a_stream(scripted: Callable) -> None:
    ids = TOKENIZER.encode("One.\n\nTwo.")
    pieces, generation = _run(scripted(lambda n: ids[n]), Sampling(stop=("\n\n",)))
    assert "".join(pieces) == generation.text == "One."
    assert generation.finish_reason == "stop"


def test_alternating_answers_end(scripted: Callable) -> None:
    said = cycle([65, 66, 67])
    assert _run(scripted(lambda _: next(said)), Sampling())[1].finish_reason == "repetition"
