"""How much text belongs in native multimodal pre-training? The ablation of InternVL3 in miniature.

    python benchmarks/mixture.py --runs /tmp/mixture --json benchmarks/results/mixture.json

InternVL3 (arXiv 2504.10479, §2.2) trains tower, projector and language model together on text and multimodal data, one
token of text for three others, which its authors found best for both. Here, for each seed, a decoder of 0.6 M
parameters first learns text alone. Then it gets nano's tower and a fresh projector and goes on with packs of the same
size in which text takes none, a quarter or half of the tokens. Steps and tokens are equal, so that text takes room from
pictures. The tower is left as it is (in the paper it learns too).

Text: the topics of Python's own help (`pydoc_data.topics`, PSF licence), cut into windows; one topic in eight is held
out. Pictures: captions and single lines of the gym; held out are drawings, typefaces and words.
Score: bits per byte of what is to be said, lower is better, and the share of answers of which every byte is the most
likely one. Intervals: 95 % of 4,000 resamplings of seeds and items; ways are compared on the same of both. Finished
runs lie in the folder --runs and are not done again; --one does the next and ends.
"""

import argparse
import hashlib
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from torch import Tensor

from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.tiny import assemble
from cascadevl.core.config import evolve
from cascadevl.core.messages import Conversation, Text, Turn
from cascadevl.data.batch import IGNORE, Batch, collate
from cascadevl.models.internvl import InternVL
from cascadevl.ops.logprobs import token_logprobs
from cascadevl.preprocessing.processor import ModelInputs
from cascadevl.preprocessing.tokenizer import train_tokenizer
from cascadevl.recipes.nano import DECODER, VISION
from cascadevl.recipes.nano_data import make_task, taught
from cascadevl.training.fit import FitState, fit
from cascadevl.training.objectives.next_token import NextToken
from cascadevl.training.schedule import WarmupStableDecay

SHARES = {"0 : 1": 0.0, "1 : 3": 0.25, "1 : 1": 0.5}
"""Text : multimodal -> part of the tokens that are text."""
ALONE = "text alone"
FAMILIES = ("captions", "line:difficulty=easy,max_tiles=1")
WINDOW, PACK = 256, 2048
"""Tokens of a piece of text, and of a pack."""
SMALL = evolve(DECODER, hidden_size=128, mlp_size=352, num_layers=3, num_heads=4, num_kv_heads=2, head_size=32)


def text_windows(rng: random.Random, *, held_out: bool) -> Iterator[str]:
    """Pieces of the help without end."""
    kept = [
        text
        for name, text in sorted(topics.items())
        if (hashlib.sha256(name.encode()).digest()[0] % 8 == 0) == held_out and len(text) > WINDOW
    ]
    weights = list(map(len, kept))
    while True:
        (text,) = rng.choices(kept, weights)
        start = rng.randrange(len(text) - WINDOW + 1)
        yield text[start : start + WINDOW]


def as_text(parts: Parts, window: str) -> ModelInputs:
    """A document: everything is learned, nothing was asked."""
    return parts.processor(Conversation((Turn("assistant", (Text(window),)),)))


def batches(parts: Parts, share: float, seed: int) -> Iterator[Batch]:
    """Packs of which `share` of the tokens are text."""
    rng = random.Random(f"mixture {seed}")
    windows = text_windows(rng, held_out=False)
    tasks = [make_task(name, seed=seed) for name in FAMILIES]
    numbers = itertools.count()
    while True:
        samples = [as_text(parts, next(windows)) for _ in range(round(share * PACK / WINDOW))]
        room = PACK - sum(len(sample.token_ids) for sample in samples) if share < 1 else 0
        while room > 0:
            index = next(numbers)
            task = tasks[index % len(tasks)]
            samples.append(parts.processor(taught(task, task.sample(index))))
            room -= len(samples[-1].token_ids)
        yield collate(samples)


