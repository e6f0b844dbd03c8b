"""nano, the embedded model: 6.2 M parameters that learn to read short texts, receipts and charts.

Paper: the architecture is InternVL3.5's (arXiv 2508.18265) made small: InternViT, pixel shuffle,
Qwen3. The data are the gym's, rendered while training; nothing pretrained goes in.
Command: `cascadevl train nano --out runs/nano`. Hardware: one CPU core.
Hours and scores: in the card, `cascadevl/embedded/nano/README.md`.
"""

import bisect
import itertools
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.resume import load_training, save_training
from cascadevl.checkpoints.save import save_parts
from cascadevl.checkpoints.tiny import assemble
from cascadevl.core.messages import Conversation, Text, Turn
from cascadevl.core.task import Exchange, Sample, Task
from cascadevl.data.batch import Batch, collate
from cascadevl.data.packing import pack
from cascadevl.gym import TASKS
from cascadevl.gym.glyph_targets import glyph_targets
from cascadevl.gym.pointers import answer_tokens, box_edges, covered
from cascadevl.models.config import DecoderConfig, VisionConfig
from cascadevl.ops.rope import Rope
from cascadevl.preprocessing.processor import ModelInputs, Processor
from cascadevl.preprocessing.spec_file import IMAGENET_MEAN, IMAGENET_STD, Spec
from cascadevl.preprocessing.tokenizer import train_tokenizer
from cascadevl.training.fit import FitState, fit
from cascadevl.training.muon import muon
from cascadevl.training.objectives import Loss
from cascadevl.training.objectives.next_token import NextToken
from cascadevl.training.objectives.read_patches import GlyphHead, ReadPatches, new_head
from cascadevl.training.schedule import WarmupStableDecay

