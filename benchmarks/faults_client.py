"""What benchmarks/faults.py counts, the server that it starts, and how it asks."""

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults_bodies import CHAT, hello

JSON = {"Content-Type": "application/json"}
PATIENCE_S = 60.0
"""Whoever has no answer by then hangs."""
REST_S = 60.0
BODY_S = 5
FLAGS = (
    *("--port", "0", "--body-s", str(BODY_S), "--max-requests", "64", "--cache-bytes", str(64 * 2**20)),
    *("--vision-bytes", str(64 * 2**20), "--fetch-hosts", "*", "--fetch-s", "3", "--media-s", "15"),
)


@dataclass
class Row:
    """What came of one kind of trouble."""

    name: str
    fine: tuple[str, ...]
    """Ways to end that are right."""
    ends: Counter[str] = field(default_factory=Counter)
    notes: dict[str, Any] = field(default_factory=dict)
    at_rest: bool | None = None

    @property
    def wrong(self) -> int:
        return sum(count for end, count in self.ends.items() if end not in self.fine)

    @property
    def good(self) -> bool:
        return not self.wrong and self.at_rest is not False


@dataclass(frozen=True)
class Server:
    host: str
    port: int
    pid: int = 0

    def memory_bytes(self) -> int:
        return sum(_rss_bytes(pid) for pid in (self.pid, *children(self.pid)))


def ask(server: Server, path: str, body: Any, headers: dict[str, str] = JSON, patience_s: float = PATIENCE_S) -> str:
    """How it ended: a status, `lost` or `hung`."""
    return answer(server, path, body, headers, patience_s)[0]


def answer(
    server: Server, path: str, body: Any, headers: dict[str, str] = JSON, patience_s: float = PATIENCE_S
) -> tuple[str, Any]:
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(server.host, server.port, timeout=patience_s)
    try:
        connection.request("GET" if body is None else "POST", path, data, headers if body is not None else {})
        response = connection.getresponse()
        return str(response.status), response.read()
    except TimeoutError:
        return "hung", b""
    except (OSError, http.client.HTTPException):
        return "lost", b""
    finally:
        connection.close()


def at_once(work: Callable[[Any], str], items: Iterable[Any], num: int = 16) -> Counter[str]:
    with ThreadPoolExecutor(num) as pool:
        return Counter(pool.map(work, items))


def gauges(server: Server) -> dict[str, float]:
    text = answer(server, "/metrics", None)[1].decode()
    return {name: float(value) for name, value in re.findall(r"^cascadevl_(\w+) (\S+)$", text, re.MULTILINE)}


def at_rest(server: Server) -> bool:
    """Healthy, nobody waits, and every page is free or may be had."""
    end_s = time.monotonic() + REST_S
    while time.monotonic() < end_s:
        seen = gauges(server)
        busy = [seen.get(name) for name in ("requests_waiting", "requests_running", "queue_requests", "queue_bytes")]
        if busy == [0] * 4 and seen["cache_pages"] == seen["cache_pages_available"]:
            return ask(server, "/health", None) == "200" and ask(server, CHAT, hello()) == "200"
        time.sleep(0.2)
    return False


@contextlib.contextmanager
def started(model: str, *flags: str) -> Iterator[tuple[Server, subprocess.Popen[str]]]:
    """`cascadevl serve` as anybody would start it."""
    command = [sys.executable, "-m", "cascadevl", "serve", "--model", model, *FLAGS, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://([\d.]+):(\d+)/", process.stdout.readline())
            assert found, "the server did not start"
            yield Server(found[1], int(found[2]), process.pid), process
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def _rss_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def settled(row: Row, server: Server) -> Row:
    row.at_rest = at_rest(server)
    return row
