"""States of a run on disk: the last two, each whole, so that a crash while saving loses nothing.

A state holds what learns, the optimizer's moments, the average of weights, and of every rank its random numbers and
the loader's position. What does not learn is read again from where it came.
"""

import base64
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cascadevl.checkpoints.resume import STATE, load_training, save_training
from cascadevl.core.errors import CheckpointError
from cascadevl.training.trainable import Named

KEPT = 2
DIGITS = 8


class Learned(nn.Module):
    """Parameters by name as a module, for `save_training`: those alone that learn."""

    def __init__(self, named: Named) -> None:
        super().__init__()
        self._named = dict(named)

    # nn.Module's own names.
    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        return {name: parameter.detach() for name, parameter in self._named.items()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *arguments: Any, **options: Any) -> Any:
        if state_dict.keys() != self._named.keys():
            odd = sorted(state_dict.keys() ^ self._named.keys())
            raise RuntimeError(f"{len(odd)} parameters learn in one and not in the other, such as {odd[0]}.")
        with torch.no_grad():
            for name, tensor in state_dict.items():
                if tensor.shape != self._named[name].shape:
                    raise RuntimeError(f"{name} had the shape {tuple(tensor.shape)}.")
                self._named[name].copy_(tensor)


def write_state(
    folder: Path, step: int, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """A folder of its own, which appears whole; then the third last goes."""
    save_training(folder / f"{step:0{DIGITS}}", modules, optimizer, state)
    for old in states(folder)[:-KEPT]:
        shutil.rmtree(old)


def read_state(folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The last one that is whole. Raises CheckpointError where none is."""
    found = states(folder)
    if not found:
        raise CheckpointError(f"{folder} holds no state to go on from.")
    return load_training(found[-1], modules, optimizer)


def states(folder: Path) -> list[Path]:
    """Whole ones, the oldest first; what a crash left half written has another name."""
    named = (path for path in folder.glob("[0-9]" * DIGITS) if (path / STATE).is_file())
    return sorted(named)


def random_state(device: torch.device) -> dict[str, str]:
    """Of torch's generators, as text."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return {name: base64.b64encode(tensor.numpy().tobytes()).decode() for name, tensor in found.items()}


def set_random_state(state: Mapping[str, str], device: torch.device) -> None:
    found = {
        name: torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8) for name, text in state.items()
    }
    torch.set_rng_state(found["cpu"])
    if device.type == "cuda" and "cuda" in found:
        torch.cuda.set_rng_state(found["cuda"], device)
