"""How many samples a second does `data check` look at on one core, pictures opened by header?

    python benchmarks/data_check.py --json benchmarks/results/data_check.json

2,000 JPEGs of 1024×768 pixels lie in a temporary folder, each with a row of its own in InternVL's form: a question
with the picture and an answer of 60 words. Four ways are measured in turn, several times: rows alone, with pictures
by header, by header with tokens counted as nano does, and with every picture decoded (on fewer rows). The files
were just written, so the disk is not what is measured; seconds are those of the processor, since other programs run.
"""

import argparse
import io
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cascadevl.checkpoints.load import load_processor
from cascadevl.data.check import Check
from cascadevl.data.lengths import Lengths
from cascadevl.data.sources import Dataset, open_data

NUM_ROWS, NUM_DECODED = 2000, 100
SIZE = (1024, 768)
WORDS = ["the", "invoice", "shows", "a", "total", "of", "dollars", "paid", "in", "March", "by", "office"]


def write_data(folder: Path) -> Path:
    """JPEGs that differ in a few bytes behind the same pixels: none is read twice from one page of memory."""
    generator = random.Random(0)
    pixels = np.random.default_rng(0).normal(128, 20, (SIZE[1] // 8, SIZE[0] // 8, 3)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    data = file.getvalue()
    (folder / "images").mkdir()
    with (folder / "rows.jsonl").open("w") as rows:
        for number in range(NUM_ROWS):
            name = f"images/{number:05}.jpg"
            (folder / name).write_bytes(data)
            answer = " ".join(generator.choices(WORDS, k=60))
            turns = [{"from": "human", "value": "<image>\nWhat does it show?"}, {"from": "gpt", "value": answer}]
            sides = {"width": SIZE[0], "height": SIZE[1]}
            rows.write(json.dumps({"id": number, "image": name, **sides, "conversations": turns}) + "\n")
    return folder / "rows.jsonl"


def rate(look: Callable[[], Iterator[object]]) -> float:
    """Samples a second of the one core that is used."""
    start = time.process_time()
    count = sum(1 for _ in look())
    return count / (time.process_time() - start)


def first_rows(dataset: Dataset, folder: Path) -> list[Dataset]:
    few = folder / "few.jsonl"
    with few.open("wb") as file:
        file.write(b"".join((folder / dataset.source.name).open("rb").readlines()[:NUM_DECODED]))
    return open_data(few)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        data = open_data(write_data(Path(name)))
        few = first_rows(data[0], Path(name))
        lengths = Lengths(load_processor("nano"))
        ways: dict[str, Callable[[], Iterator[object]]] = {
            "rows alone": lambda: (data[0].source[index] for index in range(NUM_ROWS)),
            "header": lambda: Check()(data),
            "header, tokens of nano": lambda: Check(count_tokens=lengths)(data),
            "decode": lambda: Check(look="decode")(few),
        }
        assert all(checked.problems == () for checked in Check(count_tokens=lengths)(data))  # warm, and truly good
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            for way, look in ways.items():
                rates[way].append(rate(look))
    result = {
        "samples_per_s": {way: round(statistics.median(found)) for way, found in rates.items()},
        "slowest_round": {way: round(min(found)) for way, found in rates.items()},
        "rows": NUM_ROWS,
        "rounds": arguments.rounds,
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
