"""A TrainConfig becomes a run: model, data, optimizer, and what is left in its folder.

OUT/config.yaml    the resolved settings          OUT/model     an official folder, for ask, serve and others
OUT/log.jsonl      a line for every step          OUT/adapter   of a LoRA: a PEFT folder
OUT/states         the last two, for --resume     OUT/report.html, samples.jsonl, bad_samples.jsonl, tensorboard/
"""

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from cascadevl.checkpoints.adapters import merge, read_adapter
from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.save import check_target, save_parts
from cascadevl.checkpoints.save_adapter import save_adapter
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.config import to_dict
from cascadevl.core.errors import ConfigError, SpecMismatch
from cascadevl.core.files import writable_folder
from cascadevl.core.task import Task
from cascadevl.data.batch import Batch
from cascadevl.data.loader import Loader
from cascadevl.data.mixture import Mixture
from cascadevl.data.sources import Dataset, Example, open_data
from cascadevl.distributed.ddp import broadcast
from cascadevl.distributed.mesh import World, joined
from cascadevl.distributed.watchdog import Watchdog
from cascadevl.gym import TASKS
from cascadevl.models.lora import learned_changes
from cascadevl.recipes import nano_data
from cascadevl.training.balance import Balanced, routers
from cascadevl.training.compute import autocast, compile_parts, recompute, resolve_precision
from cascadevl.training.config import TrainConfig, differences, read_config, write_config
from cascadevl.training.ema import Ema
from cascadevl.training.fit import FitState, fit
from cascadevl.training.interrupt import Patience, Stopped, alone
from cascadevl.training.lora import NAME, attach_lora
from cascadevl.training.objectives import Loss, Objective
from cascadevl.training.objectives.next_token import NextToken
from cascadevl.training.observe import Observer, Screen, cut_log, make_trackers
from cascadevl.training.plan import memory
from cascadevl.training.report import Facts, model_card, read_rows, write_report
from cascadevl.training.schedule import make_schedule
from cascadevl.training.states import Learned, random_state, read_state, set_random_state, states, write_state
from cascadevl.training.step import Step
from cascadevl.training.throughput import matmul_rate, passes, step_flops
from cascadevl.training.trainable import Named, choose, make_optimizer, set_drop_path

MAY_CHANGE = ("watch.",)
"""Settings that a resumed run may have otherwise: nothing it computes depends on them."""


def train(config: TrainConfig, out: Path, *, resume: bool = False) -> Path:
    """Run a recipe to its end; returns the folder of what came out. Under torchrun every process calls it.

    Started with `resume`, it goes on from its last state as if it had never stopped. Raises Stopped, the last step
    saved, where the process was asked to end.
    """
    config.check_complete()
    with joined(config.compute.device) as world, alone(out) if world.is_first else nullcontext():
        prepare(config, out, resume, world)
        return build(config, out, world)(resume)


def prepare(config: TrainConfig, out: Path, resume: bool, world: World) -> None:
    """Write the config beside the run, or compare it with the one that stands there."""
    path = out / "config.yaml"
    if not resume and states(out / "states"):
        raise ConfigError(f"{out} holds a run: add --resume to go on with it, or choose another --out.")
    if resume:
        changed = [name for name in differences(read_config(path), config) if not name.startswith(MAY_CHANGE)]
        if changed:
            raise ConfigError(
                f"{out} was begun with another {', '.join(changed)}: resume it as it was (leave the flags out), or "
                "start a new run."
            )
    world.wait()
    if world.is_first:
        writable_folder(out)
        write_config(config, path)


def build(config: TrainConfig, out: Path, world: World) -> "Run":
    """Model, data and what learns. Whatever can be refused is refused here, before a step is taken."""
    accumulate = config.accumulate(world.size)
    check_target(out / "model", "hf")
    products = resolve_precision(config.compute.precision, world.device)
    parts = load(config, products, world.device)
    loader = open_loader(config, parts, out, world)
    torch.manual_seed(config.seed + 1_000_003 * world.rank)
    if config.drop_path is not None:
        set_drop_path(parts.model, config.drop_path)
    if config.lora.rank:
        learned = attach_lora(parts.model, config.lora, seed=config.seed)
        if world.is_first:  # one that changes nothing: what cannot be written is found now
            save_adapter(parts.model, learned_changes(parts.model, NAME), out / "adapter", base=str(config.init))
    else:
        learned = choose(parts.model, config.train)
    broadcast([parameter.data for _, parameter in learned], world)
    ema = Ema([parameter for _, parameter in learned], config.optim.ema) if config.optim.ema else None
    return Run(
        config=config,
        out=out,
        world=world,
        parts=parts,
        learned=learned,
        loader=loader,
        products=products,
        ema=ema,
        optimizer=make_optimizer(learned, config.optim, num_blocks=parts.model.config.vision.num_layers),
        accumulate=accumulate,
    )


