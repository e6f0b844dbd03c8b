"""A watchdog barks when a block takes too long, and only then; by default it ends the process."""

import subprocess
import sys
import time

from cascadevl.distributed.watchdog import HUNG, Watchdog


def test_what_ends_in_time_is_left_alone() -> None:
    barked: list[str] = []
    with Watchdog(0.5, barked.append)(lambda: "late"):
        pass
    time.sleep(0.6)
    assert barked == []


def test_a_process_that_hangs_is_ended_with_its_message_and_where_it_stood() -> None:
    code = """
import time
from cascadevl.distributed.watchdog import Watchdog
def stuck():
    time.sleep(60)
with Watchdog(0.1)(lambda: "Rank 3 hangs in step 7 with a, b"):
    stuck()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert ran.returncode == HUNG
    assert "Rank 3 hangs in step 7 with a, b (no end after 0.1 s)" in ran.stderr
    assert "in stuck" in ran.stderr
