"""The routes. A request's life: gate, a place, its body, inputs made in the pool, the engine's thread, its answer.

Whatever happens on the way, the place is given back and the engine told that nobody waits any more.
"""

import asyncio
import math
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cascadevl import __version__
from cascadevl.checkpoints.parts import Parts
from cascadevl.core.messages import Conversation
from cascadevl.engine.config import EngineConfig
from cascadevl.engine.constraints import token_bytes
from cascadevl.engine.engine import Engine
from cascadevl.models.linear import adapter_names
from cascadevl.preprocessing.processor import ModelInputs
from cascadevl.serving.admission import Admission, Place
from cascadevl.serving.arrival import read_body
from cascadevl.serving.bodies import ChatBody, CompletionBody, ResponseBody, TokenizeBody
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.gate import Gate, response
from cascadevl.serving.loop import Ended, EngineLoop, Job, Said
from cascadevl.serving.metrics import CONTENT_TYPE, Metrics
from cascadevl.serving.openai import Order, read_chat, read_completion, read_tokenize
from cascadevl.serving.page import add_page
from cascadevl.serving.prepare import Preparer
from cascadevl.serving.refusals import Refused, refusal
from cascadevl.serving.replies import ChatReply, CompletionReply, Reply
from cascadevl.serving.response_events import ResponseReply
from cascadevl.serving.responses import read_response
from cascadevl.serving.streams import EventStream, too_late, unless_gone

Read = Callable[[bytes, Sequence[str], ServingConfig], Order]
Answer = Callable[["Call", Order, list[ModelInputs]], Awaitable[Response]]

REPLIES: dict[str, type[Reply]] = {"chat": ChatReply, "completions": CompletionReply, "responses": ResponseReply}
"""API of an order -> in whose form it is answered."""


@dataclass(slots=True)
class Call:
    """One request on its way."""

    request: Request
    place: Place
    held: ExitStack
    """What is given back when it has ended, however it ends."""
    deadline: float = math.inf
    """In the event loop's time."""


class Service:
    """One model, its engine and everything between it and HTTP.

    Adapters that are attached to the model are models of their own to whoever asks, by their names.
    """

    def __init__(self, parts: Any, config: ServingConfig | None = None, engine: EngineConfig | None = None) -> None:
        """`parts`: a Bundle or the Parts of one."""
        self.parts: Parts = getattr(parts, "parts", parts)
        self.config = config or ServingConfig()
        self.models_by_name = {self.parts.name: (), **{name: (name,) for name in adapter_names(self.parts.model)}}
        """Name -> the adapters that it wants; the model itself comes first."""
        self.engine = Engine(self.parts, engine)
        self.loop = EngineLoop(self.engine, hang_s=self.config.hang_s)
        self.preparer = Preparer(self.parts, self.config)
        self.admission = Admission(self.config)
        self.metrics = Metrics(self.stats)
        self._spellings = token_bytes(self.parts.tokenizer)
        self._started = int(time.time())

    def stats(self) -> dict[str, float]:
        """Gauges and counters of engine and server, asked in the event loop."""
        return {
            **self.loop.stats,
            "queue_requests": len(self.admission),
            "queue_tokens": self.admission.num_tokens,
            "queue_bytes": self.admission.num_bytes,
            "heartbeat_age_s": self.loop.age_s,
            "failed_steps": self.loop.num_failed_steps,
            "decoders_lost": self.preparer.num_lost,
            "tasks": len(asyncio.all_tasks()),
        }

    # Routes

    async def chat(self, request: Request) -> Response:
        return await self._post(request, read_chat, self._answer)

    async def completions(self, request: Request) -> Response:
        return await self._post(request, read_completion, self._answer)

    async def responses(self, request: Request) -> Response:
        return await self._post(request, read_response, self._answer)

    async def tokenize(self, request: Request) -> Response:
        return await self._post(request, read_tokenize, self._tokens)

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": list(map(self._model, self.models_by_name))}

    async def model(self, name: str) -> Response:
        if name not in self.models_by_name:
            return response(Refused(404, f"There is no model {name!r:.200} here.", code="model_not_found"))
        return JSONResponse(self._model(name))

    async def health(self) -> Response:
        """Of the engine's loop: a web server that answers while nothing is computed is not healthy."""
        problem = "The server is stopping." if self.admission.draining else self.loop.problem()
        facts = {"status": problem or "ok", "heartbeat_age_s": round(self.loop.age_s, 3)}
        return JSONResponse(facts, 503 if problem else 200)

    async def prometheus(self) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    def _model(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "parent": self.parts.name if self.models_by_name[name] else None,
            "created": self._started,
            "owned_by": "cascadevl",
            "max_model_len": self.parts.model.config.decoder.rope.longest,
            "spec_hash": self.parts.spec.hash,
        }

    # A request

    async def _post(self, request: Request, read: Read, answer: Answer) -> Response:
        """Every way in which a request can end."""
        try:
            with ExitStack() as held:
                call = Call(request, held.enter_context(self.admission.place(request.url.path)), held)
                body = await read_body(request, call.place, self.config)
                return await unless_gone(request.receive, self._timed(call, read, body, answer))
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it; it is counted
        except TimeoutError:
            return response(too_late())
        except Exception as error:  # the border of a request
            refused = refusal(error)
            if refused.status == 500:
                traceback.print_exception(error)
            return response(refused)

    async def _timed(self, call: "Call", read: Read, body: bytes, answer: Answer) -> Response:
        started = asyncio.get_running_loop().time() - (time.perf_counter() - call.place.started_s)
        call.deadline = started + self.config.deadline_s
        async with asyncio.timeout_at(call.deadline) as timer:
            order, prompts = await self.preparer.run(partial(self._prepare, read, body))
            if order.deadline_s is not None:
                call.deadline = min(call.deadline, started + order.deadline_s)
                timer.reschedule(call.deadline)
            self.metrics.prepare_s.labels(call.place.api).observe(time.perf_counter() - call.place.started_s)
            return await answer(call, order, prompts)

    def _prepare(self, read: Read, body: bytes) -> tuple[Order, list[ModelInputs]]:
        order = read(body, tuple(self.models_by_name), self.config)
        return order, [
            self.preparer.chat(prompt, order.max_tiles)
            if isinstance(prompt, Conversation)
            else self.preparer.text(prompt)
            for prompt in order.prompts
        ]

    async def _answer(self, call: "Call", order: Order, prompts: list[ModelInputs]) -> Response:
        longest, wanted = self.parts.model.config.decoder.rope.longest, order.sampling.max_new_tokens
        lengths = [len(inputs.token_ids) for inputs in prompts]
        call.place.hold(
            tokens=sum(length + order.num * min(wanted, max(0, longest - length)) for length in lengths),
            num_bytes=sum(inputs.tiles.nbytes for inputs in prompts),
        )
        client = call.request.client.host if call.request.client else ""
        model = order.model or self.parts.name
        job = Job(prompts, order.sampling, order.num, client, self.models_by_name[model])
        self.loop.submit(job)
        call.held.callback(self.loop.cancel, job)
        reply = REPLIES[order.api](order, prompts, model, self._spellings)
        events = self._watched(job, call.place)
        # Whatever is wrong with the request as a whole comes first, and still has a status of its own.
        first = await anext(events)
        if order.stream:
            typed = order.api == "responses"
            return EventStream(reply.chunks(first, events), call.deadline, call.held.pop_all(), typed=typed)
        answers = {event.number: event.generation async for event in _after(first, events) if isinstance(event, Ended)}
        return JSONResponse(reply.whole(answers))

    async def _watched(self, job: Job, place: Place) -> AsyncIterator[Said | Ended]:
        """Events of a job, counted. An answer that failed ends them all."""
        first_s: dict[int, float] = {}
        async for event in job:
            first_s.setdefault(event.number, time.perf_counter())
            if isinstance(event, Ended):
                self.metrics.ended(place.api, event.generation, place.started_s, first_s[event.number])
                if event.generation.error is not None:
                    raise event.generation.error
            yield event

    async def _tokens(self, call: "Call", order: Order, prompts: list[ModelInputs]) -> Response:
        inputs = prompts[0]
        return JSONResponse(
            {
                "count": len(inputs.token_ids),
                "max_model_len": self.parts.model.config.decoder.rope.longest,
                "tokens": inputs.token_ids.tolist(),
                "visual_tokens": inputs.num_visual_tokens,
                "tiles": len(inputs.tiles),
                "grids": [list(grid) for grid in inputs.grids],
                "spec_hash": inputs.spec_hash,
            }
        )


