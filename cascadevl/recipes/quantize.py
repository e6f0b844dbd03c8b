"""A model becomes one of few bits: scale, round, write, load again, compare, and refuse what lost too much.

Papers: AWQ, arXiv 2306.00978, and GPTQ, arXiv 2210.17323 (`engine/calibrate.py` and `ops/gptq.py` say what differs).
Tower, projector, embeddings and output matrix stay whole unless asked. Command:
`cascadevl quantize nano --out nano-int4 --weights int4-g64`. Hardware: one CPU core; memory for the model in fp32,
twice while it is compared.
"""

import dataclasses
import gc
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

import torch

import cascadevl
from cascadevl.checkpoints.layouts import layouts, locate, read_json, recognise
from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.save import check_target, write_parts
from cascadevl.core.config import evolve
from cascadevl.core.errors import CheckpointError, ConfigError, MessageError
from cascadevl.core.files import atomic_folder
from cascadevl.core.messages import Conversation, Text, Turn
from cascadevl.core.precision import KV_FORMATS, KVFormat
from cascadevl.engine.calibrate import Scaled, scale_weights
from cascadevl.engine.gptq import Rounded, round_weights
from cascadevl.gym import TASKS
from cascadevl.models.quant_linear import few_bits, quantize_decoder, quantize_linears
from cascadevl.ops.formats import FORMATS
from cascadevl.recipes.quality import Quality, compare, weight_bytes, write_card

GYM = ("line", "keyvalue", "charts", "shapes")
"""Families that samples are drawn from where the user gives none: train pictures to calibrate, test pictures to
compare."""

HELD_OUT_EVERY = 4
"""Of a user's samples, which are held out."""


