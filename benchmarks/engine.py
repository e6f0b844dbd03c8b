"""Many requests at once: the engine against one by one, and against transformers' batched generate; what it costs.

python benchmarks/engine.py [throughput] [overhead] [invariant] [--model nano] [--gguf FILE] [--requests 32]
    [--tokens 128] [--rounds 5] [--json OUT]

throughput  text alone, beside what the steps' products take by the library's calls, and their bound (engine/bounds.py);
            distinct pictures beside the bound that vision and prefill at measured rates leave; repeated pictures. fp32,
            greedy, every answer of the same length, interleaved, medians
overhead    a step of decoding, in CPU time: the decoder, the output matrix, and everything else that the engine does,
            of which by themselves: who is computed next (the scheduler), and choosing tokens (and making text of them)
invariant   what the batch-invariant mode costs, in CPU time of a step and of reading prompts

One thread. With --gguf the last two also ask that language model, made int4-g32-zeros with its output matrix in int8.
"""

import argparse
import dataclasses
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import cascadevl
from cascadevl.checkpoints.gguf import read_gguf
from cascadevl.checkpoints.graft import build_around
from cascadevl.checkpoints.layouts import locate
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.tiny import TINY_VISION
from cascadevl.core.messages import Conversation
from cascadevl.engine.bounds import Bounds
from cascadevl.models.quant_linear import QuantLinear, quantize_decoder
from cascadevl.ops.attention import packed
from cascadevl.ops.formats import FORMATS
from cascadevl.preprocessing.processor import ModelInputs
from cascadevl.preprocessing.spec_file import Spec

WORDS = ["river", "cloud", "table", "seven", "paper", "green", "house", "music", "light", "stone"]
BATCHES = (1, 8, 32)
STEPS = 100


def questions(num: int, pictures: int, repeated: bool, tile_px: int) -> list[Conversation]:
    """Each of 8 to 16 words; pictures of 2×1 tiles, all of them distinct or all the same."""
    rng = random.Random(0)
    asked = []
    for number in range(num):
        noise = np.random.default_rng(0 if repeated else number).integers(
            0, 256, (tile_px, 2 * tile_px, 3), dtype=np.uint8
        )
        shown = [Image.fromarray(noise)] * pictures
        asked.append(Conversation.ask(" ".join(rng.choices(WORDS, k=rng.randint(8, 16))), shown))
    return asked


