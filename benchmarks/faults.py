"""Hostile and unlucky clients: does every request end, and is nothing left behind?

python benchmarks/faults.py [--model nano] [--bodies 1000] [--disconnects 1000] [--soak 0] [--json OUT]
It starts the servers it ruins, one as a process and one within itself, to which it gives a model that fails on one
text, and a resolver under which a site on this machine counts as public. A row for each kind of trouble: how many
requests ended and how, how many were lost (no answer), hung (none in time) or answered wrongly,
and whether afterwards the server is healthy, its queue empty and every page of its cache given back.
`--soak N` sends N distinct pictures and compares resident memory, decoders included, with that after
a warm-up that fills the caches; its curve is in the JSON and in a picture beside it.
`--disconnects N` also compares what the server has afterwards: threads, descriptors, tasks, pages, tokens, memory.
With schemathesis installed, half of the malformed bodies come from it and the OpenAPI document.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from faults_bodies import (
    CHAT,
    about,
    bad_media,
    data_url,
    distinct,
    generated,
    hello,
    mutated,
    private_addresses,
    saved,
)
from faults_client import (
    GROWTH,
    JSON,
    PATIENCE_S,
    Row,
    Server,
    answer,
    ask,
    at_once,
    children,
    compare,
    gauges,
    settled,
    started,
)
from faults_inside import within
from faults_plot import plot

SOAK_CACHE_BYTES = 8 * 2**20
SOAK_VISION_BYTES = 16 * 2**20
WARM_UP = 1000
"""Pictures before memory is measured: both caches are full by then."""
PARTS = 20
"""Of a soak, after each of which memory is measured."""

# Slow, gone, too many


def slow_loris(server: Server, num: int) -> Row:
    """Heads and bodies that come in drops; whoever is honest is answered in the meantime."""
    row = Row("slow loris", fine=("hung up on", "408", "honest 200"))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()

    def drip(number: int) -> str:
        first, drops = (head, b"X: y\r\n") if number % 2 else (head + b"Content-Length: 9999\r\n\r\n", b" ")
        with socket.create_connection((server.host, server.port), timeout=1) as loris:
            loris.sendall(first)
            end_s = time.monotonic() + PATIENCE_S
            while time.monotonic() < end_s:
                try:
                    loris.sendall(drops)
                    said = loris.recv(4096)
                    return said.split()[1].decode() if said else "hung up on"
                except TimeoutError:
                    continue
                except OSError:
                    return "hung up on"
        return "hung"

    with ThreadPoolExecutor(num) as pool:
        lorises = [pool.submit(drip, number) for number in range(num)]
        row.ends.update(f"honest {ask(server, CHAT, hello())}" for _ in range(20))
        row.ends.update(loris.result() for loris in lorises)
    return row


def disconnects(server: Server, num: int) -> Row:
    """Clients that go away at any moment: half-way through their body, while they wait, in the middle of an answer."""
    row = Row("disconnects", fine=("gone", "full", "nothing left"))
    body = json.dumps(hello(200, stream=True, loop_guard=False)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    whole = head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body

    def leave(number: int) -> str:
        rng = random.Random(number)
        try:
            with socket.create_connection((server.host, server.port), timeout=PATIENCE_S) as caller:
                if number % 4 == 0:
                    caller.sendall(whole[: rng.randrange(1, len(whole))])
                else:
                    caller.sendall(whole)
                    said = caller.recv(100) if number % 4 > 1 else b""
                    if b" 429 " in said:
                        return "full"
                if number % 2:  # without a good-bye
                    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return "gone"
        except TimeoutError:
            return "hung"

    row.ends = at_once(leave, range(num // 10))  # what is made once is made by then
    settled(row, server)
    before = server.belongings()
    row.ends += at_once(leave, range(num // 10, num))
    compare(row, server, before)
    return row


def overflow(server: Server, places: int) -> Row:
    """Ten times as many as there are places, all at once: each is answered, or told when to come again."""
    row = Row("queue overflow ×10", fine=("200", "429"))
    row.ends = at_once(lambda number: ask(server, CHAT, hello(16, seed=number)), range(10 * places), 10 * places)
    return row


def stopping(model: str) -> Row:
    """SIGTERM in the middle of answers: they are finished, new ones are sent away, and the process ends by itself."""
    row = Row("SIGTERM mid-stream", fine=("finished", "new 503", "new too late", "exit 0"))
    with started(model) as (server, process), ThreadPoolExecutor(8) as pool:
        begun = threading.Barrier(9)

        def stream(number: int) -> str:
            connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE_S)
            connection.request("POST", CHAT, json.dumps(hello(600, stream=True, loop_guard=False)), JSON)
            response = connection.getresponse()
            response.readline()
            begun.wait(PATIENCE_S)
            rest = response.read()
            connection.close()
            return "finished" if rest.endswith(b"data: [DONE]\n\n") and b'"error"' not in rest else "cut off"

        streams = [pool.submit(stream, number) for number in range(8)]
        begun.wait(PATIENCE_S)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        late = ask(server, CHAT, hello())
        # Where the machine is slow, all answers may be finished by now, and the server gone: nothing is lost then.
        row.ends["new too late" if late == "lost" and all(each.done() for each in streams) else f"new {late}"] += 1
        row.ends.update(each.result() for each in streams)
        row.ends[f"exit {process.wait(PATIENCE_S)}"] += 1
    return row


# Malformed


def malformed(server: Server, num: int) -> Row:
    row = Row("malformed bodies", fine=("200", "400", "404", "413", "503 deadline"))
    bodies = generated(json.loads(answer(server, "/openapi.json", None)[1]), num // 2)
    row.notes["by schemathesis"] = len(bodies)
    bodies += [mutated(number) for number in range(num - len(bodies))]

    def send(body: tuple[str, bytes]) -> str:
        status, said = answer(server, *body)
        if status.startswith("5"):
            if b"deadline_exceeded" in said:
                return "503 deadline"
            print(f"{status} after {body[0]} {body[1][:2000]!r}: {said[:300]!r}", file=sys.stderr)
        return status

    row.ends = at_once(send, bodies, 4)
    return row


# Media


def bombs(server: Server) -> Row:
    """Pictures and videos that promise too much, hold too much, or end too early. Each twice, beside honest ones."""
    row = Row("bombs and truncated media", fine=("400", "honest 200"))
    bad = bad_media()
    honest = about(data_url(saved("PNG")))
    row.ends = at_once(
        lambda item: f"honest {ask(server, CHAT, honest)}" if item is None else ask(server, CHAT, item),
        [*bad * 2, *[None] * 20], 6,
    )  # fmt: skip
    return row


def private(server: Server) -> Row:
    """Fetching is on, for any public host: none of these is one."""
    row = Row("private addresses", fine=("400",))
    row.ends = at_once(lambda url: ask(server, CHAT, about(url)), private_addresses(server.port))
    return row


def killed_decoders(server: Server, num: int) -> Row:
    """While pictures come, decoders are killed, and some are stopped, which is how a decoder hangs."""
    row = Row("decoders killed", fine=("200", "400 for the one it had"))
    over, answered = threading.Event(), threading.Semaphore(0)

    def kill() -> None:
        rng = random.Random(0)
        while not over.is_set():
            for _ in range(3):  # some are decoded in between, or nothing but starting would happen
                answered.acquire()
            for pid in children(server.pid)[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP if rng.random() < 0.1 else signal.SIGKILL)
                    row.notes["killed"] = row.notes.get("killed", 0) + 1

    def send(number: int) -> str:
        status, said = answer(server, CHAT, distinct(number))
        answered.release()
        return "400 for the one it had" if status == "400" and b"cannot be decoded" in said else status

    killer = threading.Thread(target=kill)
    killer.start()
    row.ends = at_once(send, range(num), 4)
    over.set()
    answered.release(3)
    killer.join()
    return row


def soak(server: Server, num: int) -> Row:
    """Distinct pictures: memory once the caches are full, and as many more come."""
    row = Row("soak", fine=("200", "flat"))

    def send(first: int, last: int) -> None:
        def look(number: int) -> str:
            return ask(server, CHAT, {**distinct(number), "max_tokens": 1, "max_tiles": 2 if number % 4 == 0 else 1})

        row.ends += at_once(look, range(first, last), 4)

    send(0, WARM_UP)
    assert gauges(server)["tile_cache_bytes"] > 0.9 * SOAK_VISION_BYTES, "the cache is not full after the warm-up"
    curve = [{"pictures": WARM_UP, **server.memory_mib()}]
    for part in range(PARTS):
        send(WARM_UP + part * num // PARTS, WARM_UP + (part + 1) * num // PARTS)
        curve.append({"pictures": WARM_UP + (part + 1) * num // PARTS, **server.memory_mib()})
    sizes = [point["server"] + point["decoders"] for point in curve]
    growth = max(sizes) / sizes[0] - 1
    row.notes |= {"growth": round(growth, 4), "curve MiB": curve}
    row.ends["flat" if growth <= GROWTH else "memory grew"] += 1
    return row


def draw(rows: list[Row], path: Path) -> None:
    """The soak, if there was one."""
    for row in rows:
        if curve := row.notes.get("curve MiB"):
            server, decoders = ([point[name] for point in curve] for name in ("server", "decoders"))
            both = [sum(each) for each in zip(server, decoders, strict=True)]
            lines = {"server and decoders": both, "server": server, "decoders": decoders}
            plot(path, [point["pictures"] for point in curve], lines, GROWTH)


# All of it


def without(options: argparse.Namespace) -> Iterator[Row]:
    with started(options.model) as (server, _):
        yield settled(malformed(server, options.bodies), server)
        yield settled(private(server), server)
        yield settled(bombs(server), server)
        yield settled(killed_decoders(server, options.pictures), server)
        yield settled(disconnects(server, options.disconnects), server)
        yield settled(slow_loris(server, options.lorises), server)
    with started(options.model, "--max-requests", "8") as (server, _):
        yield settled(overflow(server, 8), server)
    yield stopping(options.model)
    if options.soak:
        # Small caches, which few pictures fill: memory that has never been used counts as soon as it is.
        with started(
            options.model, "--cache-bytes", str(SOAK_CACHE_BYTES), "--vision-bytes", str(SOAK_VISION_BYTES)
        ) as (server, _):
            yield settled(soak(server, options.soak), server)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--bodies", type=int, default=1000)
    parser.add_argument("--disconnects", type=int, default=1000)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--lorises", type=int, default=50)
    parser.add_argument("--soak", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "faults.json")
    options = parser.parse_args()
    rows = []
    print(f"{'trouble':28} {'ends':>6} {'lost':>5} {'hung':>5} {'wrong':>5}  at rest  answers")
    for run in (lambda: without(options), lambda: within(options.model)):
        started_s = time.monotonic()
        for row in run():
            row.notes["seconds"] = round(time.monotonic() - started_s, 1)
            started_s = time.monotonic()
            rows.append(row)
            ends = ", ".join(f"{end}: {count}" for end, count in sorted(row.ends.items()))
            rest = {None: "–", True: "yes", False: "NO"}[row.at_rest]
            print(
                f"{row.name:28} {row.ends.total():6} {row.ends['lost']:5} {row.ends['hung']:5} {row.wrong:5}  "
                f"{rest:7}  {ends} {row.notes}",
                flush=True,
            )
    options.json.write_text(json.dumps([told(row) for row in rows], indent=1, ensure_ascii=False) + "\n")
    draw(rows, options.json.with_suffix(".png"))
    print(
        f"{sum(row.ends.total() for row in rows)} ends; {sum(not row.good for row in rows)} kinds of trouble did harm"
    )
    sys.exit(any(not row.good for row in rows))


def told(row: Row) -> dict[str, Any]:
    return {"name": row.name, "ends": dict(+row.ends), "wrong": row.wrong, "at_rest": row.at_rest, **row.notes}


if __name__ == "__main__":
    main()