Method = Literal["gptq", "awq", "awq+gptq"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantize:
    """How to round, and how much may be lost."""

    weights: str
    """A format of `ops.formats.FORMATS`."""
    kv: KVFormat | Literal["auto"] = "auto"
    """What the engine keeps keys and values in; only written down. auto: the engine decides."""
    calibration: str = "gym"
    """gym, none (round to nearest), or a file of JSON lines with `messages` that end with an answer."""
    method: Method = "gptq"
    """What calibration does: weights make up for each other's rounding (gptq), are scaled before it (awq), or both."""
    lm_head: bool = False
    """Round the output matrix too; one that is tied to the embeddings becomes a matrix of its own."""
    vision: bool = False
    """Round the tower and the projector too."""
    force: bool = False
    """Keep the folder whatever was lost."""
    max_kl: float = 0.1
    """Mean KL per token in nats above which the folder is refused."""
    num_samples: int = 64
    """To calibrate with, and as many to compare with, where the gym draws them."""

    def __post_init__(self) -> None:
        if self.weights not in FORMATS:
            raise ConfigError(f"weights={self.weights!r} is no format we know: expected {', '.join(FORMATS)}.")
        if self.kv not in ("auto", *KV_FORMATS):
            raise ConfigError(f"kv={self.kv!r} is no format we know: expected auto, {', '.join(KV_FORMATS)}.")
        if self.method not in get_args(Method):
            raise ConfigError(f"method={self.method!r} is none we know: expected {', '.join(get_args(Method))}.")
        if self.num_samples < 1 or not self.max_kl > 0:
            raise ConfigError(f"num_samples and max_kl must be above 0, got {self.num_samples} and {self.max_kl}.")


def quantize_folder(model: str | os.PathLike[str], out: Path, settings: Quantize) -> Quality:
    """Write the rounded model with its card; raises ConfigError, and writes nothing, if it lost too much."""
    folder = locate(model)
    layout = recognise(read_json(folder / "config.json"), folder)
    check_target(out, layout)
    calibrating, held_out = samples(settings)
    stored = load_parts(model, dtype="stored", device="cpu").model.dtype
    parts, made = round_parts(load_parts(model, dtype="float32", device="cpu"), settings, calibrating)
    parts.model.to(stored)
    with atomic_folder(out) as work:
        write_parts(_with_card(parts, settings), work, layouts()[layout])
        del parts
        gc.collect()
        quality = compare(load_parts(model, dtype="float32"), load_parts(work, dtype="float32"), held_out)
        quality = dataclasses.replace(quality, bytes_whole=weight_bytes(folder), bytes=weight_bytes(work))
        write_card(work, quality, _made(model, settings, made))
        if quality.kl_mean > settings.max_kl and not settings.force:
            raise ConfigError(
                f"{settings.weights} loses too much: a mean KL of {quality.kl_mean:.4f} nats per token, "
                f"{settings.max_kl} are allowed; {quality.answer_agreement:.0%} of the answers stay the same. Nothing "
                "was written. Choose smaller groups or int8, allow more with --max-kl, or insist with --force."
            )
    return quality


def round_parts(
    parts: Parts, settings: Quantize, calibrating: Sequence[Conversation]
) -> tuple[Parts, list[Scaled | Rounded]]:
    """Scale and round the weights of a model in place. Gives what it became, and what that did to single layers."""
    if few_bits(parts.model):
        raise CheckpointError(f"{parts.name} is of few bits already: quantize the model that it was made of.")
    format, model, head, vision = FORMATS[settings.weights], parts.model, settings.lm_head, settings.vision
    if head and model.language_model.lm_head is None:
        _untie(parts)
    inputs, made = [parts.processor(conversation) for conversation in calibrating], list[Scaled | Rounded]()
    if inputs and "awq" in settings.method:
        made += scale_weights(model, inputs, format, head=head, vision=vision)
    if inputs and "gptq" in settings.method:
        made += round_weights(model, inputs, format, head=head, vision=vision)
    else:
        quantize_decoder(model.language_model, format, head=head)
        if vision:
            quantize_linears(model, lambda name: name.startswith(("vision_model.", "mlp1.", "mlp2.")), format)
    return dataclasses.replace(parts, kv_cache=settings.kv), made


def _untie(parts: Parts) -> None:
    """The output matrix becomes one of its own, as embeddings are looked up whole."""
    decoder = parts.model.language_model
    weight = decoder.model.embed_tokens.weight
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    head.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
    decoder.lm_head = head
    parts.model.config = evolve(parts.model.config, decoder={"tied": False})
    decoder.config = parts.model.config.decoder


def samples(settings: Quantize) -> tuple[list[Conversation], list[Conversation]]:
    """To calibrate with, and to compare with."""
    if settings.calibration in ("gym", "none"):
        num = settings.num_samples
        return (gym_samples("train", num) if settings.calibration == "gym" else []), gym_samples("test", num)
    rows = read_rows(Path(settings.calibration))
    if len(rows) < HELD_OUT_EVERY:
        raise ConfigError(f"{settings.calibration} has {len(rows)} samples: at least {HELD_OUT_EVERY} are needed.")
    return [row for n, row in enumerate(rows) if n % HELD_OUT_EVERY], rows[::HELD_OUT_EVERY]


def gym_samples(split: str, num: int) -> list[Conversation]:
    """Questions about drawn pictures, with their answers."""
    tasks = [TASKS[name](split=split) for name in GYM]
    found = []
    for index in range(num):
        task = tasks[index % len(tasks)]
        sample = task.sample(index // len(tasks))
        asked = Conversation.ask(sample.question, images=(sample.image,))
        found.append(Conversation((*asked.turns, Turn("assistant", (Text(sample.answer),)))))
    return found


def read_rows(path: Path) -> list[Conversation]:
    """JSON lines, each an object with `messages` or a list of messages. Raises MessageError, naming the line."""
    if not path.is_file():
        raise MessageError(f"No such file: {str(path)!r}. Expected gym, none, or JSON lines with `messages`.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            conversation = Conversation.parse(row["messages"] if isinstance(row, dict) else row)
        except (ValueError, KeyError, TypeError) as problem:
            raise MessageError(
                f"{path}, line {number}: no conversation ({type(problem).__name__}: {problem})."
            ) from None
        if not conversation.ends_with_answer:
            raise MessageError(f"{path}, line {number}: the last message must be the assistant's, to be compared with.")
        rows.append(conversation)
    return rows


def _made(model: str | os.PathLike[str], settings: Quantize, layers: Sequence[Scaled | Rounded]) -> dict[str, Any]:
    made: dict[str, Any] = {"source": str(model), "cascadevl": cascadevl.__version__, **dataclasses.asdict(settings)}
    if scaled := [layer for layer in layers if isinstance(layer, Scaled)]:
        made["scaled"] = sum(each.alpha > 0 for each in scaled)
        made["output error before scaling"] = fmean(each.error_plain for each in scaled)
        made["output error"] = fmean(each.error for each in scaled)
    if rounded := [layer for layer in layers if isinstance(layer, Rounded)]:
        made["output error of rounding to nearest"] = fmean(each.error_nearest for each in rounded)
        made["output error"] = fmean(each.error for each in rounded)
    return made


def _with_card(parts: Parts, settings: Quantize) -> Parts:
    """The model's own card, and where to read what rounding cost."""
    note = f"Weights rounded to {settings.weights} by `cascadevl quantize`: [what it cost](quality.md).\n"
    return dataclasses.replace(parts, card=f"{parts.card or f'# {parts.name}'}".rstrip() + f"\n\n{note}")
