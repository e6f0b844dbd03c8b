"""A small server that speaks OpenAI's API, well or badly, as it is told."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Fake:
    """How it behaves, and what it was asked."""

    unknown: tuple[str, ...] = ()
    """Fields that it refuses."""
    failing: str = ""
    """What every third request meets: status, error, cut or silence."""
    pause_s: float = 0.0
    """Before each token."""
    api_key: str | None = None
    loading: int = 0
    """How many questions for its models find it loading still."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
            body = await reader.readexactly(int(headers["content-length"]))
            if self.api_key and headers.get("authorization") != f"bearer {self.api_key}":
                self._whole(writer, 401, {"error": {"message": "no key"}})
            elif head.startswith("GET /v1/models ") and self.loading:
                self.loading -= 1
                self._whole(writer, 503, {"error": {"message": "Loading model"}})
            elif head.startswith("GET /v1/models "):
                self._whole(writer, 200, {"data": [{"id": "fake"}]})
            elif head.startswith("POST /v1/chat/completions "):
                await self._chat(writer, json.loads(body))
            else:
                self._whole(writer, 404, {"error": "no such route"})
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.running -= 1
            writer.close()

    def _whole(self, writer: asyncio.StreamWriter, status: int, answer: Any) -> None:
        data = json.dumps(answer).encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)

    async def _chat(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        refused = sorted(set(self.unknown) & set(body))
        if refused:
            return self._whole(writer, 422, {"detail": f"unexpected fields {refused}"})
        self.bodies.append(body)
        trouble = self.failing if len(self.bodies) % 3 == 0 else ""
        if trouble == "status":
            return self._whole(writer, 429, {"error": {"message": "full"}})
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(body["max_tokens"]):
            await asyncio.sleep(self.pause_s)
            if trouble == "cut":
                return None
            if trouble == "silence":
                await asyncio.sleep(60)
            if trouble == "error":
                self._event(writer, {"error": {"message": "out of pages"}})
            ended = "length" if number == body["max_tokens"] - 1 else None
            self._event(writer, {"choices": [{"delta": {"content": f"w{number} "}, "finish_reason": ended}]})
            await writer.drain()
        if body.get("stream_options"):
            usage = {"prompt_tokens": 7, "completion_tokens": body["max_tokens"]}
            self._event(writer, {"choices": [], "usage": {**usage, "prompt_tokens_details": {"cached_tokens": 2}}})
        self._event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")

    def _event(self, writer: asyncio.StreamWriter, data: Any) -> None:
        event = f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
        writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")


@contextmanager
def running(fake: Fake) -> Iterator[Fake]:
    """In a thread with a loop of its own."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
        fake.url = "http://127.0.0.1:{1}".format(*server.sockets[0].getsockname())
        ready.set()
        await stop.wait()
        server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    assert ready.wait(10)
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