def learn(model: InternVL, parts: Parts, share: float, steps: int, seed: int) -> float:
    """Train decoder and projector, and give the seconds it took."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("vision_model."))
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW([{"params": learned, "peak_lr": 2e-3}], lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    started = time.process_time()
    fit(
        model=model,
        objective=NextToken(),
        batches=batches(parts, share, seed),
        optimizer=optimizer,
        schedule=WarmupStableDecay(steps=steps, warmup=20, decay=steps // 2),
        state=FitState(),
        observe=lambda state, loss, norm: None,
        save=lambda state: None,
        steps=steps,
    )
    return time.process_time() - started


Score = dict[str, Tensor]
"""Of every held-out item: `bits` per byte, and whether it is `right`."""


@torch.inference_mode()
def score(model: InternVL, items: list[ModelInputs]) -> Score:
    """Every item alone, each byte after the right ones."""
    model.eval()
    bits, right = [], []
    for item in items:
        batch = collate([item])
        said = batch.targets != IGNORE
        hidden_TD = model.language_model(model.embed(batch.token_ids, batch.tiles), batch.positions, batch.attend)
        scored = token_logprobs(model.language_model.logits, hidden_TD[said], batch.targets[said])
        bits.append(-float(scored.logprobs_T.mean()) / math.log(2))
        right.append(float(scored.right_T.all()))
    return {"bits": torch.tensor(bits), "right": torch.tensor(right)}


def held_out_items(parts: Parts, num: int) -> dict[str, list[ModelInputs]]:
    windows = text_windows(random.Random("held out"), held_out=True)
    items = {"text": [as_text(parts, next(windows)) for _ in range(num)]}
    for name in FAMILIES:
        task = make_task(name, split="test", seed=7)
        asked = [(task.prompt(sample), sample.answer) for sample in task.samples(num)]
        told = [Conversation((*prompt.turns, Turn("assistant", (Text(answer),)))) for prompt, answer in asked]
        items[name.partition(":")[0]] = list(map(parts.processor, told))
    return items


def new_parts(seed: int) -> Parts:
    """A small decoder and projector, and nano's tower."""
    nano = load_parts("nano", dtype="float32")
    parts = assemble("mixture", VISION, SMALL, train_tokenizer([], 256), nano.spec, seed=seed, std=0.02)
    parts.model.vision_model.load_state_dict(nano.model.vision_model.state_dict())
    return parts


def resampled(table: np.ndarray, rng: np.random.Generator, num: int = 4000) -> np.ndarray:
    """Means of (seeds, items) tables with both drawn again, the same draws for every table of that shape."""
    means = []
    for _ in range(num):
        seeds, items = (rng.integers(0, size, size) for size in table.shape)
        means.append(table[np.ix_(seeds, items)].mean())
    return np.array(means)


def interval(table: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(resampled(table, np.random.default_rng(0)), (2.5, 97.5))
    return {"mean": float(table.mean()), "low": float(low), "high": float(high)}


def summary(runs: Path, wanted: list[tuple[int, str]]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Way -> kind of item -> figures; differences are to the paper's ratio."""
    found: dict[str, list[dict[str, Score]]] = {}
    for seed, way in wanted:
        found.setdefault(way, []).append(torch.load(path_of(runs, seed, way))["scores"])

    def table(way: str, kind: str, name: str) -> np.ndarray:
        return torch.stack([scores[kind][name] for scores in found[way]]).numpy()

    return {
        way: {
            kind: {
                "bits_per_byte": interval(table(way, kind, "bits")),
                "more_bits_than_1_to_3": interval(table(way, kind, "bits") - table("1 : 3", kind, "bits")),
                "right": interval(table(way, kind, "right")),
            }
            for kind in found[way][0]
        }
        for way in found
    }


def path_of(runs: Path, seed: int, way: str) -> Path:
    return runs / f"{seed}_{way.replace(' : ', '_to_').replace(' ', '_')}.pt"


def run(seed: int, way: str, arguments: argparse.Namespace) -> None:
    """Train and score one model; what learned text alone is kept for those that go on from it."""
    file = path_of(arguments.runs, seed, way)
    torch.manual_seed(seed)
    parts = new_parts(seed)
    model, share, steps = parts.model, 1.0, arguments.text_steps
    if way in SHARES:
        model.load_state_dict(torch.load(path_of(arguments.runs, seed, ALONE))["model"])
        share, steps = SHARES[way], arguments.steps
    seconds = learn(model, parts, share, steps, seed)
    scores = {kind: score(model, found) for kind, found in held_out_items(parts, arguments.items).items()}
    torch.save({"scores": scores, "model": model.state_dict() if way == ALONE else None}, file)
    means = ", ".join(f"{kind} {float(one['bits'].mean()):.3f}" for kind, one in scores.items())
    print(f"seed {seed}, {way}: {seconds:.0f} s of the processor; bits per byte: {means}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text-steps", type=int, default=150, help="of text alone, before")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--items", type=int, default=150, help="held out, of each kind")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the finished runs")
    parser.add_argument("--one", action="store_true", help="do one run that is missing")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    wanted = [(seed, way) for seed in range(arguments.seeds) for way in (ALONE, *SHARES)]
    missing = [pair for pair in wanted if not path_of(arguments.runs, *pair).is_file()]
    for seed, way in missing[:1] if arguments.one else missing:
        run(seed, way, arguments)
    if arguments.one and len(missing) > 1:
        return
    result = summary(arguments.runs, wanted)
    for way, kinds in result.items():
        for kind, figures in kinds.items():
            shown = (f"{name} {f['mean']:.3f} [{f['low']:.3f}, {f['high']:.3f}]" for name, f in figures.items())
            print(f"{way:10} {kind:9} {'  '.join(shown)}")
    if arguments.json:
        settings = {name: getattr(arguments, name) for name in ("text_steps", "steps", "seeds", "items")}
        arguments.json.write_text(json.dumps({"settings": settings, "scores": result}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
