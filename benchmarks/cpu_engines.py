"""CPU engines side by side on one language model: SmolLM2-135M, a prompt of 512 tokens, 128 said.

python benchmarks/cpu_engines.py [speed] [busy] [context] [perplexity] --gguf SmolLM2-135M-Instruct.Q4_1.gguf
    --peers PYTHON --work DIR --json OUT [--threads 1 2] [--batches 1 8] [--rounds 3] [--only NAME …] [--again]

speed       prefill and decode of every contender, by wall and CPU time, and the most memory it had at work
busy        two threads while something else keeps the second core at work, against one thread
context     decode after 4k tokens, keys and values of 8 bits against fp32
perplexity  of 50,000 held-out tokens, which says what the rounding cost; takes long, and goes on where it was left

Nothing named: only the table of goals, of what OUT has; new results are added to it. Peers run in an environment of
their own (PYTHON: its interpreter), each contender in a process of its own that does what it is told over a pipe, one
at a time, in turns; medians. Every contender reads the same weights: those of the GGUF file, made fp32, and rounded by
its own means. Ours keeps the output matrix in int8, or in 4 bits (head4), and keys and values in fp32, or in 8 bits
(kv8); weights are rounded to nearest, or by GPTQ on docstrings of Python's library (gptq; needs head4).
"""

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROMPT, SAID, LONG, WINDOW = 512, 128, 4096, 512
TOKENS = 50_000
OURS = (
    "ours fp32",
    "ours int8-g64",
    "ours int8-g64 kv8",
    "ours int4-g32-zeros",
    "ours int4-g32-zeros kv8",
    "ours int4-g32-zeros head4 kv8",
    "ours int4-g32-zeros gptq head4 kv8",
)
PEERS = ("llama.cpp Q4_0", "llama.cpp Q8_0", "onnxruntime-genai int4", "ctranslate2 int8", "transformers fp32")
BUSY = ("ours int4-g32-zeros", "ours int4-g32-zeros gptq head4 kv8", "llama.cpp Q4_0")
LONG_PAIR = ("ours int4-g32-zeros", "ours int4-g32-zeros kv8")

Row = dict[str, float]