VISION = VisionConfig(
    hidden_size=192,
    mlp_size=768,
    num_layers=6,
    num_heads=6,
    tile_px=112,
    patch_px=14,
    qkv_bias=True,
    qk_norm=False,
    norm="layer_norm",
    norm_eps=1e-6,
    drop_path=0.0,
    pixel_mean=IMAGENET_MEAN,
    pixel_std=IMAGENET_STD,
)
DECODER = DecoderConfig(
    family="qwen3",
    hidden_size=256,
    mlp_size=704,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_size=64,
    vocab_size=272,
    rope=Rope(theta=10000.0, max_position=2048),
    norm_eps=1e-6,
    qkv_bias=False,
    qk_norm=True,
    tied=False,
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<IMG_CONTEXT>\\n' -}}"
    "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""ChatML without a persona: a small model has no room for one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stretch of training."""

    name: str
    mixture: Mapping[str, float]
    """Weight of each family; settings of a family follow its name: "line:difficulty=easy"."""
    steps: int
    lr: float
    warmup: int = 100
    decay: int = 0
    parts: tuple[str, ...] = ("",)
    """Beginnings of the names of the parameters that learn; "" is all of them."""
    glyph_weight: float = 1.0
    """Weight of the dense character targets of the tower."""
    next_token: bool = True
    """Off: the decoder is not even run."""
    pointing: tuple[int, ...] = (1, 2, 3)
    """Decoder layers with a head that is shown where to look."""
    max_tiles: int = 64
    max_tokens: int = 4096
    """Budget of a pack; the optimizer steps once per pack."""


def stages() -> list[Stage]:
    """A curriculum: letters, then one short line, then lines, then everything."""
    everything = {
        "line": 4.0,
        "paragraph": 2.0,
        "keyvalue": 3.0,
        "charts": 1.5,
        "shapes": 1.0,
        "locate": 0.5,
    }
    return [
        Stage(
            name="letters",
            mixture={"letters": 4.0, "letters:difficulty=easy": 1.0, "line": 0.5, "paragraph": 1.0},
            steps=2500,
            lr=2e-3,
            parts=("vision_model.", "out."),
            next_token=False,
            max_tiles=48,
        ),
        Stage(
            name="words",
            mixture={"line:difficulty=easy,max_tiles=1": 1.0},
            steps=300,
            lr=2e-3,
            parts=("language_model.", "mlp1."),
            glyph_weight=0.0,
            max_tiles=48,
        ),
        Stage(
            name="lines",
            mixture={
                "line:difficulty=easy,max_tiles=1": 1.0,
                "line:difficulty=easy": 2.0,
                "line:max_tiles=3": 1.0,
                "letters": 1.0,
            },
            steps=5000,
            lr=2e-3,
            max_tiles=40,
        ),
        Stage(name="everything", mixture=everything, steps=12000, decay=3000, lr=2e-3, max_tiles=48),
    ]


def new_parts(seed: int = 0) -> Parts:
    """nano before training: random weights, and a tokenizer of the 256 bytes.

    A reader of unseen words copies characters. With byte pairs it would have to see a word's end before
    it could say the word's first token, and to know every pair by sight.
    """
    files = train_tokenizer([], 256)
    spec = Spec(max_tiles=6, template="jinja", jinja=CHAT_TEMPLATE)
    return assemble("nano", VISION, DECODER, files, spec, seed=seed, std=0.02)


def make_task(name: str, *, split: str = "train", seed: int = 0) -> Task:
    """A family by name, with settings: "line:difficulty=easy"."""
    family, _, settings = name.partition(":")
    changes = dict(item.split("=") for item in settings.split(",") if item)
    typed = {key: int(value) if value.isdigit() else value for key, value in changes.items()}
    return TASKS[family](split=split, seed=seed, **typed)


def taught(task: Task, sample: Sample) -> Conversation:
    """The question, its reference answer, and what else the sample knows about the picture.

    Encoding the picture is the dear part: five questions cost less than two pictures.
    """
    turns = [*task.prompt(sample).turns, Turn("assistant", (Text(sample.answer),))]
    for question, answer, _ in sample.more:
        turns += [Turn("user", (Text(question),)), Turn("assistant", (Text(answer),))]
    return Conversation(tuple(turns))


@dataclass(slots=True)
class GymBatches:
    """Packs of rendered samples without end. Sample i is a function of (seed, i): `position` is all its state."""

    mixture: Mapping[str, float]
    processor: Processor
    max_tokens: int
    max_tiles: int
    seed: int = 0
    position: int = 0
    """Samples given out in packs so far."""

    def __iter__(self) -> Iterator[Batch]:
        tasks = {name: make_task(name, seed=self.seed) for name in self.mixture}
        names, bounds = list(self.mixture), list(itertools.accumulate(self.mixture.values()))

        def draw(index: int) -> tuple[ModelInputs, Sample]:
            at = random.Random(f"{self.seed}/{index}").random() * bounds[-1]
            task = tasks[names[bisect.bisect(bounds, at)]]
            sample = task.sample(index)
            return self.processor(taught(task, sample)), sample

        samples = (draw(index) for index in itertools.count(self.position))
        for packed in pack(samples, max_tokens=self.max_tokens, max_tiles=self.max_tiles):
            self.position += len(packed)
            yield collate(
                [inputs for inputs, _ in packed],
                [self._glyphs(*item) for item in packed],
                [self._pointers(*item) for item in packed],
            )

    def _glyphs(self, inputs: ModelInputs, sample: Sample) -> torch.Tensor:
        spec = self.processor.spec
        targets = [
            glyph_targets(shown.glyphs, size, grid, spec.tile_px, VISION.patch_px, spec.thumbnail)
            for shown, size, grid in zip(sample.shown, inputs.sizes, inputs.grids, strict=True)
        ]
        return torch.from_numpy(np.concatenate(targets))

    def _pointers(self, inputs: ModelInputs, sample: Sample) -> torch.Tensor:
        """(2, pairs) of token and visual token, for answers that stand in one picture and just once."""
        spec, tokenizer = self.processor.spec, self.processor.tokenizer
        said = inputs.trained.nonzero().flatten().tolist()
        exchanges = (Exchange(sample.question, sample.answer, sample.about), *sample.more)
        answers = [_PIECES.findall(exchange.answer) for exchange in exchanges]
        if len(said) != sum(sum(map(_num_tokens, answer)) + 1 for answer in answers):  # with each answer's end
            return torch.empty(2, 0, dtype=torch.int64)
        places = (inputs.token_ids == tokenizer.id(spec.image_context)).nonzero().flatten()
        side = math.isqrt(spec.visual_tokens_per_tile)
        pairs, tokens = [], iter(said)
        for exchange, pieces in zip(exchanges, answers, strict=True):
            looks = self._looks(exchange, pieces, inputs, sample, side)
            for piece, look in zip(pieces, looks, strict=True):
                for _ in range(_num_tokens(piece)):
                    token = next(tokens) - 1  # the one that says it
                    pairs += [(token, int(places[at])) for at in look]
            next(tokens)
        return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T

    def _looks(
        self, exchange: Exchange, pieces: list[str], inputs: ModelInputs, sample: Sample, side: int
    ) -> list[list[int]]:
        """Visual tokens to look at for each piece of an answer: its character, an edge of its box, or what is asked."""
        thumbnail, size, grid = self.processor.spec.thumbnail, inputs.sizes[0], inputs.grids[0]
        seen = [at for place in exchange.about for at in covered(place, size, grid, side)]
        if exchange.about and pieces[0] == "<box>":
            edges = box_edges(exchange.about[0], size, grid, side, thumbnail)
            passed = itertools.accumulate(piece == "," for piece in pieces)
            return [edges[at] if piece.isdigit() else seen for piece, at in zip(pieces, passed, strict=True)]
        found = answer_tokens(exchange.answer, sample.shown, inputs.sizes, inputs.grids, side, thumbnail)
        return [shown or seen for shown in found]


_PIECES = re.compile("</?box>|.", re.DOTALL)
"""What an answer is said in: characters, of one or more bytes, and the tags of boxes, which are tokens."""


def _num_tokens(piece: str) -> int:
    return 1 if len(piece) > 1 else len(piece.encode())


def train(
    out: Path,
    *,
    init: str | None = None,
    resume: bool = False,
    seed: int = 0,
    echo: Callable[[str], None] = print,
) -> Parts:
    """Run the stages in order; the state is saved every few minutes and a resumed run goes on from it.

    `init` names a model to start from instead of fresh weights, such as an earlier nano. What the run
    started from is kept in `out/start`, the finished model is written to `out/model`. Each stage has an
    optimizer of its own.
    """
    start, last = out / "start", out / "last"
    if not resume:
        save_parts(load_parts(init, dtype="float32") if init else new_parts(seed), start)
    parts = load_parts(start, dtype="float32")
    head = new_head(VISION.hidden_size, torch.Generator().manual_seed(seed))
    modules: dict[str, nn.Module] = {"model": parts.model, "head": head}
    done: dict[str, Any] = load_training(last, modules) if resume else {"stage": 0, "step": 0}
    for number, stage in enumerate(stages()):
        if number >= done["stage"]:
            going_on = number == done["stage"] and done["step"] > 0
            run_stage(stage, number, parts, modules, out, seed=seed, resume=going_on, echo=echo)
    save_parts(parts, out / "model")
    return parts


def run_stage(
    stage: Stage,
    number: int,
    parts: Parts,
    modules: dict[str, nn.Module],
    out: Path,
    *,
    seed: int,
    resume: bool,
    echo: Callable[[str], None],
) -> None:
    """One stage of `train`."""
    named = []
    for name, parameter in (item for module in modules.values() for item in module.named_parameters()):
        parameter.requires_grad_(name.startswith(stage.parts))
        if parameter.requires_grad:
            named.append((name, parameter))
    optimizer = muon(named, lr=stage.lr, weight_decay=0.05)
    state, position = FitState(), 0
    if resume:
        saved = load_training(out / "last", modules, optimizer)
        state, position = FitState(saved["step"], saved["num_samples"]), saved["position"]
    batches = GymBatches(
        mixture=stage.mixture,
        processor=parts.processor,
        max_tokens=stage.max_tokens,
        max_tiles=stage.max_tiles,
        seed=100 * seed + number,
        position=position,
    )
    head = modules["head"]
    assert isinstance(head, GlyphHead)
    fit(
        model=parts.model,
        objective=ReadPatches(
            head=head,
            weight=stage.glyph_weight,
            next_token=NextToken() if stage.next_token else None,
            pointing=stage.pointing,
        ),
        batches=itertools.islice(batches, stage.steps - state.step),
        optimizer=optimizer,
        schedule=WarmupStableDecay(steps=stage.steps, warmup=stage.warmup, decay=stage.decay),
        state=state,
        observe=_Observer(out / "log.jsonl", stage.name, echo),
        save=_Saver(out / "last", modules, optimizer, batches, number, stage.steps),
    )


@dataclass(slots=True)
class _Observer:
    """Means over `every` steps, as a line on the screen and in log.jsonl."""

    path: Path
    stage: str
    echo: Callable[[str], None]
    every: int = 50
    sums: dict[str, float] = field(default_factory=dict)
    since: tuple[float, int] = field(default_factory=lambda: (time.perf_counter(), 0))

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
    batches: GymBatches
    stage: int
    last_step: int
    every_s: float = 180.0
    saved_at: float = field(default_factory=time.perf_counter)

    def __call__(self, state: FitState) -> None:
        finished = state.step == self.last_step
        if not finished and time.perf_counter() - self.saved_at < self.every_s:
            return
        where = {"stage": self.stage + 1, "step": 0} if finished else {"stage": self.stage, "step": state.step}
        position = {"num_samples": state.num_samples, "position": self.batches.position}
        save_training(self.folder, self.modules, self.optimizer, {**where, **position})
        self.saved_at = time.perf_counter()
