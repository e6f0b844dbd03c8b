"""How fast is a folder loaded? Against reading its files, and against safetensors' own loader.

python benchmarks/loading.py [--rounds 5] [--json OUT]
A random checkpoint with the 300M tower and a small decoder (1.3 GB in fp32), in both layouts, its files in the
page cache; one thread, a fresh process each time, interleaved, medians. `read` is `Path.read_bytes` of every
file: the bytes in fresh memory, unchecked. Ours also checks that every number is finite.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from cascadevl.checkpoints.save import save_parts
from cascadevl.checkpoints.tiny import TINY_DECODERS, TINY_VISION, assemble
from cascadevl.core.config import evolve
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.tokenizer import train_tokenizer

TOWER = {"hidden_size": 1024, "mlp_size": 4096, "num_layers": 24, "num_heads": 16, "tile_px": 448}
DECODER = {"hidden_size": 512, "mlp_size": 1536, "num_layers": 4, "num_heads": 8, "num_kv_heads": 4, "head_size": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as work:
        for layout, family in (("hf", "qwen3"), ("chat", "internlm2")):
            folder = Path(work) / layout
            parts = assemble(
                "300m", evolve(TINY_VISION, **TOWER), evolve(TINY_DECODERS[family], **DECODER),
                train_tokenizer([], 256), Spec(), seed=0, std=0.02,
            )  # fmt: skip
            save_parts(parts, folder, layout=layout)
            del parts
            results[f"{layout}, {family}"] = compare(folder, arguments.rounds)
            print(f"{layout}, {family}: {results[f'{layout}, {family}']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


WAYS = {
    "read": "[path.read_bytes() for path in files]",
    "safetensors": "[{n: t.clone() for n, t in load_file(path).items()} for path in files]",
    "ours": "load_parts(folder, dtype='stored')",
}
PROGRAM = """
import sys, time
from pathlib import Path
import torch
from safetensors.torch import load_file
from cascadevl.checkpoints.load import load_parts
torch.set_num_threads(1)
load_parts("nano")  # imports are not counted
folder = sys.argv[1]
files = sorted(Path(folder).glob("*.safetensors"))
started = time.perf_counter()
kept = {way}
print(time.perf_counter() - started)
"""


def compare(folder: Path, rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            command = [sys.executable, "-c", PROGRAM.replace("{way}", way), str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds[name].append(float(done.stdout))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        **{f"{name}_s": round(value, 4) for name, value in medians.items()},
        "of_read_rate": round(medians["read"] / medians["ours"], 3),
        "of_safetensors_rate": round(medians["safetensors"] / medians["ours"], 3),
    }


if __name__ == "__main__":
    main()
