"""Faults that are put into the server itself: a model that fails, a site on this machine that counts as public."""

import contextlib
import http.server
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from faults_bodies import CHAT, about, hello, private_addresses, saved
from faults_client import Row, Server, ask, at_once, settled

import cascadevl
from cascadevl.engine.config import EngineConfig
from cascadevl.serving.app import Service
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.fetch import Fetch, is_public
from cascadevl.serving.listen import address, bind
from cascadevl.serving.prepare import Preparer
from cascadevl.serving.server import Server as Web

POISON = "☠☢☣"


@contextlib.contextmanager
def inside(model: str, site: int) -> Iterator[tuple[Server, Service]]:
    """A server in a thread. Its model fails on one text; it fetches, and its resolver knows the site on this machine.

    Both are given to it from outside: a hook of torch's on the embedding, and a `Fetch` with a resolver of its own,
    for which 127.0.0.1 counts as public and `rebound.example` means it once and then 127.0.0.2.
    """
    bundle = cascadevl.load(model)
    poison = set(bundle.parts.tokenizer.encode(POISON))
    assert len(poison) > 1, "one token could be said by the model itself"

    def fail(module: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
        if poison <= set(arguments[0].tolist()):
            raise RuntimeError("injected")

    hook = bundle.parts.model.language_model.model.embed_tokens.register_forward_pre_hook(fail)
    names = {"site.example": ["127.0.0.1"] * 10**6, "rebound.example": ["127.0.0.1"] + ["127.0.0.2"] * 10**6}
    lookups: Counter[str] = Counter()

    def resolve(host: str, port: int) -> list[str]:
        lookups[host] += 1
        return [names[host][lookups[host] - 1]] if host in names else [host]

    config = ServingConfig(port=0, fetch_hosts=("*",))
    service = Service(bundle, config, EngineConfig(cache_bytes=64 * 2**20))
    service.preparer.close()
    service.preparer = Preparer(
        bundle.parts, config,
        Fetch(
            hosts=("*",), max_bytes=10**6, timeout_s=1.0, ports=(80, 443, site), resolve=resolve,
            permits=lambda address: str(address) == "127.0.0.1" or is_public(address),
        ),
    )  # fmt: skip
    web, listener = Web(service), bind(config)
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
    host, port = address(listener).removeprefix("http://").split(":")
    thread.start()
    try:
        while not web.started:
            time.sleep(0.01)
        yield Server(host, int(port), os.getpid()), service
    finally:
        web.should_exit = True
        thread.join()
        hook.remove()


def engine_error(server: Server, service: Service) -> Row:
    """The model fails on one request: that one is told, and others have their answers, then or at once afterwards."""
    row = Row("engine error on one request", fine=("500 for the one", "honest 200"))
    row.ends[f"{ask(server, CHAT, {**hello(), 'messages': [{'role': 'user', 'content': POISON}]})} for the one"] += 1
    row.ends.update(f"honest {ask(server, CHAT, hello())}" for _ in range(5))
    row.notes["failed steps"] = service.loop.num_failed_steps
    service.engine.check_integrity()
    return row


class Site(http.server.BaseHTTPRequestHandler):
    """Pictures, and ways that lead elsewhere."""

    def do_GET(self) -> None:
        kind, _, target = self.path[1:].partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", target)
        else:
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            if kind == "zip":
                self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        with contextlib.suppress(OSError):
            while kind == "endless":
                self.wfile.write(bytes(2**16))
            while kind == "slow":
                self.wfile.write(b"x")
                time.sleep(0.05)
            self.wfile.write(saved("PNG"))

    def log_message(self, format: str, *args: Any) -> None: ...


def led_astray(server: Server, port: int) -> Row:
    """Redirects to private addresses, names that change their meaning, bodies without end."""
    row = Row("redirects and rebinding", fine=("400", "honest 200", "rebound 200 400"))
    site = f"http://site.example:{port}"
    rebound = [ask(server, CHAT, about(f"http://rebound.example:{port}/picture")) for _ in range(2)]
    row.ends[f"rebound {' '.join(rebound)}"] += 1
    row.ends[f"honest {ask(server, CHAT, about(f'{site}/to/{site}/picture'))}"] += 1
    targets = ["http://127.0.0.2/", "http://169.254.169.254/latest/meta-data/", "http://[::1]/", "http://2130706434/"]
    targets += ["//10.0.0.1/", "file:///etc/passwd", *private_addresses(1), f"{site}/to/{site}/to/{site}/to/{site}/x"]
    paths = [*(f"to/{target}" for target in targets), "slow", "endless", "zip"]
    row.ends += at_once(lambda path: ask(server, CHAT, about(f"{site}/{path}")), paths)
    return row


def within(model: str) -> Iterator[Row]:
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    site.daemon_threads = True
    threading.Thread(target=site.serve_forever, daemon=True).start()
    port = site.server_address[1]
    with inside(model, port) as (server, service):
        yield settled(led_astray(server, port), server)
        yield settled(engine_error(server, service), server)
    site.shutdown()
    site.server_close()
