"""Thousands of random mixes of requests: every answer is that of the simple generator, every page comes back.

A mix counts only if in it a request was pre-empted, one was aborted, and one found pages of another. Prompts are
few, so that their answers are computed once by `engine/simple.py`, and prepared once, so that mixes are quick.
"""

import os
import random
from collections import Counter
from functools import cache

import numpy as np
import pytest
from PIL import Image

from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.generation import Generation, Sampling
from cascadevl.core.messages import Conversation
from cascadevl.engine.config import EngineConfig
from cascadevl.engine.engine import Engine, Ticket
from cascadevl.engine.kv_cache import PagedCache
from cascadevl.engine.simple import generate
from cascadevl.preprocessing.processor import ModelInputs

MIXES = 5000
SHARDS = 10
MOST_TOKENS = 10
NUM_PROMPTS = 24


def _picture(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


@cache
def _setting() -> tuple[Parts, dict[str, ModelInputs], dict[str, tuple[int, ...]]]:
    """A model, prepared prompts by name, and the greedy answer to each."""
    parts = tiny_parts("qwen3", std=0.4, num_layers=1)
    rng = random.Random(0)
    starts = ["Count from one: ", "List the colours: ", ""]
    inputs = {}
    for number in range(NUM_PROMPTS):
        text = rng.choice(starts) + "".join(rng.choices("abcdef ", k=rng.randint(1, 30)))
        pictures = [_picture(rng.randint(0, 2), rng.choice([(30, 30), (60, 120)]))] if number % 4 == 0 else []
        # No persona: short prompts are made of few pages, and mixes of few tokens.
        inputs[f"prompt {number}"] = parts.processor(Conversation.ask(text, pictures, system=starts[number % 3]))
    answers = {}
    for name, prepared in inputs.items():
        *_, generation = generate(parts, prepared, Sampling(max_new_tokens=MOST_TOKENS, loop_guard=False))
        assert isinstance(generation, Generation)
        answers[name] = generation.token_ids

    return parts, inputs, answers


def _run(mix: int) -> set[str]:
    """One mix; returns which of the three things happened in it."""
    parts, inputs, answers = _setting()
    rng = random.Random(mix)
    page_size = rng.choice([1, 2, 3, 5])
    wanted = [(rng.choice(list(inputs)), rng.randint(5, MOST_TOKENS)) for _ in range(3)]
    wanted.append((wanted[0][0], rng.randint(5, MOST_TOKENS)))  # one prompt comes twice
    pages = [-(-(len(inputs[name].token_ids) + num) // page_size) for name, num in wanted]
    # Room for two prompts, and hardly for what is said about them.
    prompts = sorted(-(-len(inputs[name].token_ids) // page_size) for name, _ in wanted)
    num_pages = max(*pages, prompts[0] + prompts[1] + rng.randint(0, 3))
    config = EngineConfig(
        page_size=page_size,
        cache_bytes=(num_pages + 1) * PagedCache.page_bytes(parts.model.config.decoder, page_size, "float32"),
        max_running=rng.randint(3, 4),
        max_step_tokens=rng.choice([16, 48, 300]),
        max_step_tiles=rng.choice([1, 16]),
        batch_invariant=mix % 8 == 0,
    )
    engine = Engine(parts, config)
    assert engine.pool.num_pages == num_pages
    pending, tickets = list(wanted), list[tuple[Ticket, str, int]]()
    to_abort, abort_at = rng.randrange(len(wanted)), rng.randint(2, 10)
    happened, steps = set[str](), 0
    while pending or engine.busy:
        while pending and rng.random() < 0.9:
            name, num = pending.pop(0)
            sampling = Sampling(max_new_tokens=num, loop_guard=False)
            ticket = engine.submit(inputs[name], sampling, priority=rng.choice([0, 0, 1]), client=rng.choice("ab"))
            tickets.append((ticket, name, num))
        engine.step()
        engine.check_integrity()
        # Who was pre-empted before may only have found its own pages again.
        if any(request.num_cached and not request.num_preempted for request in engine.scheduler.running):
            happened.add("shared prefix")
        steps += 1
        if steps >= abort_at and to_abort < len(tickets):
            engine.abort(tickets[to_abort][0])
            engine.check_integrity()
            abort_at = 10**9
        assert steps < 500, "the engine goes round in circles"
    if engine.scheduler.num_preemptions:
        happened.add("pre-emption")
    for ticket, name, num in tickets:
        generation = ticket.generation
        assert generation is not None
        expected = answers[name][:num]
        if generation.finish_reason == "abort":
            happened.add("abort")
            assert generation.token_ids == expected[: len(generation.token_ids)]
        else:
            assert generation.token_ids == expected, f"mix {mix}, {name}"
    assert engine.pool.num_available == num_pages, "a page was not given back"
    return happened


@pytest.mark.parametrize("shard", range(SHARDS))
def test_any_mix_gives_the_answers_of_the_simple_generator(shard: int) -> None:
    counted, drawn = 0, Counter[str]()
    mix = shard * 10**6
    wanted = int(os.environ.get("CASCADEVL_MIXES", MIXES)) // SHARDS
    while counted < wanted:
        happened = _run(mix)
        drawn.update(happened)
        counted += len(happened) == 3
        mix += 1
        assert counted >= (mix - shard * 10**6) // 20 - 5, f"too few mixes have all three: {drawn}"
