"""The body of a request, read within its bounds of size and time."""

import asyncio
from contextlib import suppress

from fastapi import Request
from starlette.requests import ClientDisconnect

from cascadevl.serving.admission import Place
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.refusals import Refused

DISCARD_S = 3.0
"""How long what is too large is still read and thrown away: most clients read no answer before they have sent all."""


async def read_body(request: Request, place: Place, config: ServingConfig) -> bytes:
    """Bytes of JSON, held in `place` as they come. Raises Refused, and ClientDisconnect where nobody is left."""
    size_bytes, pieces = 0, []
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which is also what no page in a browser may send elsewhere unasked
        raise Refused(400, f"The content type is {kind!r:.100}: expected 'application/json'.", code="content_type")
    length, more = request.headers.get("content-length", "0"), True
    try:
        async with asyncio.timeout(config.body_s):
            if length.isdecimal() and int(length) > config.max_body_bytes:
                raise _too_large(config)
            while more:
                piece, more = await _receive(request)
                size_bytes += len(piece)
                if size_bytes > config.max_body_bytes:
                    raise _too_large(config)
                place.hold(num_bytes=len(piece))
                pieces.append(piece)
    except TimeoutError:
        raise Refused(408, f"The request did not arrive within {config.body_s:g} s.", code="slow_body") from None
    except Refused:
        if more:
            await _discard(request)
        raise
    return b"".join(pieces)


def _too_large(config: ServingConfig) -> Refused:
    return Refused(
        413,
        f"The body has more than the {config.max_body_bytes:,} bytes that this server takes. Send smaller pictures.",
        code="body_too_large",
    )


async def _receive(request: Request) -> tuple[bytes, bool]:
    """A piece of the body, and whether more will come."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


async def _discard(request: Request) -> None:
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DISCARD_S):
            while (await _receive(request))[1]:
                pass
