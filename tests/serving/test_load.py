"""The load client: its sums by hand, its ears against broken streams, and all of it against a fake server and ours."""

import asyncio
import base64
import io
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from cascadevl.core.errors import ConfigError
from cascadevl.serving.load.client import Client, connect, load
from cascadevl.serving.load.figures import Limits, Timeline, spread, summary
from cascadevl.serving.load.plot import plot
from cascadevl.serving.load.sweep import loads, sweep, too_much
from cascadevl.serving.load.traffic import Pace, Traffic, arrivals, questions
from cascadevl.serving.load.wire import Chunks, Events, Target, exchange
from tests.serving.fake_openai import Fake
from tests.serving.fake_openai import running as fake_running


def timeline(started_s, pieces_s, tokens=None, problem=None):
    end_s = pieces_s[-1] if pieces_s else started_s
    return Timeline(started_s, list(pieces_s), end_s, 10, 4, len(pieces_s) if tokens is None else tokens, problem)


# Sums


def test_times_of_a_request_are_those_of_the_definitions():
    one = Timeline(10.0, [10.5, 10.75, 11.5], ended_s=12.0, completion_tokens=4)
    assert one.ttft_s == 0.5 and one.e2e_s == 2.0
    assert one.tpot_s == pytest.approx(1.5 / 3)  # of four tokens in three pieces
    assert one.gaps_s == [0.25, 0.75]


def test_a_summary_pools_gaps_and_skips_tpot_of_one_token():
    slow, quick, short = timeline(0, [1, 2, 3]), timeline(1, [1.5, 1.75]), timeline(2, [2.25])
    failed = timeline(3, [], problem="HTTP 429: full")
    failed.ended_s = 5.0
    found = summary([slow, quick, short, failed], Limits(tpot=500))
    assert found["itl_ms"]["mean"] == pytest.approx(1000 * (1 + 1 + 0.25) / 3, abs=1e-3)
    assert found["tpot_ms"]["median"] == pytest.approx(1000 * (1 + 0.25) / 2)
    assert found["ttft_ms"]["median"] == 500
    assert found["duration_s"] == 5 and found["output_tokens"] == 6 and found["output_tokens_per_s"] == 1.2
    assert found["requests_per_s"] == 0.6 and found["cached_tokens"] == 12
    assert found["failed"] == 1 and found["problems"] == {"HTTP 429: full": 1}
    assert found["goodput_per_s"] == 0.4  # the slow one is no good; of one token, TPOT counts as kept


def test_goodput_needs_all_limits():
    answers = [timeline(0, [0.1, 0.2]), timeline(0, [0.6, 0.7]), timeline(0, [0.1, 1.0])]
    assert summary(answers, Limits(ttft=500, tpot=200))["goodput_per_s"] == 1.0
    assert summary(answers, Limits(ttft=500))["goodput_per_s"] == 2.0
    assert summary(answers, Limits(e2e=800))["goodput_per_s"] == 2.0
    assert summary(answers)["goodput_per_s"] is None


def test_pieces_are_counted_where_no_usage_is_told():
    one = Timeline(0, [1, 2], 2.0)
    assert one.num_tokens == 2 and summary([one])["tokens_counted"] == "pieces"


def test_percentiles_are_numpys_in_milliseconds():
    seconds = [i / 100 for i in range(101)]
    assert spread(seconds) == {"mean": 500, "median": 500, "p99": 990}
    assert spread([]) is None


def test_limits_are_read():
    assert Limits.read(["ttft:500", "tpot:50"]) == Limits(ttft=500, tpot=50)
    assert Limits.read([]) is None and Limits.read(["e2el:9"]) == Limits(e2e=9)


@pytest.mark.parametrize("word", ["ttft", "ttft:", "ttft:0", "ttft:-1", "ttft:nan", "itl:5", "500"])
def test_what_is_no_limit_is_refused(word):
    with pytest.raises(ConfigError, match="is no limit"):
        Limits.read([word])


# Traffic


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_vary_as_a_gamma_process_does(burstiness):
    due_s = arrivals(20_000, Pace(rate=50, burstiness=burstiness), "x")
    gaps = np.diff(due_s, prepend=0)
    assert due_s[-1] == pytest.approx(20_000 / 50) and (gaps >= 0).all()
    # The coefficient of variation of a gamma distribution is one over the root of its shape.
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_a_poisson_process_has_as_many_arrivals_a_second_as_their_variance():
    due_s = arrivals(20_000, Pace(rate=20), "x")
    counts = np.bincount(due_s.astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.15)


