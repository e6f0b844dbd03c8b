"""As much HTTP/1.1 and SSE as a client of load needs: one request on a connection of its own, its body as it comes.

Ours, so that no library's pools and retries stand between the clock and the server, and so that a machine that only
measures needs nothing installed. RFC 9112 and https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cascadevl.core.errors import ConfigError

PIECE_BYTES = 65536


class Broken(Exception):
    """A response that ended, or spoke, otherwise than HTTP says."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server."""

    host: str
    port: int
    path: str = ""
    """Before that of each route, without /v1."""
    secure: bool = False
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str, api_key: str | None = None) -> "Target":
        """Raises ConfigError."""
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError(f"{url!r} is no address of a server: {error}.") from None
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
            raise ConfigError(f"{url!r} is no address of a server; expected such as http://127.0.0.1:8000.")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ConfigError("The API key holds characters that no header may have.")
        secure = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(host, port or (443 if secure else 80), path, secure, api_key)

    def head(self, method: str, path: str, num_bytes: int) -> bytes:
        """Of a request."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{method} {self.path}{path} HTTP/1.1", f"Host: {host}:{self.port}", "Connection: close"]
        lines += ["Accept: */*", "Content-Type: application/json", f"Content-Length: {num_bytes}"]
        if self.api_key is not None:
            lines.append(f"Authorization: Bearer {self.api_key}")
        return "\r\n".join([*lines, "", ""]).encode()


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: dict[str, str]
    body: AsyncIterator[bytes]
    """In pieces, as they come. Raises Broken."""

    async def whole(self) -> bytes:
        return b"".join([piece async for piece in self.body])


@asynccontextmanager
async def exchange(target: Target, method: str, path: str, body: bytes = b"") -> AsyncIterator[Response]:
    """Raises OSError where nobody listens, Broken for what is no HTTP."""
    secure: Any = ssl.create_default_context() if target.secure else None
    reader, writer = await asyncio.open_connection(target.host, target.port, ssl=secure)
    try:
        writer.write(target.head(method, path, len(body)) + body)
        # A server may answer, and close, before it has read everything: what it said counts.
        with suppress(ConnectionError):
            await writer.drain()
        status, headers = await _head(reader)
        async with aclosing(_body(reader, headers)) as pieces:
            yield Response(status, headers, pieces)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    while True:
        version, _, rest = (await _line(reader)).partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise Broken("the answer is no HTTP/1.1")
        headers = {}
        while line := await _line(reader):
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        if int(rest[:3]) >= 200:  # what is below only announces
            return int(rest[:3]), headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncGenerator[bytes, None]:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        chunks = Chunks()
        while not chunks.ended:
            piece = await reader.read(PIECE_BYTES)
            if not piece:
                raise Broken("the connection ended early")
            if found := chunks.push(piece):
                yield found
    elif "content-length" in headers:
        left = _number(headers["content-length"], 10)
        while left:
            piece = await _exactly(reader, min(left, PIECE_BYTES))
            left -= len(piece)
            yield piece
    else:
        while piece := await reader.read(PIECE_BYTES):
            yield piece


def _number(text: str, base: int) -> int:
    try:
        found = int(text, base)
    except ValueError:
        found = -1
    if found < 0:
        raise Broken(f"{text[:20]!r} is no length")
    return found


async def _line(reader: asyncio.StreamReader) -> str:
    try:
        return (await reader.readuntil(b"\n")).decode("latin-1").rstrip("\r\n")
    except asyncio.IncompleteReadError:
        raise Broken("the connection ended early") from None
    except asyncio.LimitOverrunError:
        raise Broken("a line of the head is too long") from None


class Chunks:
    """Bytes of a chunked body -> what it carries, as soon as a chunk is whole: one wait for whatever has come, where
    a wait for each line and each chunk would keep a client busier than most servers."""

    def __init__(self) -> None:
        self.ended = self._trailing = False
        self._rest = b""

    def push(self, piece: bytes) -> bytes:
        """Raises Broken."""
        rest, at, end, found = self._rest + piece, 0, 0, list[bytes]()
        while not self.ended and (end := rest.find(b"\n", at)) >= 0:
            line = rest[at:end].rstrip(b"\r")
            if self._trailing:
                self.ended, at = not line, end + 1
                continue
            size = _number(line.partition(b";")[0].decode("latin-1"), 16)
            behind = end + 1 + size
            if size and len(rest) < behind + 2:
                break
            if size and rest[behind : behind + 2] != b"\r\n":
                raise Broken("a chunk is longer than it says")
            found.append(rest[end + 1 : behind])
            self._trailing, at = not size, behind + 2 if size else behind
        if end < 0 and len(rest) - at > PIECE_BYTES:
            raise Broken("a line is too long")
        self._rest = rest[at:]
        return b"".join(found)


async def _exactly(reader: asyncio.StreamReader, num_bytes: int) -> bytes:
    try:
        return await reader.readexactly(num_bytes)
    except asyncio.IncompleteReadError:
        raise Broken("the connection ended early") from None


class Events:
    """Bytes of a text/event-stream -> the data of its events. Comments and other fields are passed over; an event
    that its stream did not end with an empty line never happened, as the standard has it."""

    def __init__(self) -> None:
        self._rest, self._data = b"", list[str]()

    def push(self, piece: bytes) -> list[str]:
        found = []
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            name, _, value = line.removesuffix(b"\r").partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" ").decode(errors="replace"))
            elif not name and not value and self._data and not line.startswith(b":"):
                found.append("\n".join(self._data))
                self._data = []
        return found
