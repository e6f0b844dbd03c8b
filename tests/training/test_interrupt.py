"""Signals are waited for once, and put back; a folder is held by one process."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cascadevl.core.errors import ConfigError
from cascadevl.training.interrupt import Patience, alone


def test_the_first_signal_is_remembered_and_the_second_ends_as_always() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Patience() as patience:
        os.kill(os.getpid(), signal.SIGINT)
        assert patience.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_are_left_alone_where_none_came_and_on_other_threads() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Patience() as patience:
        assert signal.getsignal(signal.SIGTERM) != before[1]
    thread = threading.Thread(target=lambda: Patience().__enter__())
    thread.start()
    thread.join()
    assert patience.number is None
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_folder_is_held_by_one_process_and_free_when_it_dies(tmp_path: Path) -> None:
    held = "import sys; from pathlib import Path; from cascadevl.training.interrupt import alone\n"
    held += "with alone(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", held, str(tmp_path / "run")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="Another process trains"), alone(tmp_path / "run"):
            pass
        other.kill()
    with alone(tmp_path / "run"), pytest.raises(ConfigError), alone(tmp_path / "run"):
        pass
