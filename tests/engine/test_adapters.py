"""Requests with different adapters are computed together, each as if it were alone."""

import dataclasses

import pytest
import torch

from cascadevl.checkpoints.adapters import attach, read_adapter
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.errors import ConfigError
from cascadevl.core.generation import Generation, Sampling
from cascadevl.core.messages import Conversation
from cascadevl.engine.config import EngineConfig
from cascadevl.engine.engine import Engine, Ticket
from cascadevl.engine.simple import generate
from cascadevl.models.linear import adapted, use
from tests.checkpoints.adapter_folders import random_lora, write
from tests.engine.pictures import picture

LONG = Sampling(max_new_tokens=12, loop_guard=False)
QUESTIONS = [Conversation.ask(f"Question {n}?", [picture(1)] if n % 2 else []) for n in range(4)]
WANTED: list[tuple[str, ...]] = [(), ("words",), ("tower",), ("words", "tower")]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """One adapter changes the decoder, the other the tower and the projector too."""
    parts = dataclasses.replace(tiny_parts("qwen3", std=0.3), stop_ids=())
    names = dict(parts.model.named_modules())

    def shapes(*beginnings):
        linears = {n: m for n, m in names.items() if isinstance(m, torch.nn.Linear) and n.startswith(beginnings)}
        return {n: (m.out_features, m.in_features) for n, m in linears.items()}

    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, beginnings) in enumerate(
        {"words": ("language_model.model",), "tower": ("vision_model.encoder", "mlp1", "language_model.model")}.items()
    ):
        lora = random_lora(shapes(*beginnings), seed=seed, dora=name == "words")
        attach(parts.model, read_adapter(write(folder / name, lora, use_dora=name == "words"), parts.model), name)
    return parts


def _ended(ticket: Ticket) -> Generation:
    assert ticket.generation is not None
    return ticket.generation


def _alone(parts: Parts, question: Conversation, names: tuple[str, ...]) -> tuple[int, ...]:
    use(parts.model, *names)
    try:
        *_, generation = generate(parts, parts.processor(question), LONG)
    finally:
        use(parts.model)
    assert isinstance(generation, Generation)
    return generation.token_ids


@pytest.mark.parametrize("invariant", [False, True])
def test_each_request_has_its_own_adapters(parts, invariant):
    engine = Engine(parts, EngineConfig(cache_bytes=2_000_000, batch_invariant=invariant, max_step_tokens=64))
    tickets = {
        (number, names): engine.submit(question, LONG, adapters=names)
        for number, question in enumerate(QUESTIONS)
        for names in WANTED
    }
    while engine.busy:
        engine.step()
        engine.check_integrity()
    for number, question in enumerate(QUESTIONS):
        said = {names: _ended(tickets[number, names]).token_ids for names in WANTED}
        assert said == {names: _alone(parts, question, names) for names in WANTED}
        assert len(set(said.values())) == len(WANTED), "every adapter is felt"


def test_what_is_in_use_is_the_default_and_is_left_alone(parts):
    use(parts.model, "words")
    try:
        engine = Engine(parts, EngineConfig(cache_bytes=2_000_000))
        default, base = engine.submit(QUESTIONS[0], LONG), engine.submit(QUESTIONS[0], LONG, adapters=())
        while engine.busy:
            engine.step()
        assert all(linear.in_use in (("words",), ()) for linear in adapted(parts.model).values())
        assert any(linear.in_use for linear in adapted(parts.model).values())
    finally:
        use(parts.model)
    assert _ended(default).token_ids == _alone(parts, QUESTIONS[0], ("words",))
    assert _ended(base).token_ids == _alone(parts, QUESTIONS[0], ())


def test_pages_are_not_shared_between_adapters(parts):
    engine = Engine(parts, EngineConfig(cache_bytes=2_000_000, page_size=2))
    engine.generate([QUESTIONS[0]], LONG)
    for names, cached in (((), True), (("words",), False), (("words",), True), (("tower",), False)):
        ticket = engine.submit(QUESTIONS[0], LONG, adapters=names)
        while engine.busy:
            engine.step()
        assert bool(_ended(ticket).usage.cached_tokens) == cached


def test_an_adapter_that_is_not_there_is_refused(parts):
    with pytest.raises(ConfigError, match=r"no adapter 'songs'; attached: "):
        Engine(parts).submit("Hello", adapters=["songs"])
