"""Many requests to one server, each with its timeline. A request that fails is counted with its reason, none is
tried again."""

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cascadevl.core.errors import ConfigError
from cascadevl.serving.load.figures import Limits, Timeline, summary
from cascadevl.serving.load.traffic import Pace, Question, Traffic, arrivals, questions
from cascadevl.serving.load.wire import Broken, Events, Target, exchange

CHAT, DONE = "/v1/chat/completions", "[DONE]"
SPOKEN = ("content", "reasoning_content", "reasoning", "tool_calls")
"""What a delta may hold of an answer."""

LOADING_S = 120.0
"""How long a server may say 503, as some do while they load a model."""

DIALECTS: tuple[dict[str, Any], ...] = (
    {"stream_options": {"include_usage": True}, "ignore_eos": True},
    {"stream_options": {"include_usage": True}},
    {"ignore_eos": True},
    {},
)
"""Fields that make lengths exact and tokens counted; a server that refuses what it does not know gets fewer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """A server, and how it wants to be asked."""

    target: Target
    model: str
    dialect: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of every body beside OpenAI's."""
    patience_s: float = 600.0
    """How long an answer may take."""

    def body(self, question: Question, output_tokens: int) -> bytes:
        wanted = {"model": self.model, "messages": question.messages(), "max_tokens": output_tokens, "stream": True}
        return json.dumps({**wanted, "temperature": 0, **self.dialect, **self.extra}).encode()

    async def ask(self, body: bytes) -> Timeline:
        timeline = Timeline(time.perf_counter())
        try:
            async with asyncio.timeout(self.patience_s), exchange(self.target, "POST", CHAT, body) as response:
                if response.status != 200:
                    timeline.problem = f"HTTP {response.status}: {_message(await response.whole())}"
                else:
                    await _listen(timeline, response.body)
        except TimeoutError:
            timeline.problem = f"no whole answer within {self.patience_s:g} s"
        except Broken as error:
            timeline.problem = f"broken: {error}"
        except OSError as error:
            timeline.problem = f"connection: {type(error).__name__}"
        if timeline.problem is not None:
            timeline.ended_s = time.perf_counter()
        return timeline


async def _listen(timeline: Timeline, body: AsyncIterator[bytes]) -> None:
    """Raises Broken for a stream that stops before its end. An answer without any text began when it ended."""
    events, finished = Events(), False
    async for piece in body:
        now = time.perf_counter()
        found = events.push(piece)
        for data in found[: found.index(DONE)] if DONE in found else found:
            finished |= _read(timeline, data, now)
            timeline.ended_s = now
        if DONE in found:
            break
    if not finished:
        raise Broken("the stream stopped before its end")
    if not timeline.piece_s:
        timeline.piece_s.append(timeline.ended_s)


def _read(timeline: Timeline, data: str, now: float) -> bool:
    """Whether the answer has ended with this chunk."""
    try:
        chunk = json.loads(data)
        problem, usage, choices = chunk.get("error"), chunk.get("usage"), chunk.get("choices") or []
        if usage:
            timeline.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            timeline.completion_tokens = int(usage["completion_tokens"])
            timeline.cached_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        spoken = any((choice.get("delta") or {}).get(name) for choice in choices for name in SPOKEN)
        ended = any(choice.get("finish_reason") for choice in choices)
    except (ValueError, TypeError, AttributeError, LookupError):
        raise Broken("an event is no chunk of a chat") from None
    if problem:
        raise Broken(f"error in the stream: {_message(data.encode())}")
    if spoken:
        timeline.piece_s.append(now)
    return ended


def _message(body: bytes) -> str:
    """What an error says of itself, in a line."""
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError, AttributeError):
        error = json.loads(text).get("error", text)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    return " ".join(text.split())[:200]


async def connect(
    target: Target, model: str | None, extra: Mapping[str, Any], patience_s: float, traffic: Traffic
) -> Client:
    """A client that speaks as the server likes it, found by asking. Raises ConfigError where it does not answer."""
    name = model or await _first_model(target)
    body_of = questions(Traffic(requests=1, images_share=float(traffic.images_share > 0)), "first question")[0]
    found = Timeline(0.0)
    for dialect in DIALECTS:
        client = Client(target=target, model=name, dialect=dialect, extra=extra, patience_s=patience_s)
        found = await client.ask(client.body(body_of, 2))
        if found.problem is None:
            return client
        if not found.problem.startswith(("HTTP 400", "HTTP 422")):
            break
    raise ConfigError(f"{target.host}:{target.port} does not answer a first question: {found.problem}.")


async def _first_model(target: Target) -> str:
    where = f"{target.host}:{target.port}"
    end_s = time.monotonic() + LOADING_S
    try:
        while True:
            async with asyncio.timeout(30), exchange(target, "GET", "/v1/models") as response:
                status, body = response.status, await response.whole()
            if status != 503 or time.monotonic() > end_s:
                break
            await asyncio.sleep(0.5)
    except ssl.SSLError as error:
        raise ConfigError(f"No secure connection to {where}: {error.reason}.") from None
    except (OSError, TimeoutError):
        raise ConfigError(f"Nobody answers at {where}. Start the server first: cascadevl serve") from None
    except Broken as error:
        raise ConfigError(f"{where} is no HTTP server: {error}.") from None
    if status == 503:
        raise ConfigError(f"{where} was not ready within {LOADING_S:.0f} s (HTTP 503: {_message(body)}).")
    if status in (401, 403):
        raise ConfigError(f"{where} wants another API key (HTTP {status}: {_message(body)}).")
    try:
        return str(json.loads(body)["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise ConfigError(f"{where} does not list its models as OpenAI does: name one with --model.") from None


async def load(
    client: Client, traffic: Traffic, pace: Pace, seed: str, limits: Limits | None = None
) -> tuple[dict[str, Any], list[Timeline]]:
    """What one load felt like. `client` in it: how late requests were sent and how busy this process was, that
    somebody sees when it measured itself."""
    # Made before the clock starts.
    bodies = [client.body(question, traffic.output_tokens) for question in questions(traffic, seed)]
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    timelines, late_s = await drive(client, bodies, pace, seed)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    own = {"late_ms_p99": round(1000 * float(np.percentile(late_s, 99)), 3), "busy": round(cpu_s / wall_s, 3)}
    return {**summary(timelines, limits), "client": own}, timelines


async def drive(client: Client, bodies: Sequence[bytes], pace: Pace, seed: str) -> tuple[list[Timeline], list[float]]:
    """Timelines in the order of the bodies, and how much later than planned each was ready to be sent."""
    due_s = arrivals(len(bodies), pace, seed)
    places = asyncio.Semaphore(pace.concurrency or len(bodies))
    started, late_s = time.perf_counter(), list[float]()

    async def one(number: int) -> Timeline:
        await asyncio.sleep(started + due_s[number] - time.perf_counter())
        late_s.append(max(0.0, time.perf_counter() - started - due_s[number]))
        async with places:
            return await client.ask(bodies[number])

    return list(await asyncio.gather(*map(one, range(len(bodies))))), late_s