def timed(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def interleaved(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(timed(way))
    return {name: statistics.median(times) for name, times in seconds.items()}


def transformers_batch(folder: Path, prompts: list[torch.Tensor], num_tokens: int) -> Callable[[], None]:
    """Left-padded, as its users do it; text alone."""
    from transformers import InternVLForConditionalGeneration

    model: Any = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    longest = max(map(len, prompts))
    ids = torch.stack([F.pad(p, (longest - len(p), 0)) for p in prompts])
    mask = torch.stack([F.pad(torch.ones_like(p), (longest - len(p), 0)) for p in prompts])

    @torch.inference_mode()
    def run() -> None:
        model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=num_tokens, min_new_tokens=num_tokens,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip

    return run


def throughput(parts: Parts, arguments: argparse.Namespace) -> dict[str, Any]:
    bundle = cascadevl.Bundle(parts)
    sampling = cascadevl.Sampling(max_new_tokens=arguments.tokens, loop_guard=False)
    config = cascadevl.EngineConfig(cache_bytes=400_000_000)

    def engine(asked: list[Conversation]) -> list[cascadevl.Generation]:
        return cascadevl.Engine(bundle, config).generate(asked, sampling)

    def one_by_one(asked: list[Conversation]) -> list[cascadevl.Generation]:
        return [bundle.generate(conversation, sampling) for conversation in asked]

    engine(questions(1, 0, False, bundle.spec.tile_px))  # the kernels are compiled when first used
    results: dict[str, Any] = {}
    for name, pictures, repeated in (("text", 0, False), ("distinct", 1, False), ("repeated", 1, True)):
        asked = questions(arguments.requests, pictures, repeated, bundle.spec.tile_px)
        ways: dict[str, Callable[[], Any]] = {
            "engine": lambda asked=asked: engine(asked),
            "one by one": lambda asked=asked: one_by_one(asked),
        }
        prompts = [] if pictures else [bundle.preprocess(conversation).token_ids for conversation in asked]
        if prompts:
            ways["transformers"] = transformers_batch(locate(arguments.model), prompts, arguments.tokens)
        seconds = interleaved(ways, arguments.rounds)
        results[name] = {f"{way} s": round(value, 3) for way, value in seconds.items()}
        results[name] |= {
            f"times {way}": round(value / seconds["engine"], 2) for way, value in seconds.items() if way != "engine"
        }
        if prompts:
            seen = round(statistics.mean(map(len, prompts))) + arguments.tokens // 2
            step = Bounds(parts).decode(arguments.requests, seen, "auto")
            least = {"products": products_s(parts, arguments.requests), step.by: step.seconds}
            for what, least_s in least.items():
                results[name][f"{what} alone s"] = round(arguments.tokens * least_s, 3)
                results[name][f"times transformers if {what} were all"] = round(
                    seconds["transformers"] / (arguments.tokens * least_s), 2
                )
        if pictures and not repeated:
            results[name] |= bound(bundle, asked, seconds["engine"], results["text"]["engine s"])
        print(f"{name:9} {results[name]}", flush=True)
    return results


@torch.inference_mode()
def products_s(parts: Parts, rows: int) -> float:
    """The matrix products of a step of decoding by the library's calls, one after the other, and nothing else."""
    decoder = parts.model.language_model
    weights = [layer.weight for layer in decoder.model.layers.modules() if isinstance(layer, torch.nn.Linear)]
    weights.append(decoder.model.embed_tokens.weight if decoder.lm_head is None else decoder.lm_head.weight)
    inputs = {width: torch.randn(rows, width) for width in {weight.shape[1] for weight in weights}}
    trials = [timed(lambda: [F.linear(inputs[weight.shape[1]], weight) for weight in weights]) for _ in range(50)]
    return statistics.median(trials)


@torch.inference_mode()
def bound(bundle: cascadevl.Bundle, asked: list[Conversation], engine_s: float, text_s: float) -> dict[str, float]:
    """What it would take at least: preparing, the tower in one batch, the prompts as one, and decoding as for text."""
    prepare_s = timed(lambda: [bundle.preprocess(conversation) for conversation in asked])
    inputs = [bundle.preprocess(conversation) for conversation in asked]
    tiles = torch.cat([one.tiles for one in inputs])
    vision_s = timed(lambda: [bundle.model.encode_tiles(part) for part in tiles.split(16)])
    ids, lengths = [one.token_ids for one in inputs], [len(one.token_ids) for one in inputs]
    places = torch.cat([torch.arange(n) for n in lengths]).float()
    embed = bundle.model.language_model.embed(torch.cat(ids))
    prefill_s = timed(lambda: bundle.model.language_model(embed, places, packed(lengths)))
    least = prepare_s + vision_s + prefill_s + text_s
    return {"bound s": round(least, 3), "of bound": round(least / engine_s, 3)}


class Timed:
    """CPU seconds in calls of something."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call, self.cpu_s = call, 0.0

    def __call__(self, *arguments: Any) -> Any:
        started = time.thread_time()
        result = self.call(*arguments)
        self.cpu_s += time.thread_time() - started
        return result


class Watched:
    """Something whose methods are timed."""

    def __init__(self, thing: Any) -> None:
        self._thing, self.calls = thing, dict[str, Timed]()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._thing, name)
        if callable(value):
            value = self.__dict__[name] = self.calls[name] = Timed(value)
        return value


class Decoding:
    """An engine in which so many requests answer."""

    def __init__(self, parts: Parts, batch: int, prompt: int, *, invariant: bool = False) -> None:
        config = cascadevl.EngineConfig(cache_bytes=2_000_000_000, batch_invariant=invariant, prefix_cache=False)
        sampling = cascadevl.Sampling(
            max_new_tokens=2 * STEPS, loop_guard=False
        )  # nobody ends before the measuring does
        self.engine = engine = cascadevl.Engine(parts, config)
        self.decoder = engine.runner.fused = Timed(engine.runner.fused or engine.runner.__call__)
        self.head = Timed(engine.runner.logits)
        engine.runner.logits = self.head  # type: ignore[method-assign]
        started = time.thread_time()
        tickets = [engine.submit(words(parts, prompt, number), sampling) for number in range(batch)]
        while not all(ticket.request.said for ticket in tickets):
            engine.step()
        self.reading_s = time.thread_time() - started

    def step(self) -> dict[str, float]:
        """CPU milliseconds of one."""
        started, self.decoder.cpu_s, self.head.cpu_s = time.thread_time(), 0.0, 0.0
        self.engine.step()
        step_s, model_s = time.thread_time() - started, self.decoder.cpu_s + self.head.cpu_s
        found = {"step": step_s, "decoder": self.decoder.cpu_s, "head": self.head.cpu_s, "rest": step_s - model_s}
        return {name: 1000 * value for name, value in found.items()}

    def watch(self) -> Callable[[], dict[str, float]]:
        """From now on, CPU milliseconds of scheduler and choice in the steps since the last call."""
        self.engine.scheduler = scheduler = Watched(self.engine.scheduler)  # type: ignore[assignment]
        self.engine._say = say = Timed(self.engine._say)  # type: ignore[method-assign]

        def read() -> dict[str, float]:
            found = {"scheduler": sum(call.cpu_s for call in scheduler.calls.values()), "choice": say.cpu_s}
            for call in (*scheduler.calls.values(), say):
                call.cpu_s = 0.0
            return {name: 1000 * value for name, value in found.items()}

        return read


def words(parts: Parts, num: int, seed: int) -> ModelInputs:
    """A prompt of tokens at random."""
    token_ids = torch.from_numpy(np.random.default_rng(seed).integers(4, 200, num))
    return ModelInputs(
        token_ids=token_ids, tiles=torch.empty(0, 3, 1, 1, dtype=torch.uint8), grids=[], sizes=[],
        trained=torch.zeros(num, dtype=torch.bool), num_visual_tokens=0, spec_hash=parts.spec.hash,
    )  # fmt: skip


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def overhead(parts: Parts) -> dict[str, Any]:
    results = {}
    for batch in BATCHES:
        decoding = Decoding(parts, batch, 64)
        row = medians([decoding.step() for _ in range(STEPS)])
        read = decoding.watch()  # which costs something itself
        row |= medians([decoding.step() and read() for _ in range(STEPS // 2)])
        row["scheduler and choice of step"] = (row["scheduler"] + row["choice"]) / row["step"]
        row["rest of step"] = row["rest"] / row["step"]
        results[f"batch {batch}"] = row = {name: round(value, 4) for name, value in row.items()}
        print(f"overhead, batch {batch:2}, ms of CPU time  {row}", flush=True)
    return results


def invariant(parts: Parts) -> dict[str, Any]:
    """Steps of both modes in turns."""
    results = {}
    for batch in BATCHES:
        ways = [Decoding(parts, batch, 256, invariant=whether) for whether in (False, True)]
        steps = [[way.step()["step"] for way in ways] for _ in range(STEPS)]
        plain_ms, invariant_ms = map(statistics.median, zip(*steps, strict=True))
        results[f"batch {batch}"] = row = {
            "step ms": round(plain_ms, 3), "invariant step ms": round(invariant_ms, 3),
            "step": round(invariant_ms / plain_ms, 3), "reading": round(ways[1].reading_s / ways[0].reading_s, 3),
        }  # fmt: skip
        print(f"invariant, batch {batch:2}, times the CPU time  {row}", flush=True)
    return results


def language_model(gguf: Path) -> Parts:
    """As cpu_engines.py has it."""
    language = read_gguf(gguf)
    parts = build_around(language, TINY_VISION, Spec(template="jinja", jinja=language.chat_template))
    decoder = parts.model.language_model
    quantize_decoder(decoder, FORMATS["int4-g32-zeros"])
    head = torch.nn.Linear(decoder.config.hidden_size, decoder.config.vocab_size, bias=False, device="meta")
    head.weight = torch.nn.Parameter(decoder.model.embed_tokens.weight.detach(), requires_grad=False)
    decoder.lm_head = QuantLinear.of(head, FORMATS["int8-g64"])  # type: ignore[assignment]
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ("throughput", "overhead", "invariant")
    parser.add_argument("what", nargs="*", metavar="what", choices=[*known, []])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wanted = arguments.what or known
    models = {arguments.model: cascadevl.load(arguments.model, dtype="float32").parts}
    if arguments.gguf:
        models[arguments.gguf.stem] = language_model(arguments.gguf)
    results: dict[str, Any] = {}
    for name, parts in models.items():
        parts = dataclasses.replace(parts, stop_ids=())
        print(name)
        if "throughput" in wanted and name == arguments.model:
            results |= throughput(parts, arguments)
        for what, measure in (("overhead", overhead), ("invariant", invariant)):
            if what in wanted:
                results.setdefault(what, {})[name] = measure(parts)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
