"""A real server on a loopback port, in a thread; its model is tiny and says nonsense."""

import base64
import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from typing import Any

import openai
import pytest
from PIL import Image

from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.engine.config import EngineConfig
from cascadevl.serving.app import Service
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.listen import address, bind
from cascadevl.serving.server import Server

PATIENCE_S = 60.0
"""How long a test waits for what must come."""


@dataclass(frozen=True)
class Running:
    """A server, where it is, and a stock client of it."""

    service: Service
    url: str
    client: openai.OpenAI
    server: Server


def url_of(picture: Image.Image, format: str = "PNG") -> str:
    file = io.BytesIO()
    picture.save(file, format)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def shown(*pictures: Image.Image, text: str = "What is it?", **fields: Any) -> list[Any]:
    """One user message with pictures before the text."""
    parts = [{"type": "image_url", "image_url": {"url": url_of(picture), **fields}} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def post(url: str, path: str, body: bytes | Mapping[str, Any], **headers: str) -> tuple[int, dict[str, Any], Message]:
    """Status, body and headers, without a client that would mend anything."""
    host = url.removeprefix("http://")
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(host, timeout=PATIENCE_S)
    try:
        connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers
    finally:
        connection.close()


def eventually(true: Callable[[], Any]) -> None:
    """Wait until it is so; a test fails where it never is."""
    end_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end_s, "it never came true"
        time.sleep(0.01)


@contextmanager
def running(service: Service, api_key: str | None = None) -> Iterator[Running]:
    server = Server(service, api_key)
    listener = bind(service.config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    url = address(listener)
    thread.start()
    eventually(lambda: server.started)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=api_key or "none", max_retries=0, timeout=PATIENCE_S)
    try:
        with client:
            yield Running(service, url, client, server)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="session")
def parts() -> Parts:
    return tiny_parts("qwen3")


@pytest.fixture(scope="module")
def server(parts: Parts) -> Iterator[Running]:
    """One for all tests of a file; whoever uses it leaves nothing behind."""
    with running(Service(parts, ServingConfig(port=0), EngineConfig(cache_bytes=2_000_000))) as server:
        yield server
        eventually(lambda: not len(server.service.admission))
        eventually(lambda: not server.service.engine.busy)
        server.service.engine.check_integrity()
        assert server.service.engine.stats()["pages_available"] == server.service.engine.stats()["pages"]


@pytest.fixture
def picture() -> Image.Image:
    """200 × 100 pixels."""
    return Image.linear_gradient("L").resize((200, 100)).convert("RGB")
