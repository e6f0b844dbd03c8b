"""CPU engines side by side on one language model: SmolLM2-135M, a prompt of 512 tokens, 128 said.

python benchmarks/cpu_engines.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --peers PYTHON --work DIR [--threads 1 2]
    [--batches 1 8] [--rounds 5] [--only NAME …] [--json OUT]

Peers run in an environment of their own (PYTHON: its interpreter), each contender in a process of its own that does
what it is told over a pipe, one at a time, in turns. Ours keeps the output matrix in int8, or in 4 bits
(head4), and keys and values in fp32, or in 8 bits (kv8). Every contender reads the same weights: those of the GGUF
file, made fp32, and rounded by its own means. What counts is wall time and CPU time of prefill and of decode;
perplexity over the same text says what the rounding cost. `--busy` keeps the second core at work with something else.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROMPT, SAID = 512, 128
OURS = ("ours fp32", "ours int8-g64", "ours int4-g32-zeros", "ours int4-g32-zeros kv8", "ours int4-g32-zeros head4 kv8")
PEERS = ("llama.cpp Q4_0", "llama.cpp Q8_0", "onnxruntime-genai int4", "ctranslate2 int8", "transformers fp32")


class Contender:
    """A process that computes when told to."""

    def __init__(self, name: str, python: str, gguf: Path, work: Path, threads: int) -> None:
        self.name = name
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        command = [python, str(HERE / "cpu_engines_worker.py"), name, str(gguf), str(work), str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.ready = self.read()

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        """The next line that is ours: libraries print too."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError(f"{self.name} has ended with {self.process.wait()}.")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def measured(contenders: list[Contender], batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians over interleaved rounds; the first round warms up."""
    rows: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in contenders}
    for number in range(rounds + 1):
        for contender in contenders:
            row = contender.ask(do="run", batch=batch, prompt=PROMPT, said=SAID)
            if number and "refused" not in row:
                rows[contender.name].append(row)
    medians = {
        name: {key: statistics.median(row[key] for row in found) for key in found[0]}
        for name, found in rows.items()
        if found
    }
    return {
        name: {
            "prefill tokens/s": round(batch * PROMPT / row["prefill_s"], 1),
            "decode tokens/s": round(batch * SAID / row["decode_s"], 1),
            "decode tokens/CPU-s": round(batch * SAID / row["decode_cpu_s"], 1),
            "memory MB": round(row["memory_mb"]),
        }
        for name, row in medians.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[*OURS, *PEERS])
    parser.add_argument("--tokens", type=int, default=50_000, help="of held-out text for perplexity; 0: none")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for threads in arguments.threads:
        contenders = []
        for name in arguments.only:
            python = sys.executable if name.startswith("ours") else arguments.peers
            try:
                contenders.append(Contender(name, python, arguments.gguf, arguments.work, threads))
            except RuntimeError as error:
                print(f"left out: {error}")
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if arguments.busy else None
        try:
            for batch in arguments.batches:
                rows = measured(contenders, batch, arguments.rounds)
                results[f"{threads} threads, batch {batch}{', busy' if busy else ''}"] = rows
                for name, row in rows.items():
                    print(f"{threads} threads, batch {batch}  {name:24} {row}", flush=True)
        finally:
            if busy:
                busy.kill()
        if threads == arguments.threads[0] and arguments.tokens:
            results["perplexity"] = {}
            for contender in contenders:
                row = contender.ask(do="perplexity", tokens=arguments.tokens)
                results["perplexity"][contender.name] = row
                print(f"perplexity  {contender.name:24} {row}", flush=True)
        for contender in contenders:
            contender.close()
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
