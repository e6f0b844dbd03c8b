"""Training state on disk: weights, optimizer moments and position, whole or not at all."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cascadevl.checkpoints.weights import write_tensors
from cascadevl.core.errors import CheckpointError
from cascadevl.core.files import atomic_folder, write_json

MODULES, MOMENTS, STATE = "modules.safetensors", "moments.safetensors", "state.json"


def save_training(
    folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write `modules` (by name), the optimizer's moments and any JSON state."""
    with atomic_folder(folder) as work:
        tensors = {f"{key}/{name}": p for key, module in modules.items() for name, p in module.state_dict().items()}
        write_tensors(tensors, work / MODULES)
        moments = {
            f"{index}/{name}": value
            for index, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
        write_tensors(moments, work / MOMENTS)
        write_json(work / STATE, state)


def load_training(
    folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """Fill `modules` (and the optimizer) from a folder; returns the JSON state."""
    if not (folder / STATE).is_file():
        raise CheckpointError(f"{folder} holds no training state: expected {STATE}.")
    tensors = _tensors(folder / MODULES)
    for key, module in modules.items():
        ours = {name.removeprefix(f"{key}/"): t for name, t in tensors.items() if name.startswith(f"{key}/")}
        try:
            module.load_state_dict(ours)
        except RuntimeError as error:
            raise CheckpointError(f"{folder} was saved from another {key!r}: {error}") from error
    if optimizer is not None:
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _tensors(folder / MOMENTS).items():
            index, _, field = name.partition("/")
            moments.setdefault(int(index), {})[field] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return json.loads((folder / STATE).read_text(encoding="utf-8"))


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