def load(config: TrainConfig, products: torch.dtype, device: torch.device) -> Parts:
    """The model to start from: fp32, but under a LoRA, which is fp32 itself, in the type of the products."""
    init = str(config.init)
    if init.startswith("tiny:"):
        parts = tiny_parts(init.removeprefix("tiny:"), seed=config.seed, std=0.1)
        parts.model.to(device)
        return parts
    return load_parts(init, dtype=products if config.lora.rank else torch.float32, device=device)


def open_loader(config: TrainConfig, parts: Parts, out: Path, world: World) -> Loader:
    """The data as packs; bad samples are recorded in OUT."""
    data = str(config.data)
    datasets = gym_data(data.removeprefix("gym:"), config.seed) if data.startswith("gym:") else None
    return Loader(
        datasets=datasets or open_data(data, config.data_format),
        processor=parts.processor,
        max_tokens=config.packs.max_tokens,
        max_tiles=config.packs.max_tiles,
        seed=config.seed,
        epochs=config.packs.epochs,
        rank=world.rank,
        world=world.size,
        delta=config.packs.deltas,
        bad_samples=out / "bad_samples.jsonl",
        max_bad_share=config.packs.max_bad_share,
        too_long=config.packs.too_long,
        share_tiles=config.packs.share_tiles,
    )


def gym_data(families: str, seed: int) -> list[Dataset]:
    """Rendered tasks as data: `line+keyvalue`, a family as `nano_data.make_task` names it."""
    unknown = [name for name in families.split("+") if name.partition(":")[0] not in TASKS]
    if unknown:
        raise ConfigError(f"The gym has no {unknown[0]!r}: expected families of {', '.join(TASKS)}, joined by +.")
    return [Dataset(source=GymSource(name, nano_data.make_task(name, seed=seed))) for name in families.split("+")]


@dataclass(frozen=True, slots=True)
class GymSource:
    """A family of the gym as rows; row n is the same picture for ever."""

    name: str
    task: Task

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> Example:
        return Example(nano_data.taught(self.task, self.task.sample(index)), f"gym:{self.name}:{index + 1}")


def make_objective(config: TrainConfig, parts: Parts) -> tuple[Objective, Callable[[Batch], float]]:
    """Next tokens, with the routers balanced where the model has some and the config says so; and a pack's weight."""
    tokens = NextToken(reduction=config.packs.reduction)
    if not config.balance:
        return tokens, tokens.weight
    if not routers(parts.model):
        raise ConfigError(
            f"balance = {config.balance} is for mixtures of experts, and {config.init} is none: set it to 0."
        )
    return Balanced(objective=tokens, coefficient=config.balance, weigh=tokens.weight), tokens.weight


