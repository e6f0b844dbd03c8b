"""TrainConfig: everything that decides what a run computes, as plain data that YAML can hold.

Nothing here imports torch, so that help and mistakes are answered at once. A run writes its config beside
its weights, and `cascadevl train --config` reads it back.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cascadevl.core.config import from_dict, to_dict
from cascadevl.core.errors import ConfigError
from cascadevl.core.files import write_text

Precision = Literal["auto", "float32", "bfloat16"]

QUANTS = ("int8", "int4", "int4-g32", "int4-g64", "int4-g128")
"""What the matrices under a LoRA may be rounded to; widths must be multiples of a group."""
TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    """How samples become batches."""

    max_tokens: int = 4096
    """Tokens of a pack, visual ones included."""
    max_tiles: int = 48
    """Tiles of a pack."""
    per_step: int = 1
    """Packs of one update, over all ranks and micro-batches: more GPUs change nothing but the time."""
    epochs: float | None = None
    """The data end after so many rounds; None: only `steps` ends the run."""
    reduction: Literal["token", "square", "sample"] = "square"
    """A token of a sample with N supervised ones weighs 1, 1/√N or 1/N."""
    max_bad_share: float = 0.05
    """A larger share of samples that cannot be used stops the run."""
    too_long: Literal["refuse", "shorten"] = "refuse"
    """Samples beyond a pack are bad samples, or lose their last turns."""
    share_tiles: bool = False
    """Divide the tile limit of pictures by their number in a sample, as the released training code does."""
    deltas: tuple[float, ...] = ()
    """V2PE: how far a visual token moves the position, drawn for every picture; empty: 1."""

    def __post_init__(self) -> None:
        _positive(self, "max_tokens", "max_tiles", "per_step")
        if self.epochs is not None and not self.epochs > 0:
            raise ConfigError(f"packs.epochs must be positive or None, got {self.epochs}.")
        if not 0 <= self.max_bad_share <= 1:
            raise ConfigError(f"packs.max_bad_share is a share, 0 to 1, got {self.max_bad_share}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """How a gradient becomes a step."""

    kind: Literal["adamw", "muon"] = "adamw"
    """Muon orthogonalises the momentum of hidden matrices; AdamW steps the rest."""
    lr: float = 2e-5
    """The highest rate of the schedule."""
    weight_decay: float = 0.05
    """Of matrices; norms, biases and embeddings never decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    vit_layer_decay: float = 1.0
    """Each block of the tower learns at so much of the rate of the block above it."""
    max_grad_norm: float = 1.0
    """Longer gradients are shortened to this."""
    ema: float = 0.0
    """A moving average of the weights, such as 0.999, is what gets saved; 0: none is kept."""

    def __post_init__(self) -> None:
        _positive(self, "lr", "eps", "max_grad_norm", "vit_layer_decay")
        if self.vit_layer_decay > 1:
            raise ConfigError(f"optim.vit_layer_decay is at most 1, got {self.vit_layer_decay}.")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"optim.ema must be 0 (none) or below 1, such as 0.999, got {self.ema}.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas must lie in 0 … 1, got {self.betas}.")
        if self.kind == "muon" and self.vit_layer_decay != 1:
            raise ConfigError("optim.vit_layer_decay belongs to AdamW: set it to 1, or optim.kind to adamw.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """The learning rate over the steps."""

    kind: Literal["cosine", "constant", "wsd"] = "cosine"
    """wsd: warm-up, stable, then a cosine down over the last `decay_ratio` of the steps."""
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    """Share of all steps; one of both is given."""
    decay_ratio: float = 0.0
    floor: float = 0.0
    """Where the rate ends, as a share of the highest."""

    def __post_init__(self) -> None:
        if self.warmup_steps and self.warmup_ratio:
            raise ConfigError("schedule.warmup_steps and schedule.warmup_ratio both say how long to warm up: keep one.")
        if (self.kind == "wsd") != (self.decay_ratio > 0):
            raise ConfigError(
                f"schedule.decay_ratio belongs to wsd, which needs it: got {self.decay_ratio} with {self.kind}."
            )
        if min(self.warmup_ratio, self.decay_ratio) < 0 or self.warmup_ratio + self.decay_ratio > 1:
            raise ConfigError("schedule: warm-up and decay must be shares that sum to 1 at most.")

    def warmup(self, steps: int) -> int:
        return self.warmup_steps or math.ceil(self.warmup_ratio * steps)

    def decay(self, steps: int) -> int:
        """cosine: all that is not warm-up decays; constant: nothing does; wsd: the last share, where there is room."""
        room = steps - self.warmup(steps)
        return {"cosine": room, "constant": 0, "wsd": min(room, round(self.decay_ratio * steps))}[self.kind]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Low-rank changes instead of the weights themselves."""

    rank: int = 0
    """0: no LoRA, the parts in `train` learn in full."""
    alpha: float = 32.0
    """The change is alpha/rank · B·A."""
    dora: bool = False
    """Learn the length of each row apart from its direction (arXiv 2402.09353)."""
    dropout: float = 0.0
    """Of the inputs of A, in training."""
    on: tuple[str, ...] = ("llm",)
    """Which linears get one: vit, mlp, llm, or globs over their names."""
    quantize: str | None = None
    """QLoRA: the decoder's matrices under the changes in few bits, such as int4-g64."""
    merge: bool = False
    """Write OUT/model with the changes in its weights beside OUT/adapter."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ConfigError("lora: rank must be 0 or more, alpha positive, dropout in 0 … 1.")
        if not self.rank and (self.quantize or self.dora or self.merge):
            raise ConfigError("lora.quantize, lora.dora and lora.merge need a LoRA: set lora.rank, such as 16.")
        if self.dora and self.dropout:
            raise ConfigError("lora.dora with lora.dropout would scale rows by what was dropped: choose one.")
        if self.quantize is not None and self.quantize not in QUANTS:
            raise ConfigError(f"lora.quantize {self.quantize!r} is unknown: expected {', '.join(QUANTS)}.")
        if self.rank and not self.on:
            raise ConfigError("lora.on names no part: expected vit, mlp, llm or globs over names of linears.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig:
    """On what, and in which precision."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Under torchrun each process takes a GPU of its own."""
    precision: Precision = "auto"
    """Of products. Learned weights, gradients and moments are float32 in any case; "auto" is bfloat16 where
    the device multiplies it fast."""
    recompute: bool = False
    """Keep only the inputs of blocks and compute their insides again for the gradient: less memory, a third more
    time."""
    compile: bool = False
    """torch.compile for tower blocks and MLPs; attention stays as it is, for its shapes change with every pack."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchConfig:
    """What one sees."""

    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Beside log.jsonl, which is always written; TensorBoard only where it is installed."""
    sample_every: int = 0
    """Steps between answers to a question of the batch just learned; 0: none."""
    save_every: int = 200
    """Steps between states; the last two are kept."""
    hang_s: float = 1800.0
    """A step that takes longer ends the run, naming rank and samples."""

    def __post_init__(self) -> None:
        _positive(self, "save_every", "hang_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One run."""

    recipe: str
    """What it was made from."""
    model: str | None = None
    """The released model whose sizes it is for."""
    steps: int | None = None
    """Updates of the whole run; the schedule ends with them. None: it was not published, and depends on the data."""
    init: str | None = None
    """The model to start from: an embedded name, a folder, a hub id, tiny:FAMILY."""
    data: str | None = None
    """A JSONL, a folder, an InternVL meta file; or gym:FAMILY+FAMILY for rendered tasks."""
    data_format: str = "auto"
    """How to read it, where that cannot be told from the file."""
    train: tuple[str, ...] = ("vit", "mlp", "llm")
    """Which parts learn: vit, mlp, llm, or globs over parameter names. A LoRA takes their place."""
    drop_path: float | None = None
    """Share of the tower's residual branches skipped, growing over depth to this; None: as the model says."""
    balance: float = 0.0
    """Weight of the load-balancing loss of mixtures of experts."""
    seed: int = 0
    packs: PackConfig = field(default_factory=PackConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    def __post_init__(self) -> None:
        if self.steps is not None:
            _positive(self, "steps")
            if self.schedule.warmup(self.steps) > self.steps:
                raise ConfigError(
                    f"{self.schedule.warmup(self.steps)} warm-up steps exceed the {self.steps} of the run."
                )
        if not self.train and not self.lora.rank:
            raise ConfigError("Nothing would learn: name parts in `train`, or set lora.rank.")
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path must lie in 0 … 1, got {self.drop_path}.")
        if self.balance < 0:
            raise ConfigError(f"balance must not be negative, got {self.balance}.")

    def check_complete(self) -> None:
        """Refuse a published recipe that was not told where its model and its data are, and how many steps they are."""
        for name, words in UNTOLD.items():
            if getattr(self, name) is None:
                raise ConfigError(f"{self.recipe} does not say {words}: add --{name}.")

    @property
    def num_steps(self) -> int:
        """Of a complete config."""
        assert self.steps is not None
        return self.steps

    def accumulate(self, num_ranks: int) -> int:
        """Micro-batches of each rank, one pack each."""
        if self.packs.per_step % num_ranks:
            raise ConfigError(
                f"{self.packs.per_step} packs per step cannot be shared by {num_ranks} ranks: choose "
                f"packs.per_step as a multiple of {num_ranks}."
            )
        return self.packs.per_step // num_ranks


UNTOLD = {
    "init": "what to start from",
    "data": "what to learn from",
    "steps": "how many steps it takes (one epoch has rows / packs.per_step of them, fewer where samples share packs)",
}


def write_config(config: TrainConfig, path: Path) -> None:
    """As YAML, complete: every default is in it."""
    import yaml

    write_text(path, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def read_config(path: Path) -> TrainConfig:
    """Raises ConfigError for what is no YAML, for unknown and missing settings and for wrong types."""
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.1 takes 1e-5 for a word: it wants 1.0e-5. People, and other programs, write 1e-5."""

    number = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        with open(path, encoding="utf-8") as file:
            data: Any = yaml.load(file, Loader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
    return from_dict(TrainConfig, data, where=str(path))


def differences(one: TrainConfig, other: TrainConfig) -> list[str]:
    """The settings, by their dotted names, in which two configs differ."""
    flat = [_flat(to_dict(config)) for config in (one, other)]
    return [name for name in flat[0] if flat[0][name] != flat[1][name]]


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name} must be positive, got {getattr(config, name)}.")
