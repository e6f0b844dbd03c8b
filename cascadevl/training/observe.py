"""What one sees of a run: log.jsonl always, a line on the terminal, trackers, and answers of the model as it learns.

Numbers of a step are functions of the run alone but for those in TIMINGS, so that the log of a run that was killed and
resumed equals that of one that was not.
"""

import importlib
import importlib.util
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from cascadevl.checkpoints.parts import Parts
from cascadevl.core.errors import MissingExtra
from cascadevl.core.files import write_text
from cascadevl.core.generation import Generation, Sampling
from cascadevl.data.batch import IGNORE, Batch
from cascadevl.distributed.mesh import World
from cascadevl.engine.simple import generate
from cascadevl.preprocessing.processor import ModelInputs
from cascadevl.training.fit import FitState
from cascadevl.training.objectives import Loss
from cascadevl.training.throughput import peak_bytes

TIMINGS = ("step_s", "tokens_per_s", "mfu", "memory_bytes")
SAMPLE_TOKENS = 64
_log = logging.getLogger("cascadevl")


class Tracker(Protocol):
    """Somewhere that numbers are sent to."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in OUT/tensorboard."""

    def __init__(self, out: Path, name: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class Hosted:
    """wandb, and trackio, which has the same functions."""

    def __init__(self, package: str, out: Path, name: str, config: Mapping[str, Any]) -> None:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(f"watch.trackers names {package}: pip install {package}, or leave it out.")
        self._run = importlib.import_module(package)
        self._run.init(project="cascadevl", name=f"{name}-{out.name}", config=dict(config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def make_trackers(names: tuple[str, ...], out: Path, recipe: str, config: Mapping[str, Any]) -> list[Tracker]:
    """By name. TensorBoard is left out, with a word in the log, where it is not installed; others are asked for."""
    found: list[Tracker] = []
    for name in names:
        if name != "tensorboard":
            found.append(Hosted(name, out, recipe, config))
        elif importlib.util.find_spec("tensorboard") is not None:
            found.append(TensorBoard(out, recipe, config))
        else:
            _log.info("No TensorBoard: pip install 'cascadevl[train]' brings it. log.jsonl has the same numbers.")
    return found


def cut_log(path: Path, step: int) -> None:
    """Take off the steps that a resumed run will do again."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(path, "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step))


class Screen:
    """A bar with the numbers of the last step; nothing at all where nobody looks (no terminal)."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[line]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._progress.add_task("steps", total=steps, line="")
        self._progress.start()

    def show(self, row: Mapping[str, Any]) -> None:
        line = f"loss {row['loss']:.4g}  {row['tokens_per_s']:,.0f} tokens/s  MFU {row['mfu']:.0%}  "
        line += f"{row['memory_bytes'] / 2**30:.1f} GiB"
        self._progress.update(self._task, completed=row["step"], line=line)

    def say(self, text: str) -> None:
        if not self._progress.disable:
            self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


@dataclass(kw_only=True, slots=True)
class Observer:
    """`observe` of `fit`. All ranks call it; the first one writes."""

    out: Path
    world: World
    learning_rate: Callable[[], float]
    flops: Callable[[tuple[Batch, ...]], int]
    """What the packs of a step ask of the model."""
    flops_per_s: float
    """What this device could do."""
    trackers: list[Tracker]
    screen: Screen | None
    sample_every: int = 0
    parts: Parts | None = None
    """Who answers, every so many steps."""
    _since: float = field(default_factory=time.perf_counter)
    _before: tuple[int, int] = (0, 0)

    def __call__(self, state: FitState, loss: Loss, norm: float) -> None:
        numbers = [state.num_samples, state.num_tokens, self.flops(state.last)]
        samples, tokens, flops = map(int, self.world.sum(list(map(float, numbers))))
        if self.world.is_first:
            self._write(state.step, loss, norm, samples, tokens, flops)
            if self.sample_every and self.parts is not None and state.step % self.sample_every == 0:
                self._sample(state, self.parts)

    def _write(self, step: int, loss: Loss, norm: float, samples: int, tokens: int, flops: int) -> None:
        now = time.perf_counter()
        step_s, self._since = now - self._since, now
        before = self._before[1] if self._before[0] == step - 1 else tokens
        self._before = (step, tokens)
        row = {
            "step": step,
            "loss": loss.total.item(),
            **loss.terms,
            "lr": self.learning_rate(),
            "gradient_norm": norm,
            "samples": samples,
            "tokens": tokens,
            "supervised": loss.num_tokens,
            "step_s": step_s,
            "tokens_per_s": (tokens - before) / step_s,
            "mfu": flops / step_s / (self.flops_per_s * self.world.size),
            "memory_bytes": peak_bytes(self.world.device),
        }
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for tracker in self.trackers:
            tracker.log(step, {key: value for key, value in row.items() if key != "step"})
        if self.screen is not None:
            self.screen.show(row)

    def _sample(self, state: FitState, parts: Parts) -> None:
        said = answered(parts, state.last[0], state.step)
        with open(self.out / "samples.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.step, **said}, ensure_ascii=False) + "\n")
        if self.screen is not None:
            self.screen.say(f"step {state.step}: {said['said']!r} for {said['expected']!r}")
        self._since = time.perf_counter()  # asking is no part of the next step

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()
        if self.screen is not None:
            self.screen.close()


def answered(parts: Parts, batch: Batch, number: int) -> dict[str, str]:
    """What the model says, greedily, where the first answer of one of the pack's samples begins."""
    inputs, expected = question(parts, batch, number % len(batch.lengths))
    training = parts.model.training
    parts.model.eval()
    try:
        *_, answer = generate(parts, inputs, Sampling(max_new_tokens=SAMPLE_TOKENS))
    finally:
        parts.model.train(training)
    assert isinstance(answer, Generation)
    return {
        "id": batch.ids[number % len(batch.lengths)] if batch.ids else "",
        "said": answer.text,
        "expected": expected,
    }


def question(parts: Parts, batch: Batch, index: int) -> tuple[ModelInputs, str]:
    """A sample of a pack up to its first learned token, and the text that is learned there."""
    start = sum(batch.lengths[:index])
    ids_T, targets_T = (x[start : start + batch.lengths[index]].cpu() for x in (batch.token_ids, batch.targets))
    first = int((targets_T != IGNORE).nonzero()[0])
    learned = (targets_T[first:] == IGNORE).nonzero()
    end = first + int(learned[0]) if len(learned) else len(targets_T)
    tiles = batch.tiles[_num_tiles(parts, batch.token_ids[:start]) :][: _num_tiles(parts, ids_T[: first + 1])]
    inputs = ModelInputs(
        token_ids=ids_T[: first + 1],
        tiles=tiles,
        grids=[],
        sizes=[],
        trained=torch.zeros(first + 1, dtype=torch.bool),
        num_visual_tokens=_num_tiles(parts, ids_T[: first + 1]) * parts.spec.visual_tokens_per_tile,
        spec_hash=parts.spec.hash,
    )
    return inputs, parts.tokenizer.decode([id for id in targets_T[first:end].tolist() if id not in parts.stop_ids])


def _num_tiles(parts: Parts, token_ids_T: Tensor) -> int:
    return int((token_ids_T == parts.model.config.image_token_id).sum()) // parts.spec.visual_tokens_per_tile
