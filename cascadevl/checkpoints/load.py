"""A folder becomes Parts. Every tensor is accounted for before the first one is read."""

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cascadevl.checkpoints import quantized, weights
from cascadevl.checkpoints.language_names import OUTPUTS
from cascadevl.checkpoints.layouts import EMBEDDED, Layout, layouts, locate, read_json, recognise
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.pieces import Piece, file_shapes, rows_of
from cascadevl.checkpoints.quantized_matrix import Rounded
from cascadevl.core.errors import CheckpointError, ConfigError
from cascadevl.core.hardware import cpu_multiplies_bf16
from cascadevl.models.internvl import InternVL
from cascadevl.preprocessing.processor import Processor
from cascadevl.preprocessing.spec_file import Spec, read_spec
from cascadevl.preprocessing.template import answer_ends
from cascadevl.preprocessing.tokenizer import TextTokenizer

logger = logging.getLogger("cascadevl")

IGNORED = ("rotary_emb.inv_freq", "position_ids")
"""Buffers that old checkpoints carry and every model computes itself."""

Dtype = torch.dtype | str

Found = Mapping[str, weights.Entry | Rounded]
"""The tensors of a folder, weights of few bits under the names that they would have in full."""


def load_parts(model: str | os.PathLike[str], *, dtype: Dtype = "auto", device: str | torch.device = "auto") -> Parts:
    """Find, check and load a model.

    Peak memory stays close to the weights: the modules are made without memory and each tensor is
    read into its own. Raises CheckpointNotFound or CheckpointError, naming file and tensor.
    """
    folder = locate(model)
    raw = read_json(folder / "config.json")
    layout = layouts()[recognise(raw, folder)]
    stored = weights.entries(folder)
    named = {layout.current_name(name): entry for name, entry in stored.items() if not name.endswith(IGNORED)}
    found = quantized.gather(quantized.settings(raw, folder / "config.json"), named, folder)
    tokenizer = TextTokenizer.from_folder(folder)
    config = layout.read_config(raw, folder, is_tied(raw, found))
    with torch.device("meta"):
        network = InternVL(config)
    device = _resolve_device(device)
    whole = {entry.dtype for entry in found.values() if isinstance(entry, weights.Entry)}
    dtype, notes = resolve_dtype(dtype, whole, device)
    notes += _fill(network, found, layout, folder, dtype, device)
    for note in notes:
        logger.info("%s: %s", folder, note)
    spec = _spec(folder, raw, layout)
    _check_agreement(network, spec, tokenizer, folder)
    generation = read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    card = folder / "README.md"
    return Parts(
        name=folder.name if folder.parent == EMBEDDED else str(model),
        model=network.eval().requires_grad_(False),
        tokenizer=tokenizer,
        processor=Processor(spec, tokenizer, max_tokens=config.decoder.rope.longest),
        spec=spec,
        stop_ids=_stop_ids(generation, spec, tokenizer),
        generation=generation,
        card=card.read_text(encoding="utf-8") if card.is_file() else None,
        kv_cache=quantized.kv_cache(raw, folder / "config.json"),
        notes=notes,
    )


def load_processor(model: str | os.PathLike[str]) -> Processor:
    """Tokenizer and spec of a model, its weights left on the disk."""
    folder = locate(model)
    raw = read_json(folder / "config.json")
    return Processor(_spec(folder, raw, layouts()[recognise(raw, folder)]), TextTokenizer.from_folder(folder))


def _spec(folder: Path, raw: dict[str, Any], layout: Layout) -> Spec:
    """A spec that we saved wins over what the layout implies."""
    return read_spec(folder) or layout.derive_spec(raw, folder)


def resolve_dtype(wanted: Dtype, stored: set[torch.dtype], device: torch.device) -> tuple[torch.dtype, tuple[str, ...]]:
    """The type to compute in, and why if "auto" decided against the stored one; "stored" never does."""
    if isinstance(wanted, torch.dtype):
        if not wanted.is_floating_point or wanted.itemsize < 2:
            raise ConfigError(f"dtype {wanted} cannot hold weights: use float32, bfloat16 or float16.")
        return wanted, ()
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if wanted in named:
        return named[wanted], ()
    if wanted == "stored":
        return max(stored, key=lambda dtype: (dtype.itemsize, str(dtype))), ()
    if wanted != "auto":
        raise ConfigError(f"Unknown dtype {wanted!r}: expected auto, stored, {', '.join(named)}, or a torch dtype.")
    half = stored & {torch.bfloat16, torch.float16}
    if not half or device.type != "cpu":
        return (min(half, key=str) if half and stored <= half else torch.float32), ()
    if stored == {torch.bfloat16} and cpu_multiplies_bf16():
        return torch.bfloat16, ()
    name = str(min(half, key=str)).removeprefix("torch.")
    return torch.float32, (f"computing in float32: this CPU has no fast units for the stored {name}",)


