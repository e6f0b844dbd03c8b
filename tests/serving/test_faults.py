"""benchmarks/faults.py at a small size, against a tiny model: what it finds, and that it would find more."""

import importlib
import json
import socket
import sys
import threading
from pathlib import Path

import pytest

from cascadevl.engine.config import EngineConfig
from cascadevl.serving.app import Service
from cascadevl.serving.config import ServingConfig
from tests.serving.conftest import running

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def faults():
    """The script and its neighbours, as modules for as long as this file needs them."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("faults")
    sys.path.remove(str(BENCHMARKS))
    for name in ("faults", "faults_bodies", "faults_client", "faults_inside"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def victim(parts, faults):
    config = ServingConfig(port=0, fetch_hosts=("*",), fetch_s=1.0, media_s=2.0, body_s=1.0, max_requests=16)
    with running(Service(parts, config, EngineConfig(cache_bytes=4_000_000))) as server:
        host, port = server.url.removeprefix("http://").split(":")
        yield faults.Server(host, int(port))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("malformed", (60,)), ("private", ()), ("disconnects", (24,)), ("overflow", (16,)), ("bombs", ())],
)
def test_trouble_does_no_harm(faults, victim, name, arguments):
    row = faults.settled(getattr(faults, name)(victim, *arguments), victim)
    assert row.ends.total() >= 20
    assert row.good, (row.ends, row.at_rest)
    json.dumps(faults.told(row))


def test_a_model_that_fails_and_sites_that_lead_astray_do_no_harm(faults):
    rows = list(faults.within("nano"))
    assert [row.name for row in rows] == ["redirects and rebinding", "engine error on one request"]
    assert [row for row in rows if not row.good] == []


def test_requests_that_are_lost_hang_or_fail_are_seen(faults, monkeypatch):
    """Against a server that answers one with an error, never answers one and hangs up on one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            broken, _ = listener.accept()
            broken.recv(9999)
            broken.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")
            silent, _ = listener.accept()
            gone, _ = listener.accept()
            for each in (broken, gone):
                each.close()
            held.append(silent)

        held = []
        thread = threading.Thread(target=serve)
        thread.start()
        server = faults.Server("127.0.0.1", listener.getsockname()[1])
        ends = [faults.ask(server, "/", {}, patience_s=patience_s) for patience_s in (5.0, 0.2, 5.0)]
        thread.join()
        held[0].close()
    assert ends == ["500", "hung", "lost"]
    row = faults.Row("trouble", fine=("200",))
    row.ends.update(["200", *ends])
    assert row.wrong == 3 and not row.good
    assert not faults.Row("trouble", fine=("200",), at_rest=False).good
