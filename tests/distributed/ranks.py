"""Several processes on this machine, as torchrun would start them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_ranks(words: list[str], num_ranks: int, timeout_s: float = 400) -> list[subprocess.CompletedProcess[str]]:
    """`python WORDS` once per rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(num_ranks):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_PORT": port}
        environment = {**os.environ, **{name: str(value) for name, value in world.items()}}
        environment |= {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen([sys.executable, *words], env=environment, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)
        )
    done = []
    try:
        for process in started:
            out, err = process.communicate(timeout=timeout_s)
            done.append(subprocess.CompletedProcess(words, process.returncode, out, err))
    finally:
        for process in started:
            process.kill()
            process.communicate()
    return done
