"""How full are packs, what does packing cost, and does the loader keep up?

    python benchmarks/packing.py --json benchmarks/results/packing.json

Lengths are log-normal (median 300 tokens, 95th percentile 2,000), as in supervised fine-tuning; half of the samples
have pictures for most of their tokens, 256 a tile. In order of arrival; first fit with most tiles first, as we read
InternVL 2.5's `chat/train/dataset_packed.py` (20 open packs; of too many the one with most tiles goes, full or not);
best fit with several numbers of open packs.
The costs are those of nano on one thread: packing and collating against forward and backward of the same batch, and
the samples that the loader gives against those that a step takes. Interleaved, medians, in seconds of the processor.
"""

import argparse
import io
import itertools
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from cascadevl.core.messages import Conversation, Image, Text, Turn
from cascadevl.data.batch import Batch, collate
from cascadevl.data.loader import Loader
from cascadevl.data.packing import Packer
from cascadevl.data.sources import Dataset, Example
from cascadevl.recipes.nano import new_parts
from cascadevl.recipes.nano_data import make_task, taught
from cascadevl.training.objectives.next_token import NextToken

BUDGETS = {4096: 12, 8192: 24, 16384: 48}
"""Tokens of a pack, and tiles: 48 and 16,384 are InternVL 2.5's."""
Size = tuple[int, int]


def sizes(num: int, max_tokens: int, max_tiles: int) -> list[Size]:
    """(tokens, tiles) of samples that fit an empty pack."""
    draw, found = random.Random(0), list[Size]()
    while len(found) < num:
        tokens = round(draw.lognormvariate(math.log(300), math.log(2000 / 300) / 1.645))
        tiles = int(0.8 * tokens / 256) if draw.random() < 0.5 else 0
        if 8 <= tokens <= max_tokens and tiles <= max_tiles:
            found.append((tokens, tiles))
    return found


def in_order(samples: list[Size], max_tokens: int, max_tiles: int) -> Iterator[list[Size]]:
    pending: list[Size] = []
    for size in samples:
        tokens, tiles = (sum(axis) for axis in zip(*pending, size, strict=True))
        if tokens > max_tokens or tiles > max_tiles:
            yield pending
            pending = []
        pending.append(size)


def released(samples: list[Size], max_tokens: int, max_tiles: int) -> Iterator[list[Size]]:
    """First fit over packs with most tiles first."""
    packs: list[list[Size]] = []
    for size in samples:
        packs.sort(key=lambda pack: -sum(tiles for _, tiles in pack))
        for pack in packs:
            tokens, tiles = (sum(axis) for axis in zip(*pack, size, strict=True))
            if tokens <= max_tokens and tiles <= max_tiles:
                break
        else:
            packs.append(pack := [])
        pack.append(size)
        tokens, tiles = (sum(axis) for axis in zip(*pack, strict=True))
        if tokens == max_tokens or tiles == max_tiles:
            packs.remove(pack)
            yield pack
        elif len(packs) > 20:
            packs.sort(key=lambda pack: -sum(tiles for _, tiles in pack))
            yield packs.pop(0)


def best_fit(max_open: int) -> Callable[[list[Size], int, int], Iterator[list[Size]]]:
    def run(samples: list[Size], max_tokens: int, max_tiles: int) -> Iterator[list[Size]]:
        packer: Packer[Size] = Packer(max_tokens, max_tiles, max_open)
        for size in samples:
            if ready := packer.add(size, *size):
                yield ready.items

    return run


WAYS = {"in order": in_order, "released": released} | {f"best fit, {n} open": best_fit(n) for n in (4, 8, 20, 40)}


def utilisation(num: int) -> dict[str, dict[str, float]]:
    """Share of the token budget that is used, of packs given out while samples last."""
    rows: dict[str, dict[str, float]] = {name: {} for name in WAYS}
    for max_tokens, max_tiles in BUDGETS.items():
        samples = sizes(num, max_tokens, max_tiles)
        for name, way in WAYS.items():
            started_s = time.process_time()
            packs = list(way(samples, max_tokens, max_tiles))
            rows[name][f"us_per_sample_{max_tokens}"] = 1e6 * (time.process_time() - started_s) / num
            rows[name][f"used_{max_tokens}"] = sum(tokens for each in packs for tokens, _ in each) / (
                len(packs) * max_tokens
            )
    return rows


class Rendered:
    """Gym samples as files in memory: what a user's pictures and questions are like for nano."""

    name = "rendered"

    def __init__(self, num: int) -> None:
        tasks = [make_task(name) for name in ("line", "keyvalue", "charts")]
        self._rows = []
        for number in range(num):
            task = tasks[number % len(tasks)]
            sample = task.sample(number)
            conversation = taught(task, sample)
            file = io.BytesIO()
            conversation.images[0].source.save(file, "PNG")
            first, *rest = conversation.turns
            shown = Turn("user", (Image(file.getvalue()), *(part for part in first.parts if isinstance(part, Text))))
            self._rows.append(Conversation((shown, *rest)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        return Example(self._rows[index], f"{self.name}:{index + 1}")


def costs(rounds: int) -> dict[str, float]:
    """Of nano on one thread: a step, its packing, and the loader without a step."""
    parts, rows = new_parts(), Rendered(96)
    model, objective = parts.model.requires_grad_(True), NextToken()
    measured: dict[str, list[float]] = {"step": [], "pack": [], "collate": [], "load": []}
    counts = []
    loader = Loader(
        datasets=[Dataset(source=rows)], processor=parts.processor, max_tokens=4096, max_tiles=48, workers=1, ahead=1
    )
    inputs = [parts.processor(rows[i].conversation) for i in range(len(rows))]

    def timed(name: str, run: Callable[..., Any], *arguments: Any) -> Any:
        started_s = time.process_time()
        result = run(*arguments)
        measured[name].append(time.process_time() - started_s)
        return result

    def fill(num: int) -> None:
        packer: Packer[int] = Packer(4096, 48)
        for i in range(num):
            packer.add(i, len(inputs[i].token_ids), len(inputs[i].tiles))

    def step(batch: Batch) -> None:
        objective(model, batch).total.backward()
        model.zero_grad()

    batches = iter(loader)
    list(itertools.islice(batches, 2))
    for _ in range(rounds):
        before = loader.state()["num_read"]
        batch = timed("load", next, batches)
        read = loader.state()["num_read"] - before
        measured["load"][-1] /= max(read, 1)
        num = len(batch.lengths)
        timed("pack", fill, num)
        timed("collate", collate, inputs[:num])
        timed("step", step, batch)
        counts.append(num)
    median = {name: statistics.median(times) for name, times in measured.items()}
    samples = statistics.median(counts)
    return {
        "samples_per_batch": samples,
        "step_ms": 1e3 * median["step"],
        "pack_share_of_step": median["pack"] / median["step"],
        "collate_share_of_step": median["collate"] / median["step"],
        "loader_samples_per_s": 1 / median["load"],
        "step_samples_per_s": samples / median["step"],
        "loader_over_step": median["step"] / samples / median["load"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    used = utilisation(options.samples)
    print(f"{'used share of tokens':22}" + "".join(f"{budget:>9}" for budget in BUDGETS) + f"{'µs/sample':>12}")
    for name, row in used.items():
        shares = "".join(f"{row[f'used_{budget}']:9.1%}" for budget in BUDGETS)
        print(f"{name:22}{shares}{row['us_per_sample_16384']:12.1f}")
    found = costs(options.rounds)
    print("\nnano, one thread:", ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        result = {"utilisation": used, "costs": found, "samples": options.samples, "torch": torch.__version__}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
