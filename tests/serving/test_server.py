"""What a server bears: too much, too long, too slow, gone clients, an engine that fails or hangs, a signal to stop."""

import dataclasses
import http.client
import json
import random
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import openai
import pytest
from PIL import Image

from cascadevl.engine.config import EngineConfig
from cascadevl.serving.app import Service
from cascadevl.serving.config import ServingConfig
from tests.serving.conftest import PATIENCE_S, eventually, post, running, shown

CHAT = "/v1/chat/completions"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
GOOD = {"messages": HELLO, "max_tokens": 2}
LONG = {"messages": HELLO, "max_tokens": 2000, "loop_guard": False}
"""The tiny model repeats itself for ever: this takes as long as the steps of the engine are slow."""


def service(parts, engine=None, **config):
    return Service(parts, ServingConfig(port=0, **config), engine or EngineConfig(cache_bytes=4_000_000))


def slow(served, seconds=0.01):
    """The same engine, whose steps take longer."""
    step = served.engine.step
    served.engine.step = lambda *told: (time.sleep(seconds), step(*told))[1]
    return served


def at_rest(served):
    """Nothing is left of any request."""
    eventually(lambda: not served.engine.busy and not len(served.admission))
    eventually(lambda: served.loop.stats["running"] == served.loop.stats["waiting"] == 0)
    served.engine.check_integrity()
    stats = served.engine.stats()
    return stats["pages_available"] == stats["pages"] and not served.loop._jobs


def start_stream(url, body):
    """A response whose body is still coming."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE_S)
    connection.request("POST", CHAT, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    response.readline()
    return connection, response


def head(num_bytes):
    """Of a request with a body of that size."""
    lines = [f"POST {CHAT} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {num_bytes}", "", ""]).encode()


def in_background(work):
    """The list that will hold its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    return results


# Who comes in


def test_a_key_guards_everything_but_health(parts):
    with running(service(parts), api_key="secret") as server:
        assert server.client.models.list().data
        assert server.client.chat.completions.create(model=parts.name, messages=HELLO, max_tokens=1).choices
        host = server.url.removeprefix("http://")
        for method, path in [
            ("GET", "/metrics"), ("GET", "/v1/models"), ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/nowhere"),
            ("POST", "/tokenize"), ("POST", CHAT), ("POST", "/v1/completions"), ("GET", "//health"),
            ("GET", "/health/"), ("PUT", "/metrics"),
        ]:  # fmt: skip
            for key in (None, "Bearer wrong", "Basic secret", "Bearer ", "Bearer secretsecret"):
                connection = http.client.HTTPConnection(host, timeout=PATIENCE_S)
                connection.request(method, path, headers={"Authorization": key} if key else {})
                response = connection.getresponse()
                assert response.status == 401, (method, path, key)
                assert json.loads(response.read())["error"]["code"] == "invalid_api_key"
                connection.close()
        connection = http.client.HTTPConnection(host, timeout=PATIENCE_S)
        for method in ("GET", "HEAD"):  # monitors ask with HEAD
            connection.request(method, "/health")
            response = connection.getresponse()
            assert response.status == 200 and bool(response.read()) == (method == "GET")
        connection.close()


def test_without_a_key_a_foreign_host_name_is_refused(parts):
    with running(service(parts)) as server:
        port = server.url.rpartition(":")[2]
        assert post(server.url, CHAT, GOOD, Host=f"evil.example:{port}")[0] == 400
        assert post(server.url, CHAT, GOOD, Host=f"localhost:{port}")[0] == 200


def test_others_are_let_in_only_on_purpose():
    outside = ServingConfig(host="0.0.0.0")
    with pytest.raises(ValueError, match="--api-key-env"):
        outside.check_key(None)
    outside.check_key("secret")
    dataclasses.replace(outside, open_to_all=True).check_key(None)
    for host in ("127.0.0.1", "localhost", "::1"):
        ServingConfig(host=host).check_key(None)
    with pytest.raises(ValueError, match="host is empty"):
        ServingConfig(host=" ", open_to_all=True)


