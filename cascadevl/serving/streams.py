"""Server-sent events, and work that ends when the client hangs up."""

import asyncio
import json
import traceback
from collections.abc import AsyncIterator, Coroutine
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cascadevl.core.errors import CascadeError
from cascadevl.serving.refusals import Refused, refusal

T = TypeVar("T")

Chunk = dict[str, Any] | str
"""What is sent at a time; a text is one that was written as JSON already."""
JSON = json.JSONEncoder(ensure_ascii=False)
"""One for all chunks: `json.dumps` with settings makes one for each."""
LAST_WORDS_S = 5.0
"""How long a client that reads nothing may keep us from telling it that its time is over."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client hangs up. Raises ClientDisconnect then.

    The body must have been read: what is received after it can only be the end.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def too_late() -> Refused:
    """The deadline has passed; asking again would only take as long."""
    return Refused(
        503,
        "The answer was not finished within its deadline. Ask for less, or give more time with deadline_s.",
        code="deadline_exceeded",
        headers={"x-should-retry": "false"},  # the official client heeds this
    )


class EventStream(Response):
    """Chunks as server-sent events; `held` is let go when the stream has ended, however it ends."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[Chunk], deadline: float, held: ExitStack, *, typed: bool = False) -> None:
        """`deadline`: in the event loop's time. `typed`: chunks say of what type they are, as of Responses."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chunks, self._deadline, self._held = chunks, deadline, held
        self._typed, self._num_sent = typed, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held, suppress(ClientDisconnect, TimeoutError):
            await unless_gone(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with asyncio.timeout_at(self._deadline):
                async for chunk in self._chunks:
                    await send(self._event(chunk))
                    self._num_sent += 1
        except TimeoutError:
            await self._last_words(send, too_late())
        except Exception as error:  # the status is sent: the error goes the way of the chunks
            if not isinstance(error, CascadeError):
                traceback.print_exc()
            await self._last_words(send, refusal(error))
        else:
            await self._last_words(send, None)

    async def _last_words(self, send: Send, error: Refused | None) -> None:
        async with asyncio.timeout(LAST_WORDS_S):
            if error is not None:
                # Clients of Responses look for the words on the outside, those of chats, and the official one, inside.
                outside = {"type": "error", "sequence_number": self._num_sent, **_without_type(error)}
                await send(self._event({**(outside if self._typed else {}), **error.body}))
            await send({"type": "http.response.body", "body": b"" if self._typed else b"data: [DONE]\n\n"})

    def _event(self, chunk: Chunk) -> dict[str, Any]:
        if isinstance(chunk, str):
            text = f"data: {chunk}\n\n"
        else:
            name = f"event: {chunk['type']}\n" if self._typed else ""
            text = f"{name}data: {JSON.encode(chunk)}\n\n"
        return {"type": "http.response.body", "body": text.encode(errors="replace"), "more_body": True}


def _without_type(error: Refused) -> dict[str, Any]:
    return {key: value for key, value in error.body["error"].items() if key != "type"}
