"""Stopping gracefully: those who are being answered get their answers, new ones are sent away."""

import gc
import logging
import socket
import sys
import time
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import uvicorn

from cascadevl.serving.app import Service, build_app

IDLE_S = 15
"""How long a connection is kept on which no request is being answered, whatever drips in."""
SWITCH_S = 0.0005
"""How long a thread that runs Python keeps others waiting that want to."""
CLOSING_S = 5
"""How long what is still running after the drain may take to end."""


class Server(uvicorn.Server):
    """uvicorn, which at the first SIGTERM or Ctrl-C only stops taking on requests; at the second it ends."""

    def __init__(self, service: Service, api_key: str | None = None) -> None:
        config = uvicorn.Config(
            build_app(service, api_key),
            http=_protocol(),
            loop="asyncio",  # measured once, with h11: 71 µs of the processor for each token, with uvloop 82
            ws="none",
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            timeout_keep_alive=IDLE_S,
            timeout_graceful_shutdown=CLOSING_S,
        )
        super().__init__(config)
        self._service = service
        self._drained_by_s: float | None = None
        self._idle_since_s: WeakKeyDictionary[Any, float] = WeakKeyDictionary()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn for a signal."""
        if self._drained_by_s is not None:
            return super().handle_exit(sig, frame)
        self._service.admission.draining = True
        self._drained_by_s = time.monotonic() + self._service.config.drain_s

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; True ends the server."""
        self._let_go()
        if self._drained_by_s is not None:
            self.should_exit |= not len(self._service.admission) or time.monotonic() > self._drained_by_s
        if self.should_exit:  # else uvicorn would cut them off later, without a word
            self._service.loop.dismiss()
        return await super().on_tick(counter)

    def _let_go(self) -> None:
        """uvicorn waits without end for the head of a first request, and for any head that comes in drops."""
        now_s = time.monotonic()
        connections: list[Any] = list(self.server_state.connections)
        for connection in connections:
            if connection.cycle is not None and not connection.cycle.response_complete:
                self._idle_since_s.pop(connection, None)
            elif now_s - self._idle_since_s.setdefault(connection, now_s) > IDLE_S:
                connection.transport.close()


def _protocol() -> Any:
    """httptools where it is installed: it takes a third of h11's time to send a piece of an answer."""
    try:
        from cascadevl.serving.connection import Connection
    except ImportError:
        return "h11"
    return Connection


def serve(service: Service, listener: socket.socket, api_key: str | None = None) -> None:
    """Until a signal comes. To be called in the main thread."""
    # The engine's thread comes back from C many times a step; by Python's default it would wait 5 ms each time.
    sys.setswitchinterval(SWITCH_S)
    # What is there by now stays: no collection need look at it again, which would stop the engine for long.
    gc.collect()
    gc.freeze()
    Server(service, api_key).run(sockets=[listener])
