"""Changes that were learned become a PEFT folder, under the names of transformers' layout.

Where that layout joins what we keep apart (Phi-3's qkv_proj), the changes of the parts lie in one of as many times the
rank, each in rows of its own; where it parts what we join (the tower's qkv), every part gets the same A.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cascadevl.checkpoints.adapter_config import CONFIG
from cascadevl.checkpoints.adapters import PREFIX, WEIGHTS
from cascadevl.checkpoints.layouts import layouts
from cascadevl.checkpoints.pieces import Piece, file_shapes
from cascadevl.checkpoints.weights import write_tensors
from cascadevl.core.errors import ConfigError
from cascadevl.core.files import atomic_folder, write_json, write_text
from cascadevl.models.internvl import InternVL
from cascadevl.models.lora import LearnedChange


def save_adapter(
    model: InternVL,
    changes: Mapping[str, LearnedChange],
    folder: str | os.PathLike[str],
    *,
    base: str,
    card: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write the changes of linears, by their path. `base` names the model below; `extra` goes into cascadevl.json."""
    with torch.device("meta"):
        plain = InternVL(model.config)
    shapes = {name: tuple(parameter.shape) for name, parameter in plain.named_parameters()}
    layout = layouts()["hf"]
    pieces = {name: layout.pieces(name, model.config, ()) for name in shapes}
    sources: dict[str, list[tuple[LearnedChange, Piece]]] = {}
    for path, change in changes.items():
        for piece in pieces[f"{path}.weight"]:
            sources.setdefault(piece.name, []).append((change, piece))
    stored_shapes = file_shapes(shapes, pieces)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for stored, found in sources.items():
        module = stored.removesuffix(".weight")
        a_RD, b_FR, magnitude_F = _joined(found, stored_shapes[stored][0])
        ranks[module] = len(a_RD)
        tensors |= {f"{PREFIX}{module}.lora_A.weight": a_RD, f"{PREFIX}{module}.lora_B.weight": b_FR}
        if magnitude_F is not None:
            tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = magnitude_F
    target = Path(folder)
    with atomic_folder(target) as work:
        write_tensors(tensors, work / WEIGHTS)
        write_json(work / CONFIG, _config(next(iter(changes.values())), ranks, stored_shapes, base))
        if extra is not None:
            write_json(work / "cascadevl.json", dict(extra))
        if card is not None:
            write_text(work / "README.md", card)
    return target


def _joined(sources: list[tuple[LearnedChange, Piece]], num_rows: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """A, B and perhaps magnitudes of a file's matrix."""
    change, piece = sources[0]
    if piece.rows is None:
        return change.a.detach().float(), change.b.detach().float(), _magnitude(change)
    own = list(dict.fromkeys(change for change, _ in sources))
    if change.magnitude is not None and sum(piece.rows or 0 for _, piece in sources) < num_rows:
        raise ConfigError(
            f"DoRA has a length for every row of {piece.name!r}, of which only a part was changed: change the linears "
            "that are joined in it together, such as q_proj, k_proj and v_proj, or leave DoRA out."
        )
    ranks = [len(change.a) for change in own]
    b_FR = torch.zeros(num_rows, sum(ranks))
    magnitude_F = torch.zeros(num_rows) if change.magnitude is not None else None
    for change, piece in sources:
        column = sum(ranks[: own.index(change)])
        theirs, ours = (
            slice(piece.start, piece.start + (piece.rows or 0)),
            slice(piece.at, piece.at + (piece.rows or 0)),
        )
        b_FR[theirs, column : column + len(change.a)] = change.b.detach().float().cpu()[ours]
        if magnitude_F is not None and change.magnitude is not None:
            magnitude_F[theirs] = change.magnitude.detach().float().cpu()[ours]
    return torch.cat([change.a.detach().float().cpu() for change in own]), b_FR, magnitude_F


def _magnitude(change: LearnedChange) -> Tensor | None:
    return None if change.magnitude is None else change.magnitude.detach().float()


def _config(
    change: LearnedChange, ranks: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], base: str
) -> dict[str, Any]:
    """adapter_config.json; modules whose rank is another get it, and their alpha, by name."""
    rank = len(change.a)
    odd = {module: other for module, other in ranks.items() if other != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": change.scale * rank,
        "lora_dropout": change.dropout,
        "use_dora": change.magnitude is not None,
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "target_modules": _targets(ranks, shapes),
        "rank_pattern": {_escaped(module): other for module, other in odd.items()},
        "alpha_pattern": {_escaped(module): change.scale * other for module, other in odd.items()},
    }


def _targets(modules: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Last names, as people write them, where they mean exactly these modules; otherwise full names."""
    short = {module.rpartition(".")[2] for module in modules}
    meant = {
        name.removesuffix(".weight")
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and name.removesuffix(".weight").rpartition(".")[2] in short
    }
    return sorted(short if meant == set(modules) else modules)


def _escaped(module: str) -> str:
    return module.replace(".", r"\.")
