"""The engine's thread without HTTP."""

import asyncio
import dataclasses
from contextlib import contextmanager

import pytest

import cascadevl.serving.loop
from cascadevl.core.errors import MessageError
from cascadevl.core.generation import Sampling
from cascadevl.engine.config import EngineConfig
from cascadevl.engine.engine import Engine
from cascadevl.serving.loop import Ended, EngineLoop, Job, Said
from cascadevl.serving.refusals import Refused


@contextmanager
def started(parts, **config):
    engine = Engine(parts, EngineConfig(cache_bytes=1_000_000, **config))
    loop = EngineLoop(engine)
    loop.start()
    try:
        yield engine, loop
    finally:
        loop.stop()


async def events_of(loop, job):
    loop.submit(job)
    return [event async for event in job]


def test_pieces_and_log_probabilities_come_once_and_whole(parts):
    inputs = parts.processor("Hello")
    sampling = Sampling(max_new_tokens=12, logprobs=1, temperature=1.0, seed=1)

    async def ask(loop):
        return await events_of(loop, Job([inputs], sampling, num=2))

    with started(parts) as (_, loop):
        events = asyncio.run(ask(loop))
    for number in (0, 1):
        (alone,) = Engine(parts).generate(["Hello"], dataclasses.replace(sampling, seed=1 + number))
        mine = [event for event in events if event.number == number]
        assert "".join(event.text for event in mine if isinstance(event, Said)) == alone.text
        assert [entry.token_id for event in mine for entry in event.logprobs] == list(alone.token_ids)
        assert isinstance(mine[-1], Ended)
        assert mine[-1].generation.text == alone.text


@pytest.mark.parametrize("tell_s", [0.0, 60.0])
def test_pieces_wait_for_others_but_the_first_and_the_end_do_not(parts, monkeypatch, tell_s):
    monkeypatch.setattr(cascadevl.serving.loop, "TELL_S", tell_s)
    sampling = Sampling(max_new_tokens=12, loop_guard=False)

    async def ask(loop):
        return await events_of(loop, Job([parts.processor("Hello")], sampling))

    with started(parts) as (_, loop):
        *said, ended = asyncio.run(ask(loop))
    assert isinstance(ended, Ended)
    assert len(said) == 2 if tell_s else len(said) > 4
    assert "".join(event.text for event in said) == ended.generation.text


def test_what_the_engine_refuses_is_raised_where_it_was_asked(parts):
    inputs = dataclasses.replace(parts.processor("Hello"), token_ids=parts.processor("Hello").token_ids.repeat(10_000))
    good = parts.processor("Hello")

    async def ask(loop):
        with pytest.raises(MessageError, match="prompt has"):
            await events_of(loop, Job([good, inputs], Sampling(max_new_tokens=2)))
        return await events_of(loop, Job([good], Sampling(max_new_tokens=2)))

    with started(parts) as (engine, loop):
        assert isinstance(asyncio.run(ask(loop))[-1], Ended)
        assert not engine.busy


def test_after_the_end_everybody_is_told_so(parts):
    inputs = parts.processor("Hello")

    async def ask(loop):
        waiting = Job([inputs], Sampling(max_new_tokens=5_000, loop_guard=False))
        loop.submit(waiting)
        events = aiter(waiting)
        assert isinstance(await anext(events), Said)
        await asyncio.to_thread(loop.stop)
        with pytest.raises(Refused, match="ended") as raised:
            async for _ in events:
                pass
        assert raised.value.status == 503
        with pytest.raises(Refused, match="ended"):
            loop.submit(Job([inputs], Sampling()))

    with started(parts) as (engine, loop):
        assert loop.problem() is None
        asyncio.run(ask(loop))
        assert "ended" in (loop.problem() or "")
        assert not engine.busy


def test_a_cancelled_job_gives_its_pages_back(parts):
    inputs = parts.processor("Hello")

    async def ask(loop, engine):
        job = Job([inputs], Sampling(max_new_tokens=5_000, loop_guard=False), num=3)
        loop.submit(job)
        assert isinstance(await anext(aiter(job)), Said)
        loop.cancel(job)
        loop.cancel(job)
        while engine.busy:
            await asyncio.sleep(0.01)

    with started(parts) as (engine, loop):
        asyncio.run(ask(loop, engine))
        assert engine.stats()["pages_available"] == engine.stats()["pages"]
