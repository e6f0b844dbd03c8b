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
GROWTH = 0.05
"""Of resident memory, that counts as none."""
SLACK = 8
"""Threads and descriptors that a server may have more of than before: its pools fill when they are needed, and what
is forgotten with one client in a hundred is far more."""
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

    def memory_mib(self) -> dict[str, int]:
        """Resident; what the decoders share with each other counts for each."""
        decoders = sum(map(_rss_bytes, children(self.pid)))
        return {"server": _rss_bytes(self.pid) >> 20, "decoders": decoders >> 20}

    def belongings(self) -> dict[str, float]:
        """What it may forget to give back."""
        process, seen = Path(f"/proc/{self.pid}"), gauges(self)
        return {
            "threads": len(list((process / "task").iterdir())),
            "descriptors": len(list((process / "fd").iterdir())),
            "decoders": len(children(self.pid)),
            "tasks": seen["event_loop_tasks"],
            "pages": seen["cache_pages"] - seen["cache_pages_available"],
            "tokens": seen["queue_tokens"],
            "memory MiB": self.memory_mib()["server"],
        }


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


BUSY = ("requests_waiting", "requests_running", "queue_requests", "queue_tokens", "queue_bytes")


def at_rest(server: Server) -> bool:
    """Healthy, nobody waits, and every page is free or may be had."""
    end_s = time.monotonic() + REST_S
    while time.monotonic() < end_s:
        seen = gauges(server)
        busy = [seen.get(name) for name in BUSY]
        if busy == [0] * len(BUSY) and seen["cache_pages"] == seen["cache_pages_available"]:
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


def compare(row: Row, server: Server, before: dict[str, float]) -> None:
    """Nothing may be left of those who came since: what they had is given back within REST_S."""
    slack = {"threads": SLACK, "descriptors": SLACK, "memory MiB": GROWTH * before["memory MiB"]}
    end_s = time.monotonic() + REST_S
    while True:
        at_rest(server)
        after = server.belongings()
        more = {name for name, value in after.items() if value > before[name] + slack.get(name, 0)}
        if not more or time.monotonic() > end_s:
            break
        time.sleep(0.5)
    row.notes |= {"before": before, "after": after}
    row.ends["nothing left" if not more else f"left: {', '.join(sorted(more))}"] += 1


def settled(row: Row, server: Server) -> Row:
    row.at_rest = at_rest(server)
    return row
