"""benchmarks/faults.py at a small size, against a tiny model: what it finds, and that it would find more."""

import gc
import importlib
import json
import os
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
    for name in ("faults", "faults_bodies", "faults_client", "faults_inside", "faults_plot"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def victim(parts, faults):
    config = ServingConfig(port=0, fetch_hosts=("*",), fetch_s=1.0, media_s=2.0, body_s=1.0, max_requests=16)
    with running(Service(parts, config, EngineConfig(cache_bytes=4_000_000))) as server:
        host, port = server.url.removeprefix("http://").split(":")
        yield faults.Server(host, int(port), os.getpid())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("malformed", (60,)), ("private", ()), ("disconnects", (24,)), ("overflow", (16,)), ("bombs", ())],
)
def test_trouble_does_no_harm(faults, victim, name, arguments):
    row = faults.settled(getattr(faults, name)(victim, *arguments), victim)
    assert row.ends.total() >= 20
    assert row.good, (row.ends, row.at_rest)
    json.dumps(faults.told(row))


def test_a_body_is_spoilt_for_every_route_that_takes_one(faults, victim):
    bodies = sys.modules["faults_bodies"]
    document = json.loads(faults.answer(victim, "/openapi.json", None)[1])
    assert set(bodies.VALID) == {path for path, methods in document["paths"].items() if "post" in methods}
    assert {path for path, _ in map(bodies.mutated, range(60))} == set(bodies.VALID)
    assert [faults.ask(victim, path, body) for path, body in bodies.VALID.items()] == ["200"] * len(bodies.VALID)


def test_a_model_that_fails_and_sites_that_lead_astray_do_no_harm(faults):
    rows = list(faults.within("nano"))
    assert [row.name for row in rows] == ["redirects and rebinding", "engine error on one request"]
    assert [row for row in rows if not row.good] == []


def test_what_a_server_keeps_of_those_who_left_is_seen(faults, victim, monkeypatch):
    client = sys.modules["faults_client"]
    monkeypatch.setattr(client, "REST_S", 0.2)
    gc.collect()  # the server is this process: what older tests left open is not to be closed in between
    before = victim.belongings()
    kept = [socket.socket() for _ in range(client.SLACK + 50)]
    row = faults.Row("trouble", fine=("nothing left",))
    faults.compare(row, victim, before)
    for each in kept:
        each.close()
    (left,) = row.ends  # a decoder that was just lost may be back by now, and is then named too
    assert left.startswith("left: ") and "descriptors" in left and not row.good


def test_a_soak_is_drawn_from_zero_up(faults, tmp_path):
    curve = [{"pictures": 100 * n, "server": 400, "decoders": 100} for n in range(1, 5)]
    faults.draw([faults.Row("soak", fine=("200",), notes={"curve MiB": curve})], tmp_path / "soak.png")
    with Image.open(tmp_path / "soak.png") as image:
        pixels = np.asarray(image)
    middle = pixels[:, pixels.shape[1] * 2 // 3]
    high, low = (np.flatnonzero((middle == color).all(-1)).mean() for color in [(0, 114, 178), (0, 158, 115)])
    plot = sys.modules["faults_plot"]
    bottom = plot.SCALE * (plot.HEIGHT - plot.BOTTOM)
    assert (bottom - high) / (bottom - low) == pytest.approx(5, rel=0.05)


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