def test_a_clock_ticks_and_all_at_once_is_at_once():
    assert arrivals(4, Pace(rate=2, burstiness=math.inf), "x") == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert not arrivals(4, Pace(rate=math.inf), "x").any() and not arrivals(4, Pace(concurrency=2), "x").any()


def test_shares_of_pictures_are_exact():
    asked = questions(Traffic(requests=40, images_share=0.5, repeated_share=0.75, image_size="32x16"), "s")
    shown = [question.picture for question in asked if question.picture]
    assert len(shown) == 20 and len(set(shown)) == 5
    assert Image.open(io.BytesIO(base64.b64decode(shown[0].partition(",")[2]))).size == (32, 16)
    assert all(8 <= len(question.text.split()) <= 16 for question in asked)


def test_a_seed_asks_the_same_and_another_shares_no_picture():
    traffic = Traffic(requests=8, images_share=1.0, image_size="32x32")
    assert questions(traffic, "a") == questions(traffic, "a")
    first, second = ({q.picture for q in questions(traffic, seed)} for seed in "ab")
    assert len(first) == len(second) == 8 and not first & second


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests": 0}, {"output_tokens": 0}, {"input_words": (5, 4)}, {"images_share": 1.5},
        {"repeated_share": -0.1}, {"image_size": "448"}, {"image_size": "0x9"},
    ],
)  # fmt: skip
def test_impossible_traffic_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Traffic(**wrong)


@pytest.mark.parametrize("wrong", [{}, {"rate": 0}, {"rate": math.nan}, {"concurrency": 0}])
def test_impossible_paces_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"rate|concurrency"):
        Pace(**wrong)


# Ears


def test_events_come_out_however_the_bytes_are_cut():
    stream = ': hello\r\n\r\nevent: x\r\ndata: {"a":\r\ndata: 1}\r\n\r\ndata:ä\n\nid: 7\n\ndata: lost'.encode()
    for size in (1, 2, 3, 7, len(stream)):
        events = Events()
        found = [data for at in range(0, len(stream), size) for data in events.push(stream[at : at + size])]
        assert found == ['{"a":\n1}', "ä"]


