"""Our server against the bare engine, against transformers and against llama.cpp, by the same client.

python benchmarks/serving.py [engine] [peers] [sweep] [llama] [--requests 64] [--tokens 64] [--clients 16]
    [--rounds 3] [--model nano] [--threads 1] [--out benchmarks/results]

engine   closed loop of --clients on text: our server's tokens/s over those of the engine without a server
peers    closed loop on text, on pictures of which 90 % were shown before, and on distinct pictures: ours over a
         minimal transformers server (fp32, generate with streaming, one request at a time) and, with --serve PROGRAM,
         over `PROGRAM serve`; for distinct pictures beside the bound that preparing, vision and prefill at measured
         rates leave
sweep    our server from one client to the knee, drawn as serving.png
llama    --gguf FILE --llama SERVER: ours on the same language model over llama.cpp's, eight clients; SERVER is a
         llama-server, or a Python that has llama-cpp-python[server]. FILE is what llama.cpp reads, --ours what we
         round it to

Servers are processes of their own, started once and loaded in turns: every round asks of each, for each kind of
question, what no round before asked. Medians of rounds; the first warms up. Without a name, the first three parts.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cascadevl.core.errors import UserError
from cascadevl.serving.load.client import Client, connect, load
from cascadevl.serving.load.plot import plot
from cascadevl.serving.load.sweep import sweep
from cascadevl.serving.load.traffic import Pace, Traffic, questions
from cascadevl.serving.load.wire import Target

HERE = Path(__file__).resolve().parent
WORKER = str(HERE / "serving_worker.py")
KINDS: dict[str, dict[str, Any]] = {
    "text": {},
    "repeated": {"images_share": 1.0, "repeated_share": 0.9},
    "distinct": {"images_share": 1.0},
}
START_S = 300.0


class Bench:
    """The settings, and what was measured so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        environment = {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
        self.environment = {**os.environ, **environment, "PYTHONPATH": str(HERE.parent)}
        self.results: dict[str, Any] = {}

    def traffic(self, kind: str) -> Traffic:
        return Traffic(requests=self.arguments.requests, output_tokens=self.arguments.tokens, **KINDS[kind])

    def client(self, url: str, extra: dict[str, Any] | None = None) -> Client:
        # Pictures need not be known to a server of a language model: the first question is of text.
        return asyncio.run(connect(Target.of(url), None, extra or {}, START_S, Traffic()))

    def loaded(self, client: Client, traffic: Traffic, seed: str, clients: int) -> dict[str, Any]:
        row, _ = asyncio.run(load(client, traffic, Pace(concurrency=clients), seed))
        return row

    @contextlib.contextmanager
    def server(self, *command: str) -> Iterator[str]:
        """Its URL, once somebody answers. {port} in the command is a free one."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [word.replace("{port}", str(port)) for word in command]
        log = open(self.arguments.out / "serving.log", "ab")  # noqa: SIM115
        with log, subprocess.Popen(words, stdout=log, stderr=log, env=self.environment) as process:
            try:
                end_s = time.monotonic() + START_S
                while True:
                    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                        break
                    if process.poll() is not None or time.monotonic() > end_s:
                        raise RuntimeError(f"{words} did not start: see {log.name}.")
                    time.sleep(0.2)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.kill()

    def ours(self) -> contextlib.AbstractContextManager[str]:
        model = self.arguments.model
        words = ("serve", "--model", model, "--dtype", "float32", "--device", "cpu", "--port", "{port}")
        return self.server(sys.executable, "-m", "cascadevl", *words)

    @contextlib.contextmanager
    def engine(self) -> "Iterator[Engine]":
        command = [sys.executable, WORKER, "engine", self.arguments.model]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=self.environment) as process:
            try:
                yield Engine(process)
            finally:
                process.kill()


class Engine:
    """The bare engine in a process of its own, which computes when told to."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._read()

    def ask(self, **order: Any) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError(f"the engine has ended with {self._process.wait()}.")


def median(rows: list[dict[str, Any]], name: str = "output_tokens_per_s") -> float:
    """Of all rounds but the first."""
    return statistics.median(row[name] for row in rows[1:])


def asked(bench: Bench, kind: str, seed: str) -> list[Any]:
    return [question.messages() for question in questions(bench.traffic(kind), seed)]


def against_engine(bench: Bench) -> dict[str, Any]:
    arguments = bench.arguments
    served, bare = list[Any](), list[Any]()
    with bench.ours() as url, bench.engine() as engine:
        client = bench.client(url)
        for number in range(arguments.rounds + 1):
            seed = f"engine {number}"
            served.append(bench.loaded(client, bench.traffic("text"), seed, arguments.clients))
            order = {"questions": asked(bench, "text", seed), "tokens": arguments.tokens, "clients": arguments.clients}
            bare.append(engine.ask(do="serve", **order))
    share = median(served) / median(bare)
    return {
        "server tokens/s": round(median(served), 1),
        "engine tokens/s": round(median(bare), 1),
        "server of engine": round(share, 3),
        "failed": sum(row["failed"] for row in served),
        "rounds": served[1:],
    }


def peers_of(bench: Bench) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """Name -> command, and fields that fix the length of its answers."""
    found: dict[str, Any] = {
        "transformers": ([sys.executable, WORKER, "transformers", bench.arguments.model, "{port}"], {})
    }
    if bench.arguments.serve:
        from cascadevl.checkpoints.layouts import locate

        tokens, folder = bench.arguments.tokens, str(locate(bench.arguments.model))
        words = [bench.arguments.serve, "serve", folder, "--port", "{port}", "--device", "cpu"]
        length = json.dumps({"max_new_tokens": tokens, "min_new_tokens": tokens})
        found["transformers serve"] = ([*words, "--dtype", "float32"], {"generation_config": length})
    return found


def against_peers(bench: Bench) -> dict[str, Any]:
    arguments, clients = bench.arguments, dict[str, Client]()
    rows: dict[str, dict[str, list[Any]]] = {kind: {} for kind in KINDS}
    bounds = list[Any]()
    results: dict[str, Any] = {}
    with contextlib.ExitStack() as held:
        clients["ours"] = bench.client(held.enter_context(bench.ours()))
        engine = held.enter_context(bench.engine())
        for name, (command, extra) in peers_of(bench).items():
            try:
                clients[name] = bench.client(held.enter_context(bench.server(*command)), extra)
            except (UserError, RuntimeError) as error:
                results[name] = f"left out: {error}"
                print(f"{name} is left out: {error}", flush=True)
        for number in range(arguments.rounds + 1):
            for kind in KINDS:
                for name, client in clients.items():
                    row = bench.loaded(client, bench.traffic(kind), f"{kind} {number}", arguments.clients)
                    rows[kind].setdefault(name, []).append(row)
            order = {"tokens": arguments.tokens, "clients": arguments.clients}
            text_s = engine.ask(do="serve", questions=asked(bench, "text", f"text {number}"), **order)["duration_s"]
            pictures = asked(bench, "distinct", f"distinct {number}")
            bounds.append(engine.ask(do="bound", questions=pictures, text_s=text_s))
    for kind, told in rows.items():
        ours = median(told["ours"])
        results[kind] = {f"{name} tokens/s": round(median(each), 1) for name, each in told.items()}
        results[kind] |= {
            f"times {name}": round(ours / median(each), 2) for name, each in told.items() if name != "ours"
        }
        results[kind]["failed"] = {name: sum(row["failed"] for row in each) for name, each in told.items()}
        results[kind]["ttft ms"] = {name: each[-1]["ttft_ms"] for name, each in told.items()}
    bound_s, taken_s = median(bounds, "bound_s"), median(rows["distinct"]["ours"], "duration_s")
    results["distinct"] |= {"bound s": round(bound_s, 3), "ours s": round(taken_s, 3)}
    results["distinct"]["of bound"] = round(bound_s / taken_s, 3)
    return results


def to_the_knee(bench: Bench) -> dict[str, Any]:
    with bench.ours() as url:
        client = bench.client(url)
        bench.loaded(client, bench.traffic("text"), "warm-up", 4)

        async def run(pace: Pace) -> dict[str, Any]:
            row, _ = await load(client, bench.traffic("text"), pace, f"sweep {pace.concurrency}")
            return {"clients": pace.concurrency, **row}

        rows, knee = asyncio.run(sweep(Pace(concurrency=1), run))
    at = [row["clients"] for row in rows]
    plot(bench.arguments.out / "serving.png", bench.arguments.model, "clients", at, rows, knee)
    return {"loads": rows, "knee": None if knee is None else at[knee]}


def against_llama(bench: Bench) -> dict[str, Any]:
    arguments = bench.arguments
    if arguments.llama is None or arguments.gguf is None:
        raise SystemExit("llama needs --llama SERVER and --gguf FILE.")
    file, threads = str(arguments.gguf), str(arguments.threads)
    if "llama-server" in Path(arguments.llama).name:
        words = [arguments.llama, "-m", file, "--port", "{port}", "-np", "8", "-c", "16384", "-t", threads]
    else:
        words = [arguments.llama, "-m", "llama_cpp.server", "--model", file, "--port", "{port}"]
        words += ["--n_ctx", "4096", "--n_threads", threads, "--n_threads_batch", threads]
    ours = [sys.executable, WORKER, "gguf", file, arguments.ours, "{port}"]
    rows: dict[str, list[Any]] = {"ours": [], "llama.cpp": []}
    with bench.server(*ours) as our_url, bench.server(*words) as their_url:
        clients = {"ours": bench.client(our_url), "llama.cpp": bench.client(their_url)}
        for number in range(arguments.rounds + 1):
            for name, client in clients.items():
                rows[name].append(bench.loaded(client, bench.traffic("text"), f"llama {number}", 8))
    found: dict[str, Any] = {f"{name} tokens/s": round(median(each), 1) for name, each in rows.items()}
    found["times"] = round(median(rows["ours"]) / median(rows["llama.cpp"]), 2)
    found["output tokens"] = {name: each[-1]["output_tokens"] for name, each in rows.items()}
    found["failed"] = {name: sum(row["failed"] for row in each) for name, each in rows.items()}
    return found


PARTS = {"engine": against_engine, "peers": against_peers, "sweep": to_the_knee, "llama": against_llama}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--model", default="nano")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each server's computing")
    parser.add_argument("--serve", metavar="PROGRAM", help="`transformers` of an environment that has torchvision")
    parser.add_argument("--llama", metavar="SERVER")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--ours", default="int4-g32", help="what we round the GGUF file's weights to")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    if set(arguments.parts) - set(PARTS):
        parser.error(f"parts are {', '.join(PARTS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench, path = Bench(arguments), arguments.out / "serving.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for part in arguments.parts or ["engine", "peers", "sweep"]:
        settings = {name: getattr(arguments, name) for name in ("requests", "tokens", "clients", "rounds", "threads")}
        results[part] = {"settings": settings, **PARTS[part](bench)}
        shown = {name: value for name, value in results[part].items() if name not in ("settings", "rounds", "loads")}
        print(f"{part:7} {json.dumps(shown, indent=2)}", flush=True)
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
