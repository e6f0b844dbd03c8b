"""Processes that decode: as many as are wanted, killed and replaced where one hangs, crashes or takes too much.

Whoever wants something cut up waits in a thread of its own until a worker is idle. A worker has one task at a time, so
only one request suffers from what it is given.
"""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

import cascadevl
from cascadevl.core.errors import InternalError, MediaError
from cascadevl.core.messages import Video
from cascadevl.core.shapes import num_tiles
from cascadevl.serving.decode import ERRORS, LENGTH, Cut, Task, pack
from cascadevl.serving.refusals import Refused

TRIES = 3
"""Of a task whose worker somebody else kills."""
START_S = 120.0
"""How long a worker may take to be ready."""

LONGEST_HEADER_BYTES = 2**20
"""Of an answer: sizes and grids of a long video are some kilobytes."""

TOLD = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "XDG_CACHE_HOME")
"""What a worker is told of the environment, beside CASCADEVL_…: no keys, no tokens."""


class Workers:
    """A function from tasks to what they give, computed elsewhere. Every method may be called from any thread."""

    def __init__(self, num: int, *, memory_bytes: int, resize: str = "pil", wait_s: float = 600.0) -> None:
        """Nothing is started until it is needed. `resize`: of the tasks to come, loaded in advance.

        `wait_s`: how long a task may wait for an idle worker.
        """
        self._memory_bytes, self._resize, self._wait_s = memory_bytes, resize, wait_s
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # whoever worked last is warm
        for _ in range(num):
            self._idle.put(None)
        self._alive: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False
        self.num_lost = 0
        """Workers that were killed or died over a task."""

    @property
    def pids(self) -> list[int]:
        with self._lock:
            return sorted(worker.process.pid for worker in self._alive)

    def __call__(self, task: Task, seconds: float) -> Cut:
        """Raises MediaError or MessageError for what is wrong with the task, or where it takes more than `seconds`."""
        try:
            worker = self._idle.get(timeout=self._wait_s)
        except queue.Empty:
            raise Refused(503, "No decoder was free in time. Try again later.", code="no_decoder") from None
        try:
            for left in reversed(range(TRIES)):
                try:
                    worker = worker or self._start()
                    return worker.cut_up(task, seconds)
                except _Lost as loss:
                    if not (left and loss.innocent):
                        if worker is None:
                            raise InternalError(f"A decoder does not start: {loss}.") from None
                        raise MediaError(f"A picture or video cannot be decoded: {loss}.") from None
                    worker = self._forget(worker)
            raise AssertionError("the last try ends it")
        finally:
            # An answer that is still on the way must not become the next one's.
            self._idle.put(self._forget(worker) if worker is not None and worker.busy else worker)
            if self._closed:
                self.close()

    def start(self) -> None:
        """Start them now, which takes seconds, and wait until they are ready."""
        waiting = [self._idle.get() for _ in range(self._idle.qsize())]
        with ThreadPoolExecutor(max(1, len(waiting))) as pool:
            starting = [pool.submit(self._start) for worker in waiting if worker is None]
        ready = [worker for worker in waiting if worker] + [each.result() for each in starting if not each.exception()]
        for worker in [*[None] * (len(waiting) - len(ready)), *ready]:
            self._idle.put(worker)
        if len(ready) < len(waiting):
            raise InternalError("The decoders do not start; what they say on stderr tells why.")

    def close(self) -> None:
        """Kill them all. Tasks that are under way fail, and the threads that wait for them clean up behind them."""
        with self._lock:
            self._closed = True
            for worker in self._alive:
                worker.process.kill()
        with suppress(queue.Empty):
            while True:
                if worker := self._idle.get_nowait():
                    self._forget(worker)

    def _start(self) -> "_Worker":
        with self._lock:
            if self._closed:
                raise Refused(503, "The server is stopping.", code="stopping")
            worker = _Worker(self._memory_bytes, self._resize)
            self._alive.add(worker)
        try:
            worker.wait_until_ready()
        except _Lost:
            self._forget(worker)
            raise
        return worker

    def _forget(self, worker: "_Worker | None") -> None:
        if worker is not None:
            worker.end()
            with self._lock:
                self._alive.discard(worker)
                self.num_lost += not self._closed


