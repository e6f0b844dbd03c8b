"""Who is taken on: so many requests, tokens and bytes at a time, the rest is told when to come again.

Only the event loop's thread comes here, hence no locks.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cascadevl.serving.config import ServingConfig
from cascadevl.serving.refusals import Refused


class Place:
    """What one request holds until it has its answer."""

    def __init__(self, admission: "Admission", api: str) -> None:
        self.admission, self.api = admission, api
        self.started_s = time.perf_counter()
        self.num_tokens = self.num_bytes = 0

    def hold(self, *, tokens: int = 0, num_bytes: int = 0) -> None:
        """Take more, or less where negative. Raises Refused (429) where that is too much beside what others hold."""
        self.admission.check(self, tokens, num_bytes)
        self.num_tokens += tokens
        self.num_bytes += num_bytes


class Admission:
    """Bounds on everything that requests in flight hold. One that is alone is never told to come again."""

    def __init__(self, config: ServingConfig) -> None:
        self._config = config
        self._places: set[Place] = set()
        self._mean_s = 1.0
        self.draining = False
        """Nobody new is taken on."""

    def __len__(self) -> int:
        return len(self._places)

    @property
    def num_tokens(self) -> int:
        return sum(place.num_tokens for place in self._places)

    @property
    def num_bytes(self) -> int:
        return sum(place.num_bytes for place in self._places)

    @contextmanager
    def place(self, api: str) -> Iterator[Place]:
        """A place for one request. Raises Refused: 503 while the server stops, 429 when it is full."""
        if self.draining:
            raise Refused(
                503, "The server is stopping: ask another one, or this one later.", code="stopping",
                headers={"Retry-After": "10"},
            )  # fmt: skip
        if len(self._places) >= self._config.max_requests:
            raise self._full(f"{len(self._places)} requests are in flight")
        place = Place(self, api)
        self._places.add(place)
        try:
            yield place
        finally:
            self._places.discard(place)
            self._mean_s += 0.1 * (time.perf_counter() - place.started_s - self._mean_s)

    def check(self, place: Place, tokens: int, num_bytes: int) -> None:
        if len(self._places) <= 1:
            return
        config = self._config
        if tokens > 0 and self.num_tokens + tokens > config.max_queue_tokens:
            raise self._full(f"{self.num_tokens} of {config.max_queue_tokens} tokens are taken, this needs {tokens}")
        if num_bytes > 0 and self.num_bytes + num_bytes > config.max_queue_bytes:
            raise self._full(f"{self.num_bytes} of {config.max_queue_bytes} bytes are taken, this needs {num_bytes}")

    def _full(self, why: str) -> Refused:
        """A place is likely to be free after the share of a mean request's time."""
        wait_s = min(60, max(1, math.ceil(self._mean_s / max(1, len(self._places)))))
        return Refused(
            429,
            f"The server is full: {why}. Try again in {wait_s} s.",
            code="queue_full",
            headers={"Retry-After": str(wait_s)},
        )