def test_files_are_read_from_the_allowed_folder_alone(parts, tmp_path, picture):
    folder = tmp_path / "shown"
    folder.mkdir()
    picture.save(folder / "in.png")
    picture.save(tmp_path / "out.png")
    (folder / "link.png").symlink_to(tmp_path / "out.png")

    def asked(path):
        parts = [{"type": "image_url", "image_url": {"url": path}}, {"type": "text", "text": "What?"}]
        return {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}

    with running(service(parts, media_folder=folder)) as server:
        assert post(server.url, CHAT, asked(f"file://{folder}/in.png"))[0] == 200
        for path in ("../out.png", "link.png", "%2e%2e/out.png", "none.png", "", "a%00b.png"):
            status, body, _ = post(server.url, CHAT, asked(f"file://{folder}/{path}"))
            assert status == 400
            assert "not a file in the folder" in body["error"]["message"]


# Too much


@pytest.mark.parametrize("told", [True, False])
def test_a_body_that_is_too_large_is_refused_while_it_comes(parts, told):
    with running(service(parts, max_body_bytes=100_000)) as server:
        body = json.dumps({"messages": [{"role": "user", "content": "a" * 200_000}]}).encode()
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE_S)
        pieces = body if told else iter([body[:50_000], body[50_000:150_000], body[150_000:]])
        connection.request("POST", CHAT, pieces, {"Content-Type": "application/json"}, encode_chunked=not told)
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["error"]["code"] == "body_too_large"
        connection.close()
        assert post(server.url, CHAT, GOOD)[0] == 200


def test_pixels_of_all_pictures_together_are_bounded(parts):
    half = Image.new("L", (100, 60))
    with running(service(parts, max_request_pixels=10_000)) as server:
        assert post(server.url, CHAT, {"messages": shown(half), "max_tokens": 1})[0] == 200
        status, body, _ = post(server.url, CHAT, {"messages": shown(half, half), "max_tokens": 1})
        assert status == 400
        assert "4,000" in body["error"]["message"]


@pytest.mark.parametrize(
    "bounds",
    [{"max_requests": 1}, {"max_queue_tokens": 2100}, {"max_queue_bytes": 300}],
    ids=lambda each: next(iter(each)),
)
def test_a_full_server_says_when_to_come_again(parts, bounds):
    with running(slow(service(parts, **bounds))) as server:
        connection, _ = start_stream(server.url, LONG)
        status, body, headers = post(server.url, CHAT, {**GOOD, "max_tokens": 500, "user": "x" * 300})
        assert (status, body["error"]["code"]) == (429, "queue_full")
        assert 1 <= int(headers["Retry-After"]) <= 60
        assert body["error"]["type"] == "rate_limit_error"
        connection.close()
        assert at_rest(server.service)
        assert post(server.url, CHAT, GOOD)[0] == 200


def test_one_alone_is_never_told_to_come_again(parts):
    with running(service(parts, max_queue_tokens=1, max_queue_bytes=1)) as server:
        assert post(server.url, CHAT, GOOD)[0] == 200


# Too long, too slow


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_cut_off_at_its_deadline(parts, stream):
    with running(slow(service(parts))) as server:
        body = {**LONG, "deadline_s": 0.5, "stream": stream}
        if stream:
            connection, response = start_stream(server.url, body)
            *_, last, done = [line for line in response.read().split(b"\n\n") if line]
            assert done == b"data: [DONE]"
            error = json.loads(last.removeprefix(b"data: "))["error"]
            connection.close()
        else:
            status, told, headers = post(server.url, CHAT, body)
            error = told["error"]
            assert (status, headers["x-should-retry"]) == (503, "false")
        assert error["code"] == "deadline_exceeded"
        assert at_rest(server.service)