def _resolve_device(wanted: str | torch.device) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"Unknown device {wanted!r}: expected auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"The device {wanted!r} was asked for, but torch sees no GPU here. Use device='cpu'.")
    return device


def is_tied(raw: dict[str, Any], found: Collection[str]) -> bool:
    """Tied if there is no output matrix and the config says that none is missing."""
    if any(name.endswith(OUTPUTS) for name in found):
        return False
    text = raw.get("text_config") or raw.get("llm_config") or {}
    return bool(raw.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False))


def _fill(
    network: InternVL,
    found: Found,
    layout: Layout,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[str, ...]:
    """Every parameter, those of few bits last; gives what is worth saying about them."""
    ours = dict(network.named_parameters())
    pieces = {name: layout.pieces(name, network.config, found) for name in ours}
    account(file_shapes({name: tensor.shape for name, tensor in ours.items()}, pieces), found, folder)
    modules, reader, few_bits = dict(network.named_modules()), weights.Reader(), []
    for name, parts in pieces.items():
        if any(isinstance(found[piece.name], Rounded) for piece in parts):
            few_bits.append(name)
            continue
        tensor = read_whole(ours[name].shape, parts, found, reader, dtype)
        owner, _, attribute = name.rpartition(".")
        setattr(modules[owner], attribute, torch.nn.Parameter(tensor.to(device), requires_grad=False))
    placer = quantized.Placer(found, dtype, device)
    for name in few_bits:
        placer.place(network, name, pieces[name])
    return placer.notes()


def read_whole(
    shape: torch.Size, pieces: Sequence[Piece], found: Found, reader: weights.Reader, dtype: torch.dtype
) -> torch.Tensor:
    """One parameter out of the tensors that make it up, none of them of few bits."""
    tensor = torch.empty(shape, dtype=dtype)
    for piece in pieces:
        skipped, entry = piece.start * tensor.shape[-1] if tensor.ndim > 1 else piece.start, found[piece.name]
        assert isinstance(entry, weights.Entry)
        reader.fill(rows_of(tensor, piece.at, piece.rows), entry, piece.name, skipped)
    return tensor


def account(wanted: dict[str, tuple[int, ...]], found: Found, folder: Path) -> None:
    """Refuse missing, unexpected and misshapen tensors, naming the first few of each."""
    problems = []
    for title, names in (
        ("missing", wanted.keys() - found.keys()),
        ("unexpected", found.keys() - wanted.keys()),
    ):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            problems.append(f"{len(names)} {title} ({shown})")
    for name in sorted(wanted.keys() & found.keys()):
        if found[name].shape != wanted[name]:
            problems.append(f"{name} has the shape {list(found[name].shape)}, config.json implies {list(wanted[name])}")
    if problems:
        raise CheckpointError(
            f"The weights in {folder} do not fit its config.json: {'; '.join(problems[:5])}. "
            "Were files of two models mixed, or tensors renamed?"
        )


def _check_agreement(network: InternVL, spec: Spec, tokenizer: TextTokenizer, folder: Path) -> None:
    """Tokenizer, spec and weights must speak of the same tiles and tokens."""
    config = network.config
    facts: list[tuple[str, Callable[[], Any], Any]] = [
        ("the id of " + spec.image_context, lambda: tokenizer.id(spec.image_context), config.image_token_id),
        ("tile_px", lambda: spec.tile_px, config.vision.tile_px),
        ("visual tokens per tile", lambda: spec.visual_tokens_per_tile, config.visual_tokens_per_tile),
        ("pixel mean", lambda: tuple(spec.mean), tuple(config.vision.pixel_mean)),
        ("pixel std", lambda: tuple(spec.std), tuple(config.vision.pixel_std)),
    ]
    for what, value, expected in facts:
        if value() != expected:
            raise CheckpointError(
                f"{folder} contradicts itself: {what} is {value()} in one file and {expected} in another."
            )
    if len(tokenizer) > config.decoder.vocab_size:
        raise CheckpointError(
            f"The tokenizer in {folder} has {len(tokenizer)} entries, the embeddings only {config.decoder.vocab_size}."
        )


def _stop_ids(generation: dict[str, Any], spec: Spec, tokenizer: TextTokenizer) -> tuple[int, ...]:
    """The template's end of turn, and what generation_config.json adds."""
    ids = generation.get("eos_token_id") or []
    found = list(ids) if isinstance(ids, list) else [ids]
    found += [tokenizer.controls[end] for end in answer_ends(spec, tokenizer.controls)]
    return tuple(dict.fromkeys(found))