async def said(answer, cut=True):
    """What a client makes of raw bytes from a server, which then hangs up."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        target = Target("127.0.0.1", server.sockets[0].getsockname()[1])
        return await Client(target=target, model="m").ask(b"")


CHUNK = b'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": %s}]}\n\n'
PLAIN = b"HTTP/1.1 200 OK\r\n\r\n"


def test_a_stream_until_the_connection_closes_is_heard():
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}\n\n'
    found = asyncio.run(said(PLAIN + CHUNK % b"null" + CHUNK % b'"stop"' + usage))
    assert found.problem is None and len(found.piece_s) == 2 and found.num_tokens == 5 and found.prompt_tokens == 3


def test_an_answer_without_text_began_when_it_ended():
    found = asyncio.run(said(PLAIN + CHUNK.replace(b'"a"', b'""') % b'"stop"' + b"data: [DONE]\n\n"))
    assert found.problem is None and found.piece_s == [found.ended_s]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_a_chunked_body_may_be_cut_anywhere(step):
    body = b"3\r\nabc\r\n1;note=1\r\n\n\r\nA\r\n0123456\r\n8\r\n0\r\nX: y\r\n\r\n"
    chunks, found = Chunks(), b""
    for first in range(0, len(body), step):
        assert not chunks.ended
        found += chunks.push(body[first : first + step])
    assert found == b"abc\n0123456\r\n8" and chunks.ended


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "ended early"),
        (b"SSH-2.0 hello\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: 1", "ended early"),
        (b"HTTP/1.1 500 X\r\nContent-Length: 4\r\n\r\noops", "HTTP 500: oops"),
        (b'HTTP/1.1 429 X\r\nContent-Length: 31\r\n\r\n{"error": {"message": "  full"}}'[:-1], "HTTP 429"),
        (PLAIN, "stopped before its end"),
        (PLAIN + CHUNK % b"null", "stopped before its end"),
        (PLAIN + b"data: nonsense\n\n", "no chunk of a chat"),
        (PLAIN + b"data: [1]\n\n", "no chunk of a chat"),
        (PLAIN + b'data: {"choices": [3]}\n\n', "no chunk of a chat"),
        (PLAIN + b'data: {"error": {"message": "out of pages"}}\n\n', "error in the stream: out of pages"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "is no length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n", "is no length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n", "longer than it says"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc", "ended early"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 200_000, "too long"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc", "ended early"),
        (b"HTTP/1.1 200 " + b"x" * 200_000, "too long"),
    ],
)
def test_whatever_a_server_says_wrongly_is_a_reason(answer, problem):
    found = asyncio.run(said(answer))
    assert found.problem is not None and problem in found.problem


def test_what_only_announces_is_passed_over():
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    async def ask():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        target = Target("127.0.0.1", server.sockets[0].getsockname()[1])
        async with server, exchange(target, "GET", "/") as response:
            return response.status, await response.whole()

    assert asyncio.run(ask()) == (200, b"ok")


def test_addresses_are_read():
    assert Target.of("http://h:8000/v1") == Target.of("h:8000") == Target("h", 8000)
    assert Target.of("https://h/api/v1/", "k") == Target("h", 443, "/api", True, "k")
    assert b"Host: [::1]:80\r\n" in Target.of("http://[::1]").head("GET", "/", 0)
    assert "secret" not in repr(Target.of("h", "secret"))


@pytest.mark.parametrize("url", ["", "ftp://h", "http://", "http://h:x", "http://h/?a=1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ConfigError, match="no address"):
        Target.of(url)


def test_a_key_that_would_be_more_than_a_key_is_refused():
    with pytest.raises(ConfigError, match="key"):
        Target.of("h", "a\r\nX: b")


# A server


def asked(fake, traffic, pace, limits=None, **settings):
    async def run():
        client = await connect(Target.of(fake.url, fake.api_key), None, {}, settings.get("patience_s", 20.0), traffic)
        return client, *await load(client, traffic, pace, "s", limits)

    with fake_running(fake):
        return asyncio.run(run())


def test_a_closed_loop_never_asks_more_than_its_clients_do():
    fake = Fake(pause_s=0.005, api_key="k")
    client, found, timelines = asked(fake, Traffic(requests=12, output_tokens=3), Pace(concurrency=4), Limits(ttft=1e4))
    assert fake.most_running == 4 and client.model == "fake"
    assert found["failed"] == 0 and found["output_tokens"] == 36 and found["prompt_tokens"] == 84
    assert found["cached_tokens"] == 24 and found["goodput_per_s"] == found["requests_per_s"]
    assert all(len(each.piece_s) == 3 and each.ttft_s >= 0.005 for each in timelines)
    *_, body = fake.bodies
    assert body["ignore_eos"] is True and body["max_tokens"] == 3 and body["stream_options"] == {"include_usage": True}


def test_an_open_loop_asks_when_it_is_time():
    _, _, timelines = asked(Fake(pause_s=0.1), Traffic(requests=8, output_tokens=2), Pace(rate=80, burstiness=math.inf))
    started = [each.started_s for each in timelines]
    assert started[-1] - started[0] >= 7 / 80 - 0.01
    assert started[-1] < min(each.ended_s for each in timelines)  # the answers are not waited for


@pytest.mark.parametrize("unknown", [(), ("ignore_eos",), ("stream_options",), ("ignore_eos", "stream_options")])
def test_a_server_is_asked_without_what_it_does_not_know(unknown):
    client, found, _ = asked(Fake(unknown=unknown), Traffic(requests=2, output_tokens=4), Pace(concurrency=1))
    assert set(client.dialect) == {"ignore_eos", "stream_options"} - set(unknown)
    assert found["failed"] == 0 and found["output_tokens"] == 8
    assert found["tokens_counted"] == ("pieces" if "stream_options" in unknown else "usage")


@pytest.mark.parametrize(
    ("failing", "problem"),
    [("status", "HTTP 429: full"), ("error", "broken: error in the stream: out of pages"),
     ("cut", "broken: the connection ended early"), ("silence", "no whole answer within 0.5 s")],
)  # fmt: skip
def test_failures_are_counted_by_reason(failing, problem):
    # One question goes before, so that the third and the sixth of seven fail.
    fake = Fake(failing=failing)
    _, found, _ = asked(fake, Traffic(requests=6, output_tokens=2), Pace(concurrency=1), patience_s=0.5)
    assert found["problems"] == {problem: 2} and found["failed"] == 2 and found["output_tokens"] == 8


def test_a_server_that_loads_its_model_is_waited_for(monkeypatch):
    with fake_running(Fake(loading=1)) as fake:
        assert asyncio.run(connect(Target.of(fake.url), None, {}, 5.0, Traffic())).model == "fake"
    monkeypatch.setattr("cascadevl.serving.load.client.LOADING_S", 0.0)
    with fake_running(Fake(loading=9)) as fake, pytest.raises(ConfigError, match=r"not ready .* Loading model"):
        asyncio.run(connect(Target.of(fake.url), None, {}, 5.0, Traffic()))


def test_a_server_that_refuses_or_is_not_there_is_an_error():
    async def ask(url, key=None):
        await connect(Target.of(url, key), None, {}, 5.0, Traffic())

    with fake_running(Fake(api_key="k")) as fake, pytest.raises(ConfigError, match="401: no key"):
        asyncio.run(ask(fake.url, "wrong"))
    with pytest.raises(ConfigError, match="Nobody answers"):
        asyncio.run(ask(fake.url))
    with fake_running(Fake(unknown=("messages",))) as fake, pytest.raises(ConfigError, match="unexpected fields"):
        asyncio.run(ask(fake.url))


def test_our_own_server_is_measured(server):
    traffic = Traffic(requests=4, output_tokens=5, images_share=0.5, image_size="64x32")

    async def run():
        client = await connect(Target.of(server.url), None, {}, 60.0, traffic)
        return client, *await load(client, traffic, Pace(concurrency=2), "s")

    client, found, timelines = asyncio.run(run())
    assert "ignore_eos" in client.dialect and found["problems"] == {}
    assert found["output_tokens"] == 20 and found["tokens_counted"] == "usage"
    assert all(each.prompt_tokens > 8 and each.ttft_s <= each.e2e_s for each in timelines)


# A sweep


def row(tokens, p99, good=None, answered=True):
    ttft = {"mean": p99, "median": p99, "p99": p99} if answered else None
    requests = tokens / 10 if good is None else good
    return {
        "output_tokens_per_s": tokens, "requests_per_s": requests, "goodput_per_s": good,
        "ttft_ms": ttft, "tpot_ms": ttft,
    }  # fmt: skip


def test_too_much_is_what_falls_or_explodes():
    light = [row(10, 5), row(20, 6)]
    assert not too_much([], light[0]) and not too_much(light[:1], light[1])
    assert not too_much(light, row(39, 30))  # slower, but it still gives more
    assert too_much(light, row(20.5, 30)) and not too_much(light, row(20.5, 7))
    assert too_much([row(10, 5, good=1)], row(20, 6, good=0.5))
    assert too_much(light, row(0, 0, answered=False))


def test_a_sweep_ends_past_the_knee():
    seen = []

    async def run(pace):
        seen.append(pace.concurrency)
        return row(min(pace.concurrency, 4) * 10, 10 * max(1, pace.concurrency / 4))

    rows, knee = asyncio.run(sweep(Pace(concurrency=1), run))
    assert seen == [1, 2, 4, 8] and len(rows) == 4 and knee == 2
    assert [pace.rate for pace in loads(Pace(rate=0.5))[:3]] == [0.5, 1.0, 2.0]


def test_a_plot_shows_every_series_and_the_knee(tmp_path):
    rows = [row(10, 5), row(20, 80), row(21, 900)]
    plot(tmp_path / "a.png", "nano", "clients", [1, 2, 4], rows, 1)
    plot(tmp_path / "b.png", "nano", "clients", [1, 2, 4], rows, None)
    plot(tmp_path / "one.png", "nano", "clients", [1], [row(0, 0, answered=False)], None)
    with Image.open(tmp_path / "a.png") as a, Image.open(tmp_path / "b.png") as b:
        colours = Counter(a.get_flattened_data())
        assert a.size == b.size == (1920, 680)
        assert all(colours[colour] > 100 for colour in [(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)])
        without = Counter(b.get_flattened_data())
        assert colours[153, 153, 153] > without[153, 153, 153] + 500  # of grey there is little in the letters
