"""A run that is asked to stop finishes its step and saves it; and a folder has one run at a time."""

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from cascadevl.core.errors import ConfigError
from cascadevl.core.files import writable_folder

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what schedulers send before they take a machine away."""


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, and its last step is saved."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(step, number)
        self.step = step
        self.number = number
        """Of the signal."""


@dataclass(slots=True)
class Patience:
    """Within it, the first signal is remembered; the second one ends the process as always."""

    number: int | None = None
    """Of the signal that came."""
    _before: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> "Patience":
        if threading.current_thread() is threading.main_thread():  # no other may listen to signals
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the folder of a run. Raises ConfigError where another process holds it; one that is killed lets go."""
    descriptor = os.open(writable_folder(out), os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"Another process trains in {out} now: wait for it, or choose another --out.") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(descriptor)
