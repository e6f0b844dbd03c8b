"""Supervised fine-tuning on lengths as they are: packed, against padding, and against transformers' Trainer.

    python benchmarks/sft.py --json benchmarks/results/sft.json
    python benchmarks/sft.py --models nano --precision bfloat16 --json benchmarks/results/sft.json

Figures of a model and a precision replace those that the file has of it.

Lengths are log-normal (median 300 tokens, 95th percentile 2,000), cut at the model's context, 32 at least; half of the
text is learned, one in four samples has a picture where it is long enough. fp32, or fp32 weights with bf16 products
(autocast, on both sides), one thread, all parameters learn (AdamW, norm clipped at 1), the same weights and the same
samples for every way, prepared beforehand.

    packed       our loop over packs of as many tokens as 8 samples have on average
    one by one   our loop, a sample a forward pass, 8 to an update
    padded       our loop over 8 random samples, all as long as the longest
    Trainer      transformers' Trainer on its InternVL model, 8 samples grouped by length, padded to the longest

Length grouping sorts 50 batches at a time. A round is to be short, so its batches are drawn from the order that
transformers' own sampler gives to 1,600 samples, one from each stretch of that order sorted by length; the other ways
get the samples of these batches, shuffled. Each way has a process of its own and they take turns: rounds are
interleaved, and the figures are medians over rounds. Speeds are per second of the processor: with one thread that is a
second on an idle machine. Memory is the peak above what a process held before it loaded the model (imports and
samples), over the rounds and after one more over the 8 longest of the 1,600, which every epoch has.

`times_faster_at_most` is the Trainer's time over that of our products alone (torch's count of their operations, at the
rate of one large product here): what the ratio would be if nothing else cost anything. Both sides must multiply.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cascadevl.checkpoints.layouts import locate
from cascadevl.checkpoints.save import save_parts
from cascadevl.checkpoints.tiny import assemble
from cascadevl.core.config import evolve
from cascadevl.ops.rope import Rope
from cascadevl.recipes.nano import new_parts

HERE = Path(__file__).resolve().parent
WAYS = ("packed", "one by one", "padded", "Trainer")
BATCH, POOL = 8, 1600
PEAKS = ("peak_mib", "process_peak_mib")
MODELS = ("nano", "nano:4608:4:4096", "nano:37984:28:1024")
"""The last has a quarter of InternVL3.5-1B's vocabulary and width, and all of its layers; its context is short so that
the Trainer's scores of all tokens fit into memory."""


class Process:
    """A way of training that waits for orders."""

    def __init__(self, way: str, folder: Path, max_tokens: int, precision: str, plan: dict[str, Any]) -> None:
        command = [sys.executable, str(HERE / "sft_worker.py"), way, str(folder), str(max_tokens), precision]
        one = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.way = way
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=one)
        self.ask(**plan)

    def ask(self, **order: Any) -> dict[str, Any]:
        """Answers are lines that begin with @: libraries print too."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError(f"{self.way} has ended with {self.process.wait()}.")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def drawn_lengths(longest: int) -> list[int]:
    draw = random.Random(0)
    spread = math.log(2000 / 300) / 1.645
    return [min(max(round(draw.lognormvariate(math.log(300), spread)), 32), longest) for _ in range(POOL)]


def drawn_rounds(lengths: list[int], rounds: int, steps: int) -> list[list[list[int]]]:
    """Batches of transformers' sampler: for each round `steps` of them, one from each stretch by length, shuffled."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    order = list(LengthGroupedSampler(BATCH, lengths=lengths, generator=torch.Generator().manual_seed(0)))
    batches = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
    batches.sort(key=lambda batch: max(lengths[number] for number in batch))
    draw, width = random.Random(0), len(batches) // steps
    stretches = [draw.sample(batches[at * width : (at + 1) * width], rounds) for at in range(steps)]
    found = [[stretch[number] for stretch in stretches] for number in range(rounds)]
    for batches in found:
        draw.shuffle(batches)
    return found


def model_folder(name: str, scratch: Path) -> tuple[Path, int]:
    """nano, or `nano:VOCABULARY:LAYERS:CONTEXT`, its shape at random with another decoder; and the context."""
    if name == "nano":
        return locate(name), 2048
    parts = new_parts()
    vocabulary, layers, context = map(int, name.split(":")[1:])
    decoder = evolve(
        parts.model.config.decoder,
        vocab_size=vocabulary,
        num_layers=layers,
        rope=Rope(theta=1e4, max_position=context),
    )
    files = {key: text for key, text in parts.tokenizer.files.items() if isinstance(text, str)}
    wide = assemble("wide", parts.model.config.vision, decoder, files, parts.spec, seed=0, std=0.02)
    return save_parts(wide, scratch / name.replace(":", "-")), context


