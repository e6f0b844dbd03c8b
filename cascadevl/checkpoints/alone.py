"""A tower or a language model by itself: what training begins from before there is a whole model.

The published first stages start from an InternViT folder and a language model's own folder; `graft.py` joins them. The
folder of a whole InternVL gives its tower too, and nothing else of it is read then.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cascadevl.checkpoints import chat_layout, hf_layout, quantized, weights
from cascadevl.checkpoints.gguf import LanguageParts, read_gguf
from cascadevl.checkpoints.language_names import language_pieces
from cascadevl.checkpoints.layouts import layouts, locate, read_json, recognise, require
from cascadevl.checkpoints.load import IGNORED, Dtype, account, is_tied, read_whole, resolve_dtype
from cascadevl.checkpoints.pieces import Piece, file_shapes
from cascadevl.core.errors import CheckpointError
from cascadevl.models.decoder import Decoder
from cascadevl.models.families import FAMILIES, read_decoder
from cascadevl.models.vision import InternViT
from cascadevl.preprocessing.tokenizer import TextTokenizer
from cascadevl.preprocessing.tokenizer_files import added_bos, config_of

TOWERS = {"intern_vit_6b": "chat", "intern_vit_300m": "chat", "internvl_vision": "hf"}
"""`model_type` of a tower by itself -> the layout whose names it has, without their beginning."""
BEGINNINGS = {"chat": "vision_model.", "hf": "model.vision_tower."}

Found = Mapping[str, weights.Entry]


def read_tower(model: str | os.PathLike[str], *, dtype: Dtype = "stored") -> InternViT:
    """The tower of an InternViT folder, or of an InternVL folder in either layout.

    Raises CheckpointError, naming files and tensors, for what is neither or does not fit its config.
    """
    folder = locate(model)
    raw = read_json(folder / "config.json")
    layout, sizes, alone = _tower_config(raw, folder)
    before, rename = BEGINNINGS[layout], layouts()[layout].current_name
    stored = _entries(folder)
    found = {before + name if alone else rename(name): entry for name, entry in stored.items()}
    found = {name: entry for name, entry in found.items() if name.startswith(before)}
    try:
        chat = layout == "chat"
        forced_px = None if alone else raw.get("force_image_size")
        vision = chat_layout.read_vision(sizes, folder, forced_px) if chat else hf_layout.read_vision(sizes, folder)
    except KeyError as error:
        raise CheckpointError(f"{folder / 'config.json'} lacks {error}: it is no complete tower's config.") from error

    def pieces(name: str) -> list[Piece]:
        name = f"vision_model.{name}"
        return [Piece(name)] if chat else hf_layout.tower_pieces(name, vision)

    with torch.device("meta"):
        tower = InternViT(vision)
    _fill(tower, pieces, found, folder, dtype)
    return tower


def read_language(model: str | os.PathLike[str], *, dtype: Dtype = "stored") -> LanguageParts:
    """A language model's own folder, of any family that decoders are made of; or a GGUF file.

    Raises CheckpointError, naming files and tensors, for a folder of anything else.
    """
    if Path(model).suffix == ".gguf":
        return read_gguf(model, dtype=dtype if isinstance(dtype, torch.dtype) else torch.float32)
    folder = locate(model)
    raw = read_json(folder / "config.json")
    if raw.get("model_type") in TOWERS or "vision_config" in raw:
        raise CheckpointError(
            f"{folder} holds a model with a tower ({raw.get('model_type')!r}): expected a language model's own folder."
        )
    if quantized.settings(raw, folder / "config.json"):
        raise CheckpointError(f"The weights in {folder} have few bits: begin from those in full, such as bfloat16.")
    found, tokenizer = _entries(folder), TextTokenizer.from_folder(folder)
    config = read_decoder(raw, tied=is_tied(raw, found))
    if len(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"The tokenizer in {folder} has {len(tokenizer)} entries, the embeddings only {config.vocab_size}."
        )
    with torch.device("meta"):
        decoder = Decoder(config)
    _fill(decoder, lambda name: language_pieces(name, config, found), found, folder, dtype)
    return LanguageParts(
        name=folder.name,
        decoder=decoder,
        tokenizer=tokenizer,
        chat_template=config_of(tokenizer.files).get("chat_template"),
        bos=added_bos(folder),
        stop_ids=_stop_ids(folder),
    )


def _tower_config(raw: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any], bool]:
    """Layout, the tower's part of the config, and whether the folder holds nothing but a tower."""
    kind = raw.get("model_type")
    if kind in TOWERS:
        return TOWERS[kind], raw, True
    if kind in FAMILIES:
        raise CheckpointError(f"{folder} holds a language model ({kind!r}): expected an InternViT or an InternVL.")
    layout = recognise(raw, folder)
    # Other layers may be taken out of a tower that is the same; a joined model takes the last.
    require(raw, {"select_layer": -1, "vision_feature_layer": -1}, folder)
    if not isinstance(raw.get("vision_config"), dict):
        raise CheckpointError(f"{folder / 'config.json'} lacks 'vision_config': there is no tower to take.")
    return layout, raw["vision_config"], False


def _entries(folder: Path) -> dict[str, weights.Entry]:
    return {name: entry for name, entry in weights.entries(folder).items() if not name.endswith(IGNORED)}


def _fill(
    module: nn.Module, pieces: Callable[[str], list[Piece]], found: Found, folder: Path, dtype: Dtype
) -> None:  # fmt: skip
    """Give a module without memory its parameters, and leave it as `load_parts` leaves a model."""
    ours = dict(module.named_parameters())
    lie = {name: pieces(name) for name in ours}
    account(file_shapes({name: tensor.shape for name, tensor in ours.items()}, lie), found, folder)
    dtype, _ = resolve_dtype(dtype, {entry.dtype for entry in found.values()}, torch.device("cpu"))
    modules, reader = dict(module.named_modules()), weights.Reader()
    for name, parts in lie.items():
        tensor = read_whole(ours[name].shape, parts, found, reader, dtype)
        owner, _, attribute = name.rpartition(".")
        setattr(modules[owner], attribute, nn.Parameter(tensor, requires_grad=False))
    module.eval()


def _stop_ids(folder: Path) -> tuple[int, ...]:
    """As the folder's own generation_config.json says; a template may add the end of its turns."""
    path = folder / "generation_config.json"
    ids = read_json(path).get("eos_token_id") if path.is_file() else None
    return tuple(ids) if isinstance(ids, list) else (() if ids is None else (ids,))
