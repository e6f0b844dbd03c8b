"""A watchdog over steps: one that hangs is named, with its rank and its samples, and ends the process.

A collective that waits for a rank that will never come waits for ever and says nothing. Every rank watches itself: the
one whose line differs from the others' is the one to look at.
"""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HUNG = 75
"""Exit code of a process that was ended so."""


def die(message: str) -> None:
    """Tell, show where every thread stands, and leave at once: a thread in a collective cannot be asked to stop."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=sys.stderr)
    os._exit(HUNG)


class Watchdog:
    """`with watchdog(message): …` calls `bark(message)` if the block takes longer than `seconds`."""

    def __init__(self, seconds: float, bark: Callable[[str], None] = die) -> None:
        self.seconds = seconds
        self._bark = bark

    @contextmanager
    def __call__(self, message: Callable[[], str]) -> Iterator[None]:
        """The message is made only if it is needed."""
        timer = threading.Timer(self.seconds, lambda: self._bark(f"{message()} (no end after {self.seconds:g} s)"))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