@dataclass(kw_only=True, slots=True)
class Run:
    """What a run is made of, before its first step; called, it takes them all."""

    config: TrainConfig
    out: Path
    world: World
    parts: Parts
    learned: Named
    loader: Loader
    products: torch.dtype
    ema: Ema | None
    optimizer: torch.optim.Optimizer
    accumulate: int
    patience: Patience = field(default_factory=Patience)

    def __call__(self, resume: bool) -> Path:
        config, model, world = self.config, self.parts.model, self.world
        state = self.restore() if resume else FitState()
        if config.compute.recompute:
            recompute(model)
        if config.compute.compile:
            compile_parts(model)
        objective, weigh = make_objective(config, self.parts)
        observer = self.observer(state)
        learn = Step(
            max_grad_norm=config.optim.max_grad_norm,
            weigh=weigh,
            world=world,
            autocast=autocast(self.products, world.device),
            watchdog=Watchdog(config.watch.hang_s),
        )

        def observe(state: FitState, loss: Loss, norm: float) -> None:
            if self.ema is not None:
                self.ema.update()
            observer(state, loss, norm)

        try:
            with self.patience:
                fit(
                    model=model,
                    objective=objective,
                    batches=self.loader,
                    optimizer=self.optimizer,
                    schedule=make_schedule(config.schedule, config.num_steps),
                    state=state,
                    observe=observe,
                    save=self.save,
                    learn=learn,
                    steps=config.num_steps,
                    accumulate=self.accumulate,
                )
        finally:
            observer.close()
        return self.finish()

    def observer(self, state: FitState) -> Observer:
        config, model, first = self.config, self.parts.model, self.world.is_first
        times, screen = passes(model), None
        if first:
            for name in ("log.jsonl", "samples.jsonl"):
                cut_log(self.out / name, state.step)
            screen = Screen(config.num_steps)
            screen.say(self._expected())
        return Observer(
            out=self.out,
            world=self.world,
            learning_rate=lambda: max(group["lr"] for group in self.optimizer.param_groups),
            flops=lambda batches: step_flops(model.config, batches, times),
            flops_per_s=matmul_rate(self.world.device, self.products),
            trackers=make_trackers(config.watch.trackers, self.out, config.recipe, to_dict(config)) if first else [],
            screen=screen,
            sample_every=config.watch.sample_every,
            parts=self.parts,
        )

    def _expected(self) -> str:
        config = self.parts.model.config
        needed = memory(config, self.config, self.products.itemsize)["total"] / 2**30
        numbers = sum(parameter.numel() for _, parameter in self.learned)
        return f"{numbers:,} numbers learn; each process is expected to take {needed:.1f} GiB besides Python and torch."

    # States.

    def save(self, state: FitState) -> None:
        """`save` of `fit`: every so many steps, after the last, and where a process was asked to stop."""
        signals = [number for number in self.world.gather(self.patience.number) if number is not None]
        if not signals and state.step % self.config.watch.save_every and state.step != self.config.num_steps:
            return
        own = {
            "random": random_state(self.world.device),
            "loader": self.loader.state(),
            "num_samples": state.num_samples,
            "num_tokens": state.num_tokens,
        }
        ranks = self.world.gather(own)
        if self.world.is_first:
            facts = {"step": state.step, "spec_hash": self.parts.spec.hash, "ranks": ranks}
            write_state(self.out / "states", state.step, self._modules(), self.optimizer, facts)
        self.world.wait()
        if signals:
            raise Stopped(state.step, signals[0])

    def restore(self) -> FitState:
        """Where the last state left off."""
        facts = read_state(self.out / "states", self._modules(), self.optimizer)
        if len(facts["ranks"]) != self.world.size:
            raise ConfigError(
                f"The run had {len(facts['ranks'])} processes and cannot go on with {self.world.size}: every one has "
                "its own place in the data. Start as many."
            )
        if facts["spec_hash"] != self.parts.spec.hash:
            raise SpecMismatch(
                f"The run saw its data through the preprocessing spec {facts['spec_hash']}, {self.config.init} has now "
                f"{self.parts.spec.hash}: the model folder was changed since."
            )
        own = facts["ranks"][self.world.rank]
        self.loader.restore(own["loader"])
        set_random_state(own["random"], self.world.device)
        return FitState(step=facts["step"], num_samples=own["num_samples"], num_tokens=own["num_tokens"])

    def _modules(self) -> dict[str, nn.Module]:
        return {"learned": Learned(self.learned), **({"average": self.ema} if self.ema else {})}

    # The end.

    def finish(self) -> Path:
        """Write what was learned, and the report; the first rank does, the others wait."""
        result = self.out / ("adapter" if self.config.lora.rank else "model")
        if self.world.is_first:
            facts = self.facts()
            with self.ema.in_place() if self.ema else nullcontext():
                self._write_result(facts)
            write_report(self.out / "report.html", facts)
        self.world.wait()
        return result

    def _write_result(self, facts: Facts) -> None:
        config, parts = self.config, self.parts
        card = model_card(facts)
        if not config.lora.rank:
            model = parts.model.eval().requires_grad_(False).to(self.products)
            save_parts(dataclasses.replace(parts, model=model, card=card), self.out / "model")
            return
        save_adapter(
            parts.model,
            learned_changes(parts.model, NAME),
            self.out / "adapter",
            base=str(config.init),
            card=model_card(facts, adapter=True),
            extra={"spec_hash": parts.spec.hash, "quantized_base": config.lora.quantize},
        )
        if config.lora.merge:
            whole = load(config, torch.float32, torch.device("cpu"))
            merge(whole.model, read_adapter(self.out / "adapter", whole.model))
            save_parts(dataclasses.replace(whole, card=card), self.out / "model")

    def facts(self) -> Facts:
        draws = Mixture(self.loader.datasets, self.config.seed).draws
        data = [
            {"name": dataset.source.name, "rows": len(dataset.source), "draws": count}
            for dataset, count in zip(self.loader.datasets, draws, strict=True)
        ]
        state = self.loader.state()
        return Facts(
            config=self.config,
            rows=read_rows(self.out / "log.jsonl"),
            spec_hash=self.parts.spec.hash,
            base=str(self.config.init),
            learned=sum(parameter.numel() for _, parameter in self.learned),
            total=sum(parameter.numel() for parameter in self.parts.model.parameters()),
            data=data,
            num_read=state["num_read"],
            bad=state["bad"],
            device=str(self.world.device),
            num_ranks=self.world.size,
        )