class _Lost(Exception):
    """A worker is of no use any more."""

    def __init__(self, why: str, *, innocent: bool = False) -> None:
        """`innocent`: it was not the task's fault."""
        super().__init__(why)
        self.innocent = innocent


class _Worker:
    """One process and the socket that leads to it. One thread at a time."""

    def __init__(self, memory_bytes: int, resize: str = "pil") -> None:
        self._channel, theirs = socket.socketpair()
        told = {name: text for name, text in os.environ.items() if name in TOLD or name.startswith("CASCADEVL_")}
        package = Path(cascadevl.__file__).parents[1]
        command = [sys.executable, "-P", "-m", "cascadevl.serving.decode"]
        with theirs:
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(memory_bytes), resize],
                env={**told, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(package)},
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the server, which then still has answers to finish
            )
        self.busy = True
        """Something is still to come from it; stays so where it is lost."""

    def wait_until_ready(self) -> None:
        with self._by(START_S) as until_s:
            self._header(until_s)

    def cut_up(self, task: Task, seconds: float) -> Cut:
        """Raises _Lost, or what the worker says is wrong with the task."""
        with self._by(seconds) as until_s:
            for piece in pack(task, seconds):
                self._patience(until_s)
                self._channel.sendall(piece)
            header = self._header(until_s)
            if "error" in header:
                raise ERRORS[header["error"]](str(header["message"]))
            grids = [(int(columns), int(rows)) for columns, rows in header["grids"]]
            sizes = [(int(width), int(height)) for width, height in header["sizes"]]
            counts = [num_tiles(grid, task.tiling.thumbnail) for grid in grids]
            if len(grids) != len(sizes) or min(map(min, [*grids, *sizes])) < 1 or sum(counts) > task.room:
                raise ValueError("what it was not asked for")
            side = task.tiling.tile_px
            tiles_SCYX = np.empty((sum(counts), 3, side, side), np.uint8)
            self._fill(tiles_SCYX.data.cast("B"), until_s)
        took_s = time.monotonic() - until_s + seconds
        return Cut(sizes, grids, tiles_SCYX, isinstance(task.medium, Video), took_s)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._channel.close()

    def _header(self, until_s: float) -> dict[str, Any]:
        length = bytearray(LENGTH.size)
        self._fill(memoryview(length), until_s)
        (num_bytes,) = LENGTH.unpack(length)
        if num_bytes > LONGEST_HEADER_BYTES:
            raise ValueError(f"a header of {num_bytes} bytes")
        data = bytearray(num_bytes)
        self._fill(memoryview(data), until_s)
        return json.loads(data)

    def _fill(self, memory: memoryview, until_s: float) -> None:
        while memory:
            self._patience(until_s)
            num_bytes = self._channel.recv_into(memory)
            if not num_bytes:
                raise EOFError
            memory = memory[num_bytes:]

    def _patience(self, until_s: float) -> None:
        self._channel.settimeout(max(1e-3, until_s - time.monotonic()))

    @contextmanager
    def _by(self, seconds: float) -> Iterator[float]:
        """Whatever goes wrong between the two of us is told as a loss. Nothing that a worker says is trusted."""
        self.busy = True
        try:
            yield time.monotonic() + seconds
            self.busy = False
        except tuple(ERRORS.values()):
            self.busy = False
            raise
        except TimeoutError:
            raise _Lost(f"it takes more than {seconds:.3g} s") from None
        except (EOFError, OSError):
            status = self._status()
            killed = status in (-signal.SIGKILL, -signal.SIGTERM)  # a person, or the kernel short of memory
            raise _Lost(f"the decoder broke off (status {status})", innocent=killed) from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _Lost(f"the decoder talks nonsense: {error}") from None

    def _status(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=1)
        return None