class Contender:
    """A process that computes when told to."""

    def __init__(self, name: str, arguments: argparse.Namespace, threads: int) -> None:
        self.name = name
        python = sys.executable if name.startswith("ours") else arguments.peers
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        worker = [str(HERE / "cpu_engines_worker.py"), name, str(arguments.gguf), str(arguments.work), str(threads)]
        self.process = subprocess.Popen(
            [python, *worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._read()

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        row = self._read()
        if "refused" in row:
            raise RuntimeError(f"{self.name}: {row['refused']}")
        return row

    def run(self, batch: int, prompt: int = PROMPT) -> Row:
        """Rates of one round."""
        row = self.ask(do="run", batch=batch, prompt=prompt, said=SAID)
        rates = {
            "prefill tokens/s": batch * prompt / row["prefill_s"],
            "prefill tokens/CPU-s": batch * prompt / row["prefill_cpu_s"],
            "decode tokens/s": row["decoded"] / row["decode_s"],
            "decode tokens/CPU-s": row["decoded"] / row["decode_cpu_s"],
        }
        return rates | {name.replace("_mb", " MB"): row[name] for name in ("peak_mb", "kv_mb") if name in row}

    def _read(self) -> dict[str, Any]:
        """The next line that is ours: libraries print too."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError(f"{self.name} has ended with {self.process.wait()}.")


def started(names: list[str], arguments: argparse.Namespace, threads: int, until: ExitStack) -> list[Contender]:
    """Those that start; each has answered once, so that the first round finds it warm."""
    contenders = []
    for name in names:
        try:
            contenders.append(until.enter_context(Contender(name, arguments, threads)))
            contenders[-1].ask(do="run", batch=1, prompt=64, said=8)
        except RuntimeError as error:
            print(f"left out: {error}", flush=True)
    return contenders


def medians(ways: dict[str, Callable[[], Row]], rounds: int) -> dict[str, Row]:
    """Of interleaved rounds."""
    rows: dict[str, list[Row]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            rows[name].append(way())
    found = {name: {key: statistics.median(row[key] for row in rows[name]) for key in rows[name][0]} for name in ways}
    for name, row in found.items():
        print(f"  {name:44} " + "  ".join(f"{key} {value:.1f}" for key, value in row.items()), flush=True)
    return {name: {key: round(value, 2) for key, value in row.items()} for name, row in found.items()}


def speed(arguments: argparse.Namespace, results: "Results") -> None:
    for threads in arguments.threads:
        with ExitStack() as until:
            contenders = started(arguments.only or [*OURS, *PEERS], arguments, threads, until)
            for batch in arguments.batches:
                print(f"{threads} threads, batch {batch}", flush=True)
                # At fp32 only prefill is compared, and only of one prompt: a batch of it would take longest.
                here = [c for c in contenders if batch == 1 or not c.name.endswith("fp32")]
                rows = medians({c.name: lambda c=c, n=batch: c.run(n) for c in here}, arguments.rounds)
                results.add("speed", f"{threads} threads, batch {batch}", rows)


def busy(arguments: argparse.Namespace, results: "Results") -> None:
    """The other process is stopped and continued; it has the last core for itself, and nobody else is sent away."""
    with ExitStack() as until:
        spinning = until.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
        until.callback(spinning.kill)
        os.sched_setaffinity(spinning.pid, {max(os.sched_getaffinity(0))})
        ways: dict[str, Callable[[], Row]] = {}

        def run(contender: Contender, with_it: bool) -> Row:
            spinning.send_signal(signal.SIGCONT if with_it else signal.SIGSTOP)
            return contender.run(1)

        for threads in (1, 2):
            spinning.send_signal(signal.SIGSTOP)
            for contender in started(arguments.only or list(BUSY), arguments, threads, until):
                for with_it in (False, True):
                    label = f"{contender.name}, {threads} threads{', busy' if with_it else ''}"
                    ways[label] = lambda c=contender, w=with_it: run(c, w)
        print("a busy second core", flush=True)
        results.add("busy", "batch 1", medians(ways, arguments.rounds))


def context(arguments: argparse.Namespace, results: "Results") -> None:
    with ExitStack() as until:
        contenders = started(arguments.only or list(LONG_PAIR), arguments, 1, until)
        print(f"after {LONG - SAID} tokens", flush=True)
        rows = medians({c.name: lambda c=c: c.run(1, LONG - SAID) for c in contenders}, arguments.rounds)
        results.add("context", "1 threads, batch 1", rows)


def perplexity(arguments: argparse.Namespace, results: "Results") -> None:
    """In pieces, each of which is saved."""
    names = arguments.only or [*PEERS, *reversed(OURS)]
    plan = [(name, WINDOW) for name in names if not name.endswith("fp32")]
    plan += [(name, LONG) for name in LONG_PAIR if name in names]
    plan += [(name, WINDOW) for name in names if name.endswith("fp32")]
    for name, window in plan:
        starts = list(range(0, -(-TOKENS // (window - 1)) * window, window))
        have = {} if arguments.again else results.found["perplexity"].get(f"windows of {window}", {}).get(name, {})
        done, nats, tokens = have.get("windows", 0), have.get("nats", 0.0), have.get("tokens", 0)
        if done == len(starts):
            continue
        try:
            with Contender(name, arguments, 1) as contender:
                for first in range(done, len(starts), 4):
                    row = contender.ask(do="perplexity", window=window, at=starts[first : first + 4])
                    nats, tokens, done = nats + row["nats"], tokens + row["tokens"], min(first + 4, len(starts))
                    new = {
                        "perplexity": round(math.exp(nats / tokens), 4), "tokens": tokens, "nats": nats,
                        "windows": done, "text": row["text"],
                    }  # fmt: skip
                    results.add("perplexity", f"windows of {window}", {name: new})
            print(f"perplexity in windows of {window}  {name:34} {results.perplexity(name, window)}", flush=True)
        except RuntimeError as error:
            print(f"left out: {error}", flush=True)


class Results:
    """What was measured, saved as it comes beside what was before."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found = self._read()

    def _read(self) -> dict[str, dict[str, dict[str, Any]]]:
        found = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        return {what: found.get(what, {}) for what in ("speed", "busy", "context", "perplexity")}

    def add(self, what: str, row: str, values: dict[str, Any]) -> None:
        self.found = self._read()  # another run may have added to it meanwhile
        self.found[what].setdefault(row, {}).update(values)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        part.replace(self.file)

    def counts(self, name: str, peer: str) -> str:
        """What makes it count beside the peer; nothing where it does not."""
        own, other = self.perplexity(name), self.perplexity(peer)
        if own is None or other is None:
            return "not measured"
        return f"{own} against {other}" if own <= 1.01 * other else ""

    def perplexity(self, name: str, window: int = WINDOW) -> float | None:
        """None where not all of the text has been read."""
        row = self.found["perplexity"].get(f"windows of {window}", {}).get(name, {})
        return row["perplexity"] if row.get("tokens", 0) >= TOKENS else None


GOALS = (
    ("decode, int4", "decode tokens/s", 1, "ours int4", "onnxruntime-genai int4", 1.3),
    ("decode, int4", "decode tokens/s", 1, "ours int4", "llama.cpp Q4_0", 1.8),
    ("decode, int4", "decode tokens/s", 8, "ours int4", "onnxruntime-genai int4", 1.3),
    ("decode, int4", "decode tokens/s", 8, "ours int4", "llama.cpp Q4_0", 2.0),
    ("decode, int8", "decode tokens/s", 1, "ours int8", "llama.cpp Q8_0", 1.3),
    ("prefill, best", "prefill tokens/s", 1, "ours", "ctranslate2 int8", 1.15),
    ("prefill, fp32", "prefill tokens/s", 1, "ours fp32", "transformers fp32", 1.0),
)


def table(results: Results) -> None:
    """Each goal beside the fastest of ours that counts: whose perplexity is at most 1 % above the peer's."""
    print(f"\n{'':34}{'goal':>5}{'wall':>7}{'CPU':>7}")
    for title, rate, batch, ours, peer, goal in GOALS:
        for threads in (1, 2):
            rows = results.found["speed"].get(f"{threads} threads, batch {batch}", {})
            line = f"{title}, {batch} at once, {threads} thr."
            fits = {name: counts for name in rows if name.startswith(ours) and (counts := results.counts(name, peer))}
            if peer not in rows or not fits:
                print(f"{line:34}{goal:>5}      ?      ?  {ours} ÷ {peer}")
                continue
            best = max(fits, key=lambda name: rows[name][rate])
            wall, cpu = (rows[best][kind] / rows[peer][kind] for kind in (rate, rate.replace("/s", "/CPU-s")))
            print(f"{line:34}{goal:>5}{wall:7.2f}{cpu:7.2f}  {best} ÷ {peer}: perplexity {fits[best]}")
    rows = results.found["busy"].get("batch 1", {})
    for name in (n for n in BUSY if f"{n}, 2 threads, busy" in rows):
        hows = ("2 threads, busy", "1 threads", "1 threads, busy")
        two, one, one_busy = (rows[f"{name}, {how}"]["decode tokens/s"] for how in hows)
        print(
            f"second core busy: two threads {two / one:.2f} of one alone, {two / one_busy:.2f} of one beside it: {name}"
        )
    rows = results.found["context"].get("1 threads, batch 1", {})
    if all(name in rows for name in LONG_PAIR):
        full, few = (rows[name] for name in LONG_PAIR)
        change = [results.perplexity(name, LONG) for name in LONG_PAIR]
        says = f"{change[0]} → {change[1]}" if all(change) else "not measured"
        print(
            f"int8 keys and values at {LONG}: decode {few['decode tokens/s'] / full['decode tokens/s']:.2f} times, "
            f"memory 1/{full['kv MB'] / few['kv MB']:.2f}, perplexity {says}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"speed": speed, "busy": busy, "context": context, "perplexity": perplexity}
    parser.add_argument("what", nargs="*", metavar="what", choices=[*parts, []])
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="names of contenders")
    parser.add_argument("--again", action="store_true", help="perplexity from the beginning")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "cpu_engines.json")
    arguments = parser.parse_args()
    results = Results(arguments.json)
    for what in arguments.what:
        parts[what](arguments, results)
    table(results)


if __name__ == "__main__":
    main()
