"""A run of nano: the stages in order, a state every few minutes, and a model at the end.

OUT/start    what the run began with          OUT/log.jsonl   means over every fifty steps
OUT/last     the state, for --resume          OUT/model       the result, an official folder

Weights, gradients and moments are fp32. Products are bf16 where the processor has units for them
(`training.compute.resolve_precision`): with AVX-512 BF16 a step of 48 tiles takes 1.6 s in place of 2.2, elsewhere
it would take many times as long. The state remembers the choice: a run goes on as it began.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.resume import load_training, save_training
from cascadevl.checkpoints.save import save_parts
from cascadevl.core.errors import ConfigError
from cascadevl.recipes.nano import VISION, new_parts
from cascadevl.recipes.nano_data import GymBatches
from cascadevl.recipes.nano_stages import LAST, START, Stage, is_run, number_of, stages
from cascadevl.training.compute import resolve_precision
from cascadevl.training.config import Precision
from cascadevl.training.fit import FitState, fit
from cascadevl.training.muon import muon
from cascadevl.training.objectives import Loss
from cascadevl.training.objectives.next_token import NextToken
from cascadevl.training.objectives.read_patches import GlyphHead, ReadPatches, new_head
from cascadevl.training.schedule import WarmupStableDecay
from cascadevl.training.step import Step

CPU = torch.device("cpu")


def train(
    out: Path,
    *,
    init: str | None = None,
    from_stage: str | None = None,
    precision: Precision = "auto",
    resume: bool = False,
    seed: int = 0,
    course: Sequence[Stage] | None = None,
    keep: float = 0.0,
    save_every_s: float = 180.0,
    log_every: int = 50,
    echo: Callable[[str], None] = print,
) -> Parts:
    """Run the stages of `course` (`stages()` unless given), all or those from `from_stage` on.

    `init` is what to begin with instead of fresh weights: a model, or the folder of another run of nano, whose last
    state is taken with the head that reads patches. A run that is resumed stands at a stage of its own and goes on as
    if it had never stopped. Each stage has an optimizer of its own. `keep` is the share that the weights of the
    beginning have in the model that comes out, not in the run's state (WiSE-FT, arXiv 2109.01903).
    """
    if not 0 <= keep < 1:
        raise ConfigError(f"keep is a share of the weights, from 0 to below 1, got {keep}.")
    course = stages() if course is None else course
    first = 0 if from_stage is None else number_of(from_stage, course)
    head = new_head(VISION.hidden_size, torch.Generator().manual_seed(seed))
    if not resume:
        save_parts(_begun(init, head, seed), out / START)
    parts = load_parts(out / START, dtype="float32", device=CPU)
    modules: dict[str, nn.Module] = {"model": parts.model, "head": head}
    done: dict[str, Any] = {"stage": first, "step": 0, "precision": precision}
    if resume:
        done = load_training(out / LAST, modules)
    run = Run(
        out=out,
        parts=parts,
        head=head,
        products=_products(out, done.get("precision", "float32"), precision),
        seed=seed,
        save_every_s=save_every_s,
        log_every=log_every,
        echo=echo,
    )
    for number, stage in enumerate(course):
        if number >= done["stage"]:
            run.learn(stage, number, resume=number == done["stage"] and done["step"] > 0)
    if keep:
        _keep(parts, load_parts(out / START, dtype="float32", device=CPU), keep)
    save_parts(parts, out / "model")
    return parts


@torch.no_grad()
def _keep(parts: Parts, begun: Parts, share: float) -> None:
    """The mean of two states on one path reads better than either: docs/log.md."""
    for weight, before in zip(parts.model.parameters(), begun.model.parameters(), strict=True):
        weight.lerp_(before, share)


def _begun(init: str | None, head: GlyphHead, seed: int) -> Parts:
    """The model to begin with; the head of another run goes into `head`."""
    if init is None:
        return new_parts(seed)
    if not is_run(init):
        return load_parts(init, dtype="float32", device=CPU)
    parts = load_parts(Path(init) / START, dtype="float32", device=CPU)
    load_training(Path(init) / LAST, {"model": parts.model, "head": head})
    return parts


def _products(out: Path, begun: Precision, wanted: Precision) -> torch.dtype:
    """As the run began."""
    if wanted not in ("auto", begun):
        raise ConfigError(
            f"{out} was begun with {begun} products and can only go on with them: leave the precision out, or begin "
            f"a new run with its state (init {out})."
        )
    return resolve_precision(begun, CPU)


@contextmanager
def _bf16() -> Iterator[None]:
    """Products of bf16. 48 tiles of 65 patches are attended in 22 ms by plain products, gradient included, in 51 by
    torch's fused kernel for bf16."""
    with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What the stages of a run share."""

    out: Path
    parts: Parts
    head: GlyphHead
    """Reads patches; not part of the model."""
    products: torch.dtype
    seed: int
    save_every_s: float
    log_every: int
    """Steps that a line of the log sums up."""
    echo: Callable[[str], None]

    def learn(self, stage: Stage, number: int, *, resume: bool) -> None:
        """One stage, from its beginning or from the last state."""
        modules: dict[str, nn.Module] = {"model": self.parts.model, "head": self.head}
        optimizer = muon(self._learned(modules, stage), lr=stage.lr, weight_decay=0.05, products=self.products)
        state, position = FitState(), 0
        if resume:
            saved = load_training(self.out / LAST, modules, optimizer)
            state, position = FitState(saved["step"], saved["num_samples"]), saved["position"]
        batches = GymBatches(
            mixture=stage.mixture,
            processor=self.parts.processor,
            max_tokens=stage.max_tokens,
            max_tiles=stage.max_tiles,
            seed=100 * self.seed + number,
            position=position,
        )

        def facts(state: FitState) -> dict[str, Any]:
            """Where the run stands; behind the last step, at the next stage."""
            finished = state.step == stage.steps
            return {
                "stage": number + finished,
                "step": 0 if finished else state.step,
                "num_samples": state.num_samples,
                "position": batches.position,
                "precision": str(self.products).removeprefix("torch."),
            }

        fit(
            model=self.parts.model,
            objective=ReadPatches(
                head=self.head,
                weight=stage.glyph_weight,
                next_token=NextToken() if stage.next_token else None,
                pointing=stage.pointing,
            ),
            batches=itertools.islice(batches, stage.steps - state.step),
            optimizer=optimizer,
            schedule=WarmupStableDecay(steps=stage.steps, warmup=stage.warmup, decay=stage.decay),
            state=state,
            observe=_Observer(
                path=self.out / "log.jsonl",
                stage=stage.name,
                echo=self.echo,
                every=self.log_every,
                since=(time.perf_counter(), state.num_samples),
            ),
            save=_Saver(self.out / LAST, modules, optimizer, facts, self.save_every_s),
            learn=Step(autocast=_bf16 if self.products == torch.bfloat16 else nullcontext),
        )

    @staticmethod
    def _learned(modules: dict[str, nn.Module], stage: Stage) -> list[tuple[str, nn.Parameter]]:
        """Let what the stage names learn, and nothing else."""
        found = []
        for name, parameter in (item for module in modules.values() for item in module.named_parameters()):
            parameter.requires_grad_(name.startswith(stage.parts))
            if parameter.requires_grad:
                found.append((name, parameter))
        return found


@dataclass(slots=True)
class _Observer:
    """Means over `every` steps, as a line on the screen and in log.jsonl."""

    path: Path
    stage: str
    echo: Callable[[str], None]
    every: int
    since: tuple[float, int]
    """The clock and the samples at the last line."""
    sums: dict[str, float] = field(default_factory=dict)

    def __call__(self, state: FitState, loss: Loss, norm: float) -> None:
        for name, value in {"loss": float(loss.total.detach()), **loss.terms, "gradient_norm": norm}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value / self.every
        if state.step % self.every:
            return
        started, num_samples = self.since
        rate = (state.num_samples - num_samples) / (time.perf_counter() - started)
        row = {
            "stage": self.stage,
            "step": state.step,
            "samples": state.num_samples,
            "samples_per_s": rate,
            **self.sums,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.echo("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
        self.sums, self.since = {}, (time.perf_counter(), state.num_samples)


@dataclass(slots=True)
class _Saver:
    """Everything that `resume` needs, every few minutes and at the end of a stage."""

    folder: Path
    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    facts: Callable[[FitState], dict[str, Any]]
    every_s: float
    saved_at: float = field(default_factory=time.perf_counter)

    def __call__(self, state: FitState) -> None:
        facts = self.facts(state)
        finished = facts["step"] == 0
        if not finished and time.perf_counter() - self.saved_at < self.every_s:
            return
        save_training(self.folder, self.modules, self.optimizer, facts)
        self.saved_at = time.perf_counter()
