"""Who comes in: the key and the address asked for, before a byte of the body is read. Everything but /health.

The chat page and its files need no key: they hold nothing, and ask for the key themselves.
"""

import hashlib
import hmac
import re
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cascadevl.serving.config import ServingConfig
from cascadevl.serving.page import FILES
from cascadevl.serving.refusals import Refused

OPEN_PATHS = ("/health",)
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


class Gate:
    """ASGI middleware, outermost."""

    def __init__(
        self, app: ASGIApp, *, config: ServingConfig, api_key: str | None, count: Callable[[str, int], None]
    ) -> None:
        """`count(path, status)` is told of every response."""
        self._app, self._config, self._count = app, config, count
        self._key_hash = _hash(api_key) if api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":  # no web sockets here
            return await send({"type": "websocket.close", "code": 1008})

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope["path"], message["status"])
            await send(message)

        refused = self._check(scope)
        answer: Any = self._app if refused is None else response(refused)
        await answer(scope, receive, counted)

    def _check(self, scope: Scope) -> Refused | None:
        headers = Headers(scope=scope)
        if scope["path"] in OPEN_PATHS:
            return None
        if self._key_hash is not None:
            if scope["path"] in FILES:
                return None
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() == "bearer" and hmac.compare_digest(_hash(key.strip()), self._key_hash):
                return None
            return Refused(
                401,
                "A key is needed: send the header 'Authorization: Bearer KEY'. This one is missing or wrong.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        # Without a key, a page in a browser whose name suddenly means this machine must not get in (DNS rebinding).
        host = re.sub(r":\d+$", "", headers.get("host", "").lower())
        if self._config.loopback and host not in (*LOCAL_HOSTS, self._config.host):
            return Refused(
                400, f"{host!r:.200} is not a name of this machine. Ask for localhost, or set a key.", code="wrong_host"
            )
        return None


def response(refused: Refused) -> JSONResponse:
    return JSONResponse(refused.body, refused.status, headers=refused.headers)


def _hash(key: str) -> bytes:
    """Compared instead of keys, whose lengths may differ."""
    return hashlib.sha256(key.encode(errors="replace")).digest()