def build_app(service: Service, api_key: str | None = None) -> FastAPI:
    """The ASGI application; the engine's thread lives as long as its lifespan."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.loop.start()
        try:
            yield
        finally:
            service.preparer.close()
            await asyncio.to_thread(service.loop.stop)

    app = FastAPI(title="CascadeVL", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    for path, kind, endpoint in (
        ("/v1/chat/completions", ChatBody, service.chat),
        ("/v1/completions", CompletionBody, service.completions),
        ("/v1/responses", ResponseBody, service.responses),
        ("/tokenize", TokenizeBody, service.tokenize),
    ):
        # The body is read by us, in a thread and within its bounds: FastAPI only publishes what it looks like.
        place = f"#/paths/{path.replace('/', '~1')}/post/requestBody/content/application~1json/schema/$defs"
        content = {"application/json": {"schema": kind.model_json_schema(ref_template=f"{place}/{{model}}")}}
        app.add_api_route(
            path, endpoint, methods=["POST"], openapi_extra={"requestBody": {"required": True, "content": content}}
        )
    for path, endpoint in (
        ("/v1/models", service.models),
        ("/v1/models/{name:path}", service.model),
        ("/health", service.health),
        ("/metrics", service.prometheus),
    ):
        app.add_api_route(path, endpoint, methods=["GET"])
        app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    add_page(app)
    app.add_exception_handler(HTTPException, _no_route)
    known = {route.path for route in app.routes if isinstance(route, APIRoute)}

    def count(path: str, status: int) -> None:
        service.metrics.responses.labels(path if path in known else "other", status).inc()

    app.add_middleware(Gate, config=service.config, api_key=api_key, count=count)
    return app


async def _no_route(request: Request, error: Exception) -> Response:
    """What is not found, or asked for in the wrong way, in OpenAI's form too."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path!r:.200}"
    return response(Refused(error.status_code, f"{where}: {error.detail}.", code="no_such_route"))


async def _after(first: Said | Ended, events: AsyncIterator[Said | Ended]) -> AsyncIterator[Said | Ended]:
    yield first
    async for event in events:
        yield event