def test_a_body_that_never_ends_is_given_up(parts):
    with running(service(parts, body_s=0.2)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as loris:
            loris.sendall(head(99) + b"{")
            assert b" 408 " in loris.recv(1000)
        assert at_rest(server.service)


@pytest.mark.parametrize("quick", [True, False])
def test_a_head_without_end_is_refused_whoever_reads_it(parts, monkeypatch, quick):
    if quick:
        pytest.importorskip("httptools")
    else:
        monkeypatch.setitem(sys.modules, "cascadevl.serving.connection", None)
    with running(service(parts)) as server:
        assert (server.server.config.http == "h11") is not quick
        host, _, port = server.url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port)), PATIENCE_S) as connection:
            connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n".encode())
            with suppress(ConnectionError):
                for _ in range(200):
                    connection.sendall(b"X-More: " + b"y" * 1000 + b"\r\n")
            with suppress(ConnectionError):
                assert connection.recv(100).startswith(b"HTTP/1.1 400")
        assert post(server.url, CHAT, GOOD, **{"X-Long": "y" * 30_000})[0] == 200
        at_rest(server.service)


def test_a_connection_without_a_request_is_let_go_and_a_long_answer_is_not(parts, monkeypatch):
    monkeypatch.setattr("cascadevl.serving.server.IDLE_S", 0.3)
    with running(slow(service(parts), 0.02)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as loris:
            loris.sendall(b"POST /tokenize HTTP/1.1\r\nHost: ")
            assert loris.recv(1000) == b""
        connection, response = start_stream(server.url, {**LONG, "max_tokens": 60})
        assert response.read().endswith(b"data: [DONE]\n\n")
        connection.close()


# Gone


def test_a_stream_nobody_reads_any_more_gives_its_pages_back(parts):
    with running(slow(service(parts))) as server:
        opened = [start_stream(server.url, {**LONG, "n": 2}) for _ in range(3)]
        eventually(lambda: server.service.loop.stats["running"] == 6)
        for connection, response in opened:
            response.close()
            connection.close()
        assert at_rest(server.service)
        assert server.service.engine.stats()["said_tokens"] < 6 * 2000


def test_an_answer_nobody_waits_for_gives_its_pages_back(parts):
    with running(slow(service(parts))) as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps(LONG).encode()
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as caller:
            caller.sendall(head(len(body)) + body)
            eventually(lambda: server.service.loop.stats["running"] == 1)
        assert at_rest(server.service)
        assert server.service.engine.stats()["said_tokens"] < 2000


def test_after_clients_that_hang_up_at_any_moment_nothing_is_left(parts, picture):
    chance = random.Random(0)
    bodies = [LONG, {**LONG, "stream": True}, {"messages": shown(picture), "max_tokens": 50, "n": 3}, {"messages": 5}]
    with running(slow(service(parts), 0.002)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        for _ in range(60):
            body = json.dumps(chance.choice(bodies)).encode()
            sent = head(len(body)) + body
            with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as caller:
                caller.sendall(sent[: chance.randrange(len(sent))] if chance.random() < 0.3 else sent)
                time.sleep(chance.random() * 0.03)
        assert at_rest(server.service)
        assert post(server.url, CHAT, GOOD)[0] == 200


# An engine in trouble


class Failing:
    """Fails in the middle of a step, as often as it is told."""

    def __init__(self, served):
        self.runner, self.times = served.engine.runner, 0
        served.engine.runner = self

    def __call__(self, pieces):
        if self.times:
            self.times -= 1
            raise RuntimeError("a secret of the machine")
        return self.runner(pieces)

    def __getattr__(self, name):
        return getattr(self.runner, name)


def test_a_step_that_fails_leaves_nothing_behind(parts, capsys):
    served = slow(service(parts))
    failing = Failing(served)
    with running(served) as server:
        answers = in_background(lambda: post(server.url, CHAT, LONG))
        eventually(lambda: served.loop.stats["running"] == 1)
        failing.times = 1
        eventually(lambda: answers)
        status, body, _ = answers[0]
        assert (status, body["error"]["code"]) == (500, "internal_error")
        assert "secret" not in body["error"]["message"]
        assert "a secret of the machine" in capsys.readouterr().err
        assert at_rest(served)
        assert post(server.url, CHAT, GOOD)[0] == 200
        assert health(server.url)[0] == 200


def test_an_engine_that_fails_again_and_again_is_not_healthy_until_it_succeeds(parts, capsys):
    served = service(parts)
    failing = Failing(served)
    with running(served) as server:
        failing.times = 3
        assert [post(server.url, CHAT, GOOD)[0] for _ in range(3)] == [500, 500, 500]
        status, body = health(server.url)
        assert status == 503
        assert "last 3 steps failed" in body["status"]
        assert post(server.url, CHAT, GOOD)[0] == 200
        assert health(server.url)[0] == 200
        assert "Traceback" in capsys.readouterr().err


def test_an_engine_that_hangs_is_not_healthy_until_it_moves(parts):
    served, go_on = service(parts, hang_s=0.8), threading.Event()
    step = served.engine.step
    served.engine.step = lambda *told: (go_on.wait(PATIENCE_S), step(*told))[1]
    with running(served) as server:
        assert health(server.url)[0] == 200
        answers = in_background(lambda: post(server.url, CHAT, GOOD))
        eventually(lambda: health(server.url)[0] == 503)
        assert "has not moved" in health(server.url)[1]["status"]
        go_on.set()
        eventually(lambda: answers)
        assert answers[0][0] == 200
        eventually(lambda: health(server.url)[0] == 200)


def health(url):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE_S)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


# Stopping


def test_who_is_being_answered_gets_the_answer_after_sigterm_and_new_ones_are_sent_away(parts):
    with running(slow(service(parts), 0.02)) as server:
        connection, response = start_stream(server.url, {**LONG, "max_tokens": 60})
        server.server.handle_exit(signal.SIGTERM, None)
        status, body, headers = post(server.url, CHAT, GOOD)
        assert (status, body["error"]["code"]) == (503, "stopping")
        assert headers["Retry-After"]
        assert health(server.url)[0] == 503
        lines = [line for line in response.read().split(b"\n\n") if line]
        assert lines[-1] == b"data: [DONE]"
        assert json.loads(lines[-2].removeprefix(b"data: "))["choices"][0]["finish_reason"] == "length"
        connection.close()
        eventually(lambda: server.server.should_exit)


def test_whoever_is_not_done_after_the_drain_is_let_go(parts):
    with running(slow(service(parts, drain_s=0.3), 0.02)) as server:
        connection, response = start_stream(server.url, LONG)
        server.server.handle_exit(signal.SIGTERM, None)
        *_, words, done = [line for line in response.read().split(b"\n\n") if line]
        assert done == b"data: [DONE]"
        assert json.loads(words.removeprefix(b"data: "))["error"]["code"] == "engine_down"
        assert server.server.should_exit
        connection.close()
    assert not server.service.loop._thread.is_alive()


def test_many_clients_at_once_get_what_each_would_get_alone(parts, picture):
    with running(service(parts)) as server:
        wishes = [
            {"messages": shown(picture, text=f"Question {n}"), "max_tokens": 8, "seed": n, "temperature": 1.0}
            for n in range(8)
        ]
        alone = [post(server.url, CHAT, wish)[1]["choices"][0]["message"] for wish in wishes]
        wrong = [in_background(lambda: post(server.url, CHAT, {"messages": 1})) for _ in range(8)]
        together = [in_background(lambda w=wish: post(server.url, CHAT, w)) for wish in wishes]
        eventually(lambda: all(together) and all(wrong))
        assert [answers[0][1]["choices"][0]["message"] for answers in together] == alone
        assert {answers[0][0] for answers in wrong} == {400}
        assert at_rest(server.service)


def test_an_official_client_hears_the_kind_of_error(parts):
    with running(service(parts, max_body_bytes=1000)) as server, pytest.raises(openai.APIStatusError) as raised:
        server.client.chat.completions.create(model=parts.name, messages=[{"role": "user", "content": "a" * 2000}])
    assert raised.value.status_code == 413


def test_an_answer_counts_no_more_tokens_than_the_model_can_say(server):
    """Who asks for more than anybody can have, as some clients always do, is not sent away for it."""
    with server.service.admission.place("somebody else"):
        wishes = {"prompt": "Hello", "max_tokens": 2**63, "stop": [" ", "a", "e"]}
        assert post(server.url, "/v1/completions", wishes)[0] == 200
