"""How good is nano? Held-out items of every gym family: fonts, words and names unseen in training.

python benchmarks/nano.py [--model nano] [--items 500] [--families line keyvalue] [--json OUT]
Prints the share of right answers with a 95 % Wilson interval, and some failures.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch

import cascadevl
from cascadevl.core.generation import Sampling
from cascadevl.recipes.nano_data import make_task

FAMILIES = (
    *("line:difficulty=easy", "line", "paragraph", "keyvalue", "charts", "shapes", "locate"),
    *("several", "clips", "captions", "reports"),
)
HELD_OUT_SEED = 7


def wilson(right: float, num: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z, share = 1.96, right / num
    centre = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    return centre - half, centre + half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--split", default="test", choices=("test", "train"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundle = cascadevl.load(arguments.model)
    results = {}
    for name in arguments.families:
        task = make_task(name, split=arguments.split, seed=HELD_OUT_SEED)
        started, right, failures = time.perf_counter(), 0.0, []
        for sample in task.samples(arguments.items):
            answer = bundle.generate(task.prompt(sample), Sampling(max_new_tokens=160)).text
            score = task.score(sample, answer)
            right += score
            if not score and len(failures) < 5:
                failures.append({"question": sample.question, "expected": sample.answer, "said": answer})
        low, high = wilson(right, arguments.items)
        seconds = (time.perf_counter() - started) / arguments.items
        results[name] = {
            "items": arguments.items,
            "right": right / arguments.items,
            "interval_95": [low, high],
            "seconds_per_item": seconds,
            "failures": failures,
        }
        print(f"{name:22} {right / arguments.items:6.1%}  [{low:.1%}, {high:.1%}]  {seconds:.3f} s/item")
        for failure in failures[:3]:
            print(f"    {failure['question']!r}: {failure['expected']!r}, said {failure['said']!r}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