def measure(folder: Path, context: int, options: argparse.Namespace) -> dict[str, Any]:
    rounds, steps, names = options.rounds, options.steps, options.ways
    lengths = drawn_lengths(context)
    drawn = drawn_rounds(lengths, rounds + 1, steps)  # the first warms up
    longest = sorted(range(POOL), key=lengths.__getitem__)[-BATCH:]
    max_tokens = max(round(BATCH * statistics.mean(lengths) / 256) * 256, context)
    needed = [number for batches in drawn for batch in batches for number in batch] + longest
    plan = {"lengths": lengths, "samples": needed}
    ways = [Process(way, folder, max_tokens, options.precision, plan) for way in names]
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in names}
    try:
        losses = {way.way: way.ask(do="loss", samples=drawn[0][0])["loss"] for way in ways}
        for number, batches in enumerate(drawn):
            in_order = [sample for batch in (batches[:2] if number == 0 else batches) for sample in batch]
            shuffled = random.Random(number).sample(in_order, len(in_order))
            for way in ways if number % 2 else ways[::-1]:
                row = way.ask(do="run", samples=in_order if way.way == "Trainer" else shuffled)
                if number:
                    rows[way.way].append(row)
                    print(f"  {way.way:12}", {key: round(value, 2) for key, value in row.items()}, flush=True)
        longest_rows = {way.way: way.ask(do="run", samples=longest) for way in ways} if not options.skip_longest else {}
        products_s = ways[0].ask(do="products", samples=[sample for batch in drawn[-1] for sample in batch])["s"]
    finally:
        for way in ways:
            way.close()
    assert max(losses.values()) - min(losses.values()) < 1e-3, losses
    return {
        "context": context,
        "max_tokens": max_tokens,
        "mean_length": round(statistics.mean(lengths), 1),
        "cut_share": round(sum(length == context for length in lengths) / POOL, 3),
        "rounds": rounds,
        "samples_per_round": BATCH * steps,
        "losses_apart": max(losses.values()) - min(losses.values()),
        "ways": {way: figures(rows[way], longest_rows.get(way)) for way in names},
        "packed_against": {way: compared(rows, longest_rows, way) for way in names[1:]},
        "times_faster_at_most": round(rows["Trainer"][-1]["cpu_s"] / products_s, 3),
    }


def middle(values: Iterable[float]) -> float:
    return round(statistics.median(values), 3)


def figures(rows: list[dict[str, float]], longest: dict[str, float] | None) -> dict[str, float]:
    at_longest = {} if longest is None else {f"{key}_longest": round(longest[key], 1) for key in PEAKS}
    return at_longest | {
        "samples_per_s": middle(row["samples"] / row["cpu_s"] for row in rows),
        "counted_tokens_per_s": middle(row["counted_tokens"] / row["cpu_s"] for row in rows),
        "samples_per_wall_s": middle(row["samples"] / row["wall_s"] for row in rows),
        "padding_share": middle(1 - row["tokens"] / row["computed_tokens"] for row in rows),
        "peak_mib": round(rows[-1]["peak_mib"], 1),
    }


def compared(rows: dict[str, list[dict[str, float]]], longest: dict[str, dict[str, float]], way: str) -> dict[str, Any]:
    """Times faster, round by round, and share of the memory. `padding_gained`: of the tokens saved, as time."""
    pairs = list(zip(rows["packed"], rows[way], strict=True))
    gained = [theirs["cpu_s"] / ours["cpu_s"] for ours, theirs in pairs]
    saved = [theirs["computed_tokens"] / ours["computed_tokens"] for ours, theirs in pairs]
    shares = {"memory_share": rows["packed"][-1]["peak_mib"] / rows[way][-1]["peak_mib"]}
    if longest:
        shares["memory_share_longest"] = longest["packed"]["peak_mib"] / longest[way]["peak_mib"]
    return {name: round(share, 3) for name, share in shares.items()} | {
        "times_faster": middle(gained),
        "times_faster_of_rounds": [round(value, 2) for value in gained],
        "times_faster_wall": middle(theirs["wall_s"] / ours["wall_s"] for ours, theirs in pairs),
        "times_fewer_tokens": middle(saved),
        "padding_gained": middle(one / other for one, other in zip(gained, saved, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="packed first, Trainer among them")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of products")
    parser.add_argument("--skip-longest", action="store_true", help="without the round over the 8 longest samples")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="batches of 8 in a round")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.models:
            folder, context = model_folder(name, Path(scratch))
            print(name, flush=True)
            row = measure(folder, context, options)
            row |= {library: version(library) for library in ("torch", "transformers", "accelerate")}
            row["cpu"] = torch.backends.cpu.get_cpu_capability()
            result[f"{name}, {options.precision}"] = row
            print(json.dumps(row, indent=2), flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(options.json.read_text("utf-8")) if options.json.is_file() else {}
        options.json.write_text(json.dumps(before | result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
